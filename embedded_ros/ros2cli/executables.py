"""Find the executable of a package: `<prefix>/lib/PACKAGE/EXECUTABLE`, else an entry point.

A package that colcon built from `setup.py`, or that pip installed, has no `lib/PACKAGE` folder:
its console scripts belong to the Python distribution of the same name.
"""

import os
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError as AmentPackageNotFoundError
from ament_index_python.packages import get_package_prefix, get_packages_with_prefixes

from ros2cli.errors import CommandError, did_you_mean


def find_executable(package: str, name: str) -> tuple[str, ...]:
    """Return the command (argv without the user's arguments) that runs an executable.

    Raises CommandError, with near matches, when package or executable is unknown.
    """
    folder = _library_folder(package)
    path = folder / name if folder else None
    if path and path.is_file() and os.access(path, os.X_OK):
        return (str(path),)
    found = _distribution(package)
    if folder is None and found is None:
        raise CommandError(f"Package '{package}' not found"
                           + did_you_mean(package, get_packages_with_prefixes()))
    if name in _console_scripts(found):
        return (sys.executable, '-m', 'ros2cli.entry_point', package, name)
    known = executables(package)
    raise CommandError(f"No executable found: package '{package}' has no executable '{name}'"
                       + (did_you_mean(name, known) or f'\nIt has: {", ".join(known) or "none"}'))


def executables(package: str) -> list[str]:
    """Return the names of all executables of a package, sorted."""
    folder = _library_folder(package)
    in_folder = {path.name for path in folder.iterdir() if os.access(path, os.X_OK)
                 } if folder else set()
    return sorted(in_folder | set(_console_scripts(_distribution(package))))


def _library_folder(package: str) -> Path | None:
    try:
        folder = Path(get_package_prefix(package)) / 'lib' / package
    except (AmentPackageNotFoundError, ValueError):  # ValueError: no name of a package
        return None
    return folder if folder.is_dir() else None


def _distribution(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except (PackageNotFoundError, ValueError):
        return None


def _console_scripts(found: Distribution | None) -> list[str]:
    if found is None:
        return []
    return [entry.name for entry in found.entry_points if entry.group == 'console_scripts']
