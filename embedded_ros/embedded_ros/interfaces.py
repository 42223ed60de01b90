"""Install a package's messages: `python -m embedded_ros.interfaces PACKAGE FOLDER`.

FOLDER holds `.msg` and `.srv` files. They are checked, copied to `<purelib>/PACKAGE/msg` and
`…/srv`, and a module beside them gives the classes, so that `from PACKAGE.msg import Name` works.
A package of the same name that is elsewhere extends its `__path__` by `pkgutil.extend_path`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from ament_index_python.packages import editable_root
from rosbags.typesys import TypesysError

from embedded_ros.typestore import interface_store

MODULE = '''"""The {what} of `{package}`, installed by embedded_ros."""

from pathlib import Path

from embedded_ros.interface_module import export

export(__name__, Path(__file__).parent)
'''
KINDS = {'msg': 'messages', 'srv': 'services'}


class InterfaceError(Exception):
    """Definitions that cannot be installed; the message names the file."""


def install(package: str, folder: Path, target: Path) -> list[str]:
    """Install the definitions in `folder` below `target` and return the names of their types.

    Raises InterfaceError when there is none, or one is no definition.
    """
    if not re.fullmatch(r'[a-z][a-z0-9_]*', package):
        raise InterfaceError(f'{package!r} is no name of a package: lower case letters, digits '
                             'and _ are valid')
    files = [path for kind in KINDS for path in sorted(folder.glob(f'*.{kind}'))]
    if not files:
        raise InterfaceError(f'{folder}: no .msg or .srv file')
    names = [_read(package, path) for path in files]
    for name, path in zip(names, files, strict=True):
        _compile(name, path)
    for kind, what in KINDS.items():
        here = target / package / kind
        chosen = {path.name: path for path in files if path.suffix == f'.{kind}'}
        if not chosen:
            shutil.rmtree(here, ignore_errors=True)
            continue
        here.mkdir(parents=True, exist_ok=True)
        for stale in set(here.glob(f'*.{kind}')) - {here / name for name in chosen}:
            stale.unlink()
        for name, path in chosen.items():
            shutil.copy(path, here / name)
        (here / '__init__.py').write_text(MODULE.format(what=what, package=package),
                                          encoding='utf-8')
    return names


def _read(package: str, path: Path) -> str:
    """Read a definition and return its type's name."""
    try:
        return interface_store().add_file(package, path)
    except (TypesysError, ValueError) as error:
        raise InterfaceError(f'{path}: {error}') from error


def _compile(name: str, path: Path) -> None:
    """Make a type's class and code, so that what is wrong with it shows now."""
    store = interface_store()
    try:
        for part in [name] if path.suffix == '.msg' else [f'{name}_Request', f'{name}_Response']:
            store.get_msgdef(part)
            store.message_class(part)()
            store.type_hash(part)
    except (KeyError, AssertionError) as error:
        raise InterfaceError(f'{path}: {error}') from error


def keep_importable(package: str, target: Path) -> None:
    """Let a package that is installed editable win over `<target>/package`.

    setuptools finds such a package by an import hook. Python's own finder comes before hooks and
    would take our folder, which has no `__init__.py`, for the whole package; so the repository is
    put on the path, where the package is found first.
    """
    root = editable_root(package)
    path_file = target / f'{package}-interfaces.pth'
    if root is not None and Path(root, package, '__init__.py').is_file():
        path_file.write_text(f'{root}\n', encoding='utf-8')
    else:
        path_file.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Install, and prove by a new interpreter that the classes can be imported."""
    parser = argparse.ArgumentParser(prog='python -m embedded_ros.interfaces',
                                     description=__doc__.splitlines()[0])
    parser.add_argument('package', help='name of the package, as in PACKAGE.msg')
    parser.add_argument('folder', type=Path, help='folder with .msg and .srv files')
    parser.add_argument('--target', type=Path, default=Path(sysconfig.get_path('purelib')),
                        help='folder on the Python path (default: %(default)s)')
    args = parser.parse_args(argv)
    try:
        names = install(args.package, args.folder, args.target)
        keep_importable(args.package, args.target)
    except (InterfaceError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    kinds = sorted({name.split('/')[1] for name in names})
    code = ''.join(f'; import {args.package}.{kind}' for kind in kinds)
    proof = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path.append({str(args.target)!r}){code}'],
        capture_output=True, text=True, check=False)
    if proof.returncode:
        print(f'error: installed to {args.target}, but not importable:\n{proof.stderr}',
              file=sys.stderr)
        return 1
    print(f'{args.package}: {", ".join(names)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
