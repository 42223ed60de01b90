"""The command line of `ros2 launch`."""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_share_directory,
    get_packages_with_prefixes,
)

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.launch.description import Argument, LaunchDescription, ProcessDescription
from ros2cli.launch.interpreter import argument_of, interpret
from ros2cli.launch.log import LaunchLog
from ros2cli.launch.substitutions import Scope, SubstitutionError, substitute
from ros2cli.launch.supervisor import Supervisor
from ros2cli.launch.xml_file import Element, read

# Launch configurations that every launch knows without declaring them.
BUILT_IN = ('sigterm_timeout', 'sigkill_timeout')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ros2 launch`."""
    parser.add_argument('package_name', help='Name of the ROS package which contains the launch '
                        'file, or the path of the launch file')
    parser.add_argument('launch_arguments', nargs='*', metavar='launch_file_name name:=value',
                        help="Name of the launch file, then arguments '<name>:=<value>'")
    parser.add_argument('-s', '--show-args', '--show-arguments', action='store_true',
                        help='Show arguments that may be given to the launch file')
    parser.add_argument('-a', '--show-all-subprocesses-output', action='store_true',
                        help="Show all launched processes' output, whatever their output is set "
                        'to')
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run a launch file to its end and return the launch's exit code."""
    path, rest = launch_file(args.package_name, args.launch_arguments)
    if args.show_args:
        print(format_arguments(declared_arguments(path)))
        return 0
    given = parse_arguments(rest)
    with LaunchLog() as log, tempfile.TemporaryDirectory(prefix='launch_params_') as folder:
        log.event('INFO', 'launch', f'All log files can be found below {log.folder}')
        description = interpret(path, given, Path(folder))
        for name in sorted(set(given) - set(description.arguments) - set(BUILT_IN)):
            log.event('WARNING', 'launch', f"argument '{name}' is not declared by {path.name}"
                      + did_you_mean(name, description.arguments))
        if args.show_all_subprocesses_output:
            description = LaunchDescription(
                steps=[replace(step, output='screen') if isinstance(step, ProcessDescription)
                       else step for step in description.steps])
        return asyncio.run(_run(description, log))


async def _run(description: LaunchDescription, log: LaunchLog) -> int:
    return await Supervisor(description, log).run()


def launch_file(first: str, rest: list[str]) -> tuple[Path, list[str]]:
    """Return the launch file that the arguments name, and the arguments after it."""
    if os.path.isfile(first):
        path = Path(first)
    elif rest and ':=' not in rest[0]:
        path, rest = _in_package(first, rest[0]), rest[1:]
    elif '/' in first or first.endswith('.xml'):
        raise CommandError(f'file {first!r} does not exist')
    else:
        raise CommandError(f"neither a file nor a package with a launch file: '{first}'; "
                           'expected FILE or PACKAGE FILE')
    if path.suffix != '.xml':
        raise CommandError(f'{path}: only XML launch files (*.launch.xml) are supported here')
    return path, rest


def _in_package(package: str, name: str) -> Path:
    try:
        share = Path(get_package_share_directory(package))
    except (PackageNotFoundError, ValueError) as error:
        raise CommandError(f"Package '{package}' not found"
                           + did_you_mean(package, get_packages_with_prefixes())) from error
    files = sorted(_files(share))
    found = [path for path in files if path.match(name)]
    if not found:
        known = {path.name for path in files if '.launch.' in path.name}
        raise CommandError(f"file '{name}' was not found in the share directory of package "
                           f"'{package}' which is at '{share}'" + did_you_mean(name, known))
    if len(found) > 1:
        raise CommandError(f"file '{name}' was found more than once in '{share}': "
                           + ', '.join(str(path.relative_to(share)) for path in found))
    return found[0]


def _files(share: Path) -> Iterator[Path]:
    """Give the files of a share directory.

    That of an editable package is its repository: what colcon built there (marked by
    COLCON_IGNORE) and hidden folders are no part of the package.
    """
    for folder, folders, names in os.walk(share):
        folders[:] = [name for name in folders if not name.startswith('.')
                      and not Path(folder, name, 'COLCON_IGNORE').exists()]
        yield from (Path(folder, name) for name in names)


def parse_arguments(words: list[str]) -> dict[str, str]:
    """Return {name: value} of `name:=value` words; raises CommandError for another form."""
    given: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition(':=')
        if not separator or not name:
            raise CommandError(f"malformed launch argument '{word}', expected format "
                               "'<name>:=<value>'")
        given[name] = value
    return given


def declared_arguments(path: Path) -> dict[str, Argument]:
    """Return the arguments of a launch file and of the files that it may include.

    Nothing is decided: conditions are taken as true, and a file whose name depends on an
    argument without default is passed over.
    """
    found: dict[str, Argument] = {}
    _collect(read(path), path.resolve(), found, depth=0)
    return found


def _collect(parent: Element, path: Path, found: dict[str, Argument], depth: int) -> None:
    defaults = {argument.name: argument.default or '' for argument in found.values()}
    for element in parent.children:
        if element.tag == 'arg':
            argument = argument_of(element)
            found.setdefault(argument.name, argument)
            defaults.setdefault(argument.name, argument.default or '')
        elif element.tag == 'group':
            _collect(element, path, found, depth)
        elif element.tag == 'include' and depth < 20:
            scope = Scope(configurations=defaults, environment=os.environ, path=path)
            try:
                included = path.parent / substitute(element.attributes.get('file', ''), scope)
            except SubstitutionError:
                continue
            set_here = {argument.attributes.get('name') for argument in element.children}
            inner: dict[str, Argument] = {}
            _collect(read(included), included.resolve(), inner, depth + 1)
            for name, argument in inner.items():
                if name not in set_here:
                    found.setdefault(name, argument)


def format_arguments(arguments: dict[str, Argument]) -> str:
    """Return the text of --show-args."""
    if not arguments:
        return "Arguments (pass arguments as '<name>:=<value>'):\n\n  No arguments."
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in arguments.values():
        choices = f' Valid choices are: {list(argument.choices)}' if argument.choices else ''
        lines += ['', f"    '{argument.name}':", f'        {argument.description}{choices}']
        if argument.default is not None:
            lines.append(f"        (default: '{argument.default}')")
    return '\n'.join(lines)
