"""Packages, by the resource index and by the metadata of Python distributions.

A package that colcon or pip installed from `setup.py` has the index's marker below its own prefix,
which may be on no path that is searched; one that pip installed editable is its repository.
"""

import json
import os
import re
from importlib.metadata import Distribution, distribution
from importlib.metadata import PackageNotFoundError as DistributionNotFound
from pathlib import Path
from urllib.parse import unquote, urlparse

from ament_index_python.resources import INDEX, get_resources, has_resource

PACKAGE_NAME = re.compile(r'[a-zA-Z0-9][a-zA-Z0-9_-]+')


class PackageNotFoundError(KeyError):
    """A package that is not installed."""

    def __str__(self) -> str:
        return self.args[0] if self.args else ''


def get_package_prefix(package_name: str) -> str:
    """Return the prefix that a package is installed to.

    Raises PackageNotFoundError, and ValueError for what is no name of a package.
    """
    if not PACKAGE_NAME.fullmatch(package_name):
        raise ValueError(f"'{package_name}' is not a valid package name")
    prefix = has_resource('packages', package_name) or _prefix_of_distribution(package_name)
    if prefix is None:
        searched = os.environ.get('AMENT_PREFIX_PATH', '')
        raise PackageNotFoundError(f"package '{package_name}' not found, searching: "
                                   f'AMENT_PREFIX_PATH={searched!r} and Python distributions')
    return prefix


def get_package_share_directory(package_name: str, print_warning: bool = True) -> str:
    """Return the folder of a package's shared files: launch, config and so on.

    Raises PackageNotFoundError, and ValueError for what is no name of a package.
    """
    editable = editable_root(package_name) if PACKAGE_NAME.fullmatch(package_name) else None
    if editable is not None and _outside_ament(package_name):
        return editable
    return os.path.join(get_package_prefix(package_name), 'share', package_name)


def get_package_share_path(package_name: str, print_warning: bool = True) -> Path:
    """Return get_package_share_directory as a path."""
    return Path(get_package_share_directory(package_name, print_warning))


def get_packages_with_prefixes() -> dict[str, str]:
    """Return the prefixes of all packages that the index names."""
    return get_resources('packages')


def _outside_ament(package_name: str) -> bool:
    """Tell whether no prefix of $AMENT_PREFIX_PATH has the package."""
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    return not any(prefix and Path(prefix, INDEX, 'packages', package_name).is_file()
                   for prefix in prefixes)


def _distribution(package_name: str) -> Distribution | None:
    try:
        return distribution(package_name)
    except DistributionNotFound:
        return None


def editable_root(package_name: str) -> str | None:
    """Return the repository of a package that is installed editable, else None."""
    found = _distribution(package_name)
    text = found.read_text('direct_url.json') if found is not None else None
    if text is None:
        return None
    origin = json.loads(text)
    root = unquote(urlparse(origin.get('url', '')).path)
    editable = origin.get('dir_info', {}).get('editable', False)
    return root if editable and Path(root).is_dir() else None


def _prefix_of_distribution(package_name: str) -> str | None:
    """Return the folder above a distribution's site-packages that has the package's marker.

    An editable distribution has none; its prefix is the environment that it is installed to.
    """
    found = _distribution(package_name)
    if found is None:
        return None
    site = Path(found.locate_file('')).resolve()
    for folder in site.parents:
        if Path(folder, INDEX, 'packages', package_name).is_file():
            return str(folder)
    return str(site.parents[2]) if editable_root(package_name) else None
