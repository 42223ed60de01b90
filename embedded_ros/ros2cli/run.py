"""`ros2 run`: replace this process by a package's executable."""

import argparse
import os

from ros2cli.executables import find_executable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ros2 run`."""
    parser.add_argument('package_name', help='Name of the ROS package')
    parser.add_argument('executable_name', help='Name of the executable')
    parser.add_argument('argv', nargs=argparse.REMAINDER,
                        help='Pass arbitrary arguments to the executable')
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> None:
    """Execute; the exit code is the executable's own. Raises CommandError when not found."""
    command = [*find_executable(args.package_name, args.executable_name), *args.argv]
    os.execv(command[0], command)
