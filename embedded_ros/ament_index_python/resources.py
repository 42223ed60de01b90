"""The resource index: marker files below `share/ament_index/resource_index`."""

from pathlib import Path

from ament_index_python.search_paths import get_search_paths

INDEX = Path('share', 'ament_index', 'resource_index')


def get_resource(resource_type: str, resource_name: str) -> tuple[str, str]:
    """Return a resource's content and prefix; raises LookupError when there is none."""
    for prefix in get_search_paths():
        path = Path(prefix) / INDEX / _name(resource_type) / _name(resource_name)
        if path.is_file():
            return path.read_text(encoding='utf-8'), prefix
    raise LookupError(f"Could not find the resource '{resource_name}' of type '{resource_type}'")


def get_resources(resource_type: str) -> dict[str, str]:
    """Return the prefixes of all resources of a type, by name."""
    found: dict[str, str] = {}
    for prefix in reversed(get_search_paths()):
        folder = Path(prefix) / INDEX / _name(resource_type)
        if folder.is_dir():
            found.update({path.name: prefix for path in folder.iterdir()
                          if path.is_file() and not path.name.startswith('.')})
    return found


def has_resource(resource_type: str, resource_name: str) -> str | None:
    """Return the prefix of a resource, or None."""
    try:
        return get_resource(resource_type, resource_name)[1]
    except LookupError:
        return None


def _name(text: str) -> str:
    """Return a name that is one part of a path; raises ValueError for any other."""
    if not text or '/' in text or '\\' in text or text in ('.', '..'):
        raise ValueError(f'{text!r} is no name of a resource')
    return text
