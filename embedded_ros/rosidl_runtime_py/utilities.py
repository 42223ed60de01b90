"""Find the class of an interface by its name."""

from importlib import import_module


def get_message(identifier: str) -> type:
    """Return the class of `package/msg/Name`.

    Raises ValueError for what is no such name, ModuleNotFoundError and AttributeError when package
    or message is not installed.
    """
    return _get(identifier, 'msg', 'message')


def get_service(identifier: str) -> type:
    """Return the class of `package/srv/Name`; raises as get_message."""
    return _get(identifier, 'srv', 'service')


def _get(identifier: str, folder: str, what: str) -> type:
    parts = identifier.split('/')
    if len(parts) != 3 or parts[1] != folder or not all(part.isidentifier() for part in parts):
        raise ValueError(f"Expected the full name of a {what} (e.g. 'package/{folder}/Name'), "
                         f"got '{identifier}'")
    return getattr(import_module(f'{parts[0]}.{folder}'), parts[2])
