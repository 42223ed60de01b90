"""The entry point of the `ros2` command."""

import argparse
import os
import signal
import sys
from importlib import import_module

from embedded_ros import SettingError
from ros2cli.errors import CommandError

# name -> (module, help): a module is imported when its command is asked for, since most of them
# bring in DDS, which `ros2 launch` and `ros2 run` can do without.
COMMANDS = {
    'bag': ('ros2cli.bag', 'Various rosbag related sub-commands'),
    'interface': ('ros2cli.interface', 'Show information about ROS interfaces'),
    'launch': ('ros2cli.launch.command', 'Run a launch file'),
    'lifecycle': ('ros2cli.lifecycle', 'Various lifecycle related sub-commands'),
    'node': ('ros2cli.node', 'Various node related sub-commands'),
    'param': ('ros2cli.param', 'Various param related sub-commands'),
    'run': ('ros2cli.run', 'Run a package specific executable'),
    'service': ('ros2cli.service', 'Various service related sub-commands'),
    'topic': ('ros2cli.topic', 'Various topic related sub-commands'),
}


def build_parser(selected: str | None) -> argparse.ArgumentParser:
    """Return the parser that knows all commands by name and the selected one in full."""
    parser = argparse.ArgumentParser(
        prog='ros2', description='The part of the `ros2` command that embedded_ros has.')
    commands = parser.add_subparsers(title='Commands', metavar='command')
    parser.set_defaults(main=lambda _: parser.print_help())
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(main=lambda _, command=command: command.print_help())
        if name == selected:
            import_module(module).add_arguments(command)
    return parser


def add_verbs(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    """Return where a command adds the parsers of its verbs."""
    return parser.add_subparsers(title='Verbs', metavar='verb')


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad usage or SIGINT."""
    words = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(line_buffering=True)  # who pipes us wants each line at once
    try:
        args = build_parser(words[0] if words else None).parse_args(words)
        return args.main(args) or 0
    except (CommandError, SettingError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return signal.SIGINT
    except BrokenPipeError:
        # `ros2 topic list | head`: the reader has all it wants. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == '__main__':
    sys.exit(main())
