"""Fill a module such as `std_msgs.msg` with the classes of its package.

A class is made when it is first asked for (module `__getattr__`), so that importing a package with
thirty messages costs nothing.
"""

import sys
from pathlib import Path

from embedded_ros.typestore import interface_store


def export(module_name: str, folder: Path | None = None) -> None:
    """Give the module `package.msg` or `package.srv` its classes.

    With a folder, the `.msg` or `.srv` files in it are read first.
    """
    package, kind = module_name.rsplit('.', 2)[-2:]
    store = interface_store()
    if folder is not None:
        for path in sorted(folder.glob(f'*.{kind}')):
            store.add_file(package, path)
    find = store.message_class if kind == 'msg' else store.service_class
    names = _names(store.fielddefs, f'{package}/{kind}/')
    module = sys.modules[module_name]

    def get(name: str) -> type:
        if name not in names:
            raise AttributeError(f'module {module_name!r} has no attribute {name!r}')
        cls = find(f'{package}/{kind}/{name}')
        setattr(module, name, cls)
        return cls

    module.__getattr__ = get
    module.__dir__ = lambda: names
    module.__all__ = names


def _names(type_names: object, prefix: str) -> list[str]:
    found = {name.removeprefix(prefix) for name in type_names if name.startswith(prefix)}
    if prefix.endswith('/srv/'):
        return sorted(name.removesuffix('_Request') for name in found
                      if name.endswith('_Request'))
    return sorted(found)
