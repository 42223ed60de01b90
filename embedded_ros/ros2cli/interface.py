"""`ros2 interface show|list`, and the definition that a bag stores with a type."""

import argparse
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_share_directory,
    get_packages_with_prefixes,
)
from embedded_ros.typestore import DEFINITIONS, interface_store

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.main import add_verbs
from ros2cli.topic_echo import message_class

PRIMITIVES = {'bool', 'byte', 'char', 'float32', 'float64', 'int8', 'uint8', 'int16', 'uint16',
              'int32', 'uint32', 'int64', 'uint64', 'string', 'wstring'}
FIELD_TYPE = re.compile(r'^\s*([A-Za-z][\w/]*)[\w<=\[\]]*\s+\w')
NESTED_RULE = '=' * 80  # between the definitions of a type and of what it is made of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 interface`."""
    verbs = add_verbs(parser)
    show_parser = verbs.add_parser('show', help='Output the interface definition')
    show_parser.add_argument('type', help="Show an interface definition (e.g. 'std_msgs/msg/"
                             "String')")
    show_parser.add_argument('--no-comments', action='store_true',
                             help='Show no comments nor whitespace')
    show_parser.set_defaults(main=show)
    list_parser = verbs.add_parser('list', help='List all interface types available')
    list_parser.add_argument('-m', '--only-msgs', action='store_true',
                             help='Print out only the message types')
    list_parser.add_argument('-s', '--only-srvs', action='store_true',
                             help='Print out only the service types')
    list_parser.set_defaults(main=list_interfaces)


def show(args: argparse.Namespace) -> None:
    """Print a definition with the fields of nested types, indented, below theirs."""
    package, folder, name = _split(args.type)
    text = _file_text(package, folder, name)
    if text is None and folder == 'msg':
        text = definition_of(f'{package}/msg/{name}')[0].split(NESTED_RULE)[0]
    if text is None:
        raise CommandError(f"Unknown interface '{args.type}'"
                           + did_you_mean(args.type, [*known('msg'), *known('srv')]))
    for line in _expanded(package, text.strip('\n'), comments=not args.no_comments):
        print(line)


def list_interfaces(args: argparse.Namespace) -> None:
    """Print the types of all packages that can be imported."""
    sections = {'Messages': 'msg', 'Services': 'srv'}
    if args.only_msgs or args.only_srvs:
        sections = {title: folder for title, folder in sections.items()
                    if (folder == 'msg' and args.only_msgs)
                    or (folder == 'srv' and args.only_srvs)}
    for title, folder in sections.items():
        print(f'{title}:', *(f'    {name}' for name in known(folder)), sep='\n')


def known(folder: str) -> list[str]:
    """Return the names of all types in `msg` or `srv`, sorted."""
    names = {f'{path.parent.parent.name}/{folder}/{path.stem}'
             for path in DEFINITIONS.glob(f'*/{folder}/*.{folder}')}
    if folder == 'msg':
        names |= {name for name in interface_store().fielddefs if name.split('/')[1] == 'msg'}
    for package in get_packages_with_prefixes():
        share = Path(get_package_share_directory(package))
        names |= {f'{package}/{folder}/{path.stem}' for path in (share / folder).glob(
            f'*.{folder}')}
    packages = {package for package in {name.split('/')[0] for name in names}
                if find_spec(package) is not None}
    return sorted(name for name in names if name.split('/')[0] in packages)


def definition_of(message_type: str) -> tuple[str, str]:
    """Return a message type's full definition (nested types included) and its RIHS01 hash.

    Raises CommandError when the type is unknown.
    """
    package, folder, name = _split(message_type)
    full_name = f'{package}/{folder}/{name}'
    message_class(full_name)  # its package registers its types when it is imported
    store = interface_store()
    text, _ = store.generate_msgdef(full_name, ros_version=2)
    return text, store.type_hash(full_name)


def _split(interface: str) -> tuple[str, str, str]:
    parts = interface.split('/')
    if len(parts) == 2:
        parts.insert(1, 'msg')
    if len(parts) != 3 or parts[1] not in ('msg', 'srv') or not all(parts):
        raise CommandError(f"'{interface}' is no interface; expected PACKAGE/msg/NAME or "
                           'PACKAGE/srv/NAME')
    return parts[0], parts[1], parts[2]


def _file_text(package: str, folder: str, name: str) -> str | None:
    """Return the text of a definition's own file, which has its comments, where there is one."""
    places = [DEFINITIONS / package]
    with suppress(PackageNotFoundError, ValueError):  # ValueError: no name of a package
        places.insert(0, Path(get_package_share_directory(package)))
    for place in places:
        path = place / folder / f'{name}.{folder}'
        if path.is_file():
            return path.read_text(encoding='utf-8')
    return None


def _expanded(package: str, text: str, *, comments: bool, indent: str = '') -> Iterator[str]:
    for line in text.splitlines():
        code = line.split('#')[0].rstrip()
        if comments or code:
            yield f'{indent}{line if comments else code}'
        match = FIELD_TYPE.match(code)
        if match and match[1] not in PRIMITIVES:
            nested = _nested_name(package, match[1])
            inner = _file_text(*_split(nested)) or definition_of(nested)[0].split(NESTED_RULE)[0]
            yield from _expanded(nested.split('/')[0], inner, comments=False,
                                 indent=f'{indent}\t')


def _nested_name(package: str, written: str) -> str:
    """Return the full name of a field's type: `Header` is std_msgs', others the package's own."""
    parts = written.split('/')
    if len(parts) == 1:
        return f'{"std_msgs" if written == "Header" else package}/msg/{written}'
    return f'{parts[0]}/msg/{parts[-1]}'
