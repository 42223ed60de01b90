"""All interface types that this process knows: definitions, Python classes, CDR, type hashes.

CDR code and type hashes come from `rosbags`; here its typestore is told to build the classes of
`message_class` and to read their fields in the form that it packs fastest.
"""

import re
import threading
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import yaml
from rosbags.interfaces import Msgdef
from rosbags.serde.cdr import (
    generate_deserialize_cdr,
    generate_getsize_cdr,
    generate_serialize_cdr,
)
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from embedded_ros import distro
from embedded_ros.message_class import make_message_class, make_service_class, wire_fields

STORES = {'jazzy': Stores.ROS2_JAZZY, 'humble': Stores.ROS2_HUMBLE}
DEFINITIONS = Path(__file__).parent / 'definitions'  # of services: rosbags has none
# What the definitions of the standard messages set; rosbags keeps no defaults.
STANDARD_DEFAULTS = {'geometry_msgs/msg/Quaternion': {'w': 1.0}}
FIELD_DEFAULT = re.compile(r'^\s*[\w/<=\[\]]+\s+([a-z]\w*)\s+([^=#\s][^#]*?)\s*(#.*)?$')


class InterfaceStore(Typestore):
    """rosbags' typestore with our message classes."""

    def __init__(self) -> None:
        super().__init__()
        base = get_typestore(STORES[distro()])
        self.fielddefs.update(base.fielddefs)
        self.types.clear()
        self.defaults: dict[str, dict[str, object]] = dict(STANDARD_DEFAULTS)
        self._lock = threading.RLock()
        self._services: dict[str, type] = {}

    def message_class(self, type_name: str) -> type:
        """Return the class of a message type; raises KeyError when it is unknown."""
        found = self.types.get(type_name)
        if found is None:
            with self._lock:
                if type_name not in self.fielddefs:
                    _import_package_of(type_name)
                if type_name not in self.fielddefs:
                    raise KeyError(f'the message type {type_name!r} is unknown')
                found = self.types[type_name] = self.types.get(type_name) or make_message_class(
                    type_name, self.fielddefs[type_name], self.message_class,
                    self.defaults.get(type_name, {}))
        return found

    def service_class(self, type_name: str) -> type:
        """Return the class of a service type; raises KeyError when it is unknown."""
        with self._lock:
            if type_name not in self._services:
                self._services[type_name] = make_service_class(
                    type_name, self.message_class(f'{type_name}_Request'),
                    self.message_class(f'{type_name}_Response'))
            return self._services[type_name]

    def get_msgdef(self, typename: str) -> Msgdef:
        """Return the compiled CDR functions of a type (rosbags calls this for nested types)."""
        found = self.cache.get(typename)
        if found is None:
            cls = self.message_class(typename)
            with self._lock:
                fields = wire_fields(self.fielddefs[typename], cls)
                getsize, size = generate_getsize_cdr(fields, self)
                found = self.cache[typename] = Msgdef(
                    typename, fields, cls.from_wire, size, getsize,
                    generate_serialize_cdr(fields, self, 'le'),
                    generate_serialize_cdr(fields, self, 'be'),
                    generate_deserialize_cdr(fields, self, 'le'),
                    generate_deserialize_cdr(fields, self, 'be'),
                    0, None, None, None, None, None, None, None)
        return found

    def add_file(self, package: str, path: Path) -> str:
        """Read a `.msg` or `.srv` file and return its type's name.

        Raises rosbags' TypesysError when the text is no definition, and when the name is already
        known with other fields.
        """
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.msg':
            return self._add_text(package, 'msg', path.stem, text)
        halves = re.split(r'^---\s*$', text, maxsplit=1, flags=re.MULTILINE)
        if len(halves) != 2:
            raise ValueError(f'{path}: expected a line --- between request and response')
        for suffix, half in zip(('Request', 'Response'), halves, strict=True):
            self._add_text(package, 'srv', f'{path.stem}_{suffix}', half)
        return f'{package}/srv/{path.stem}'

    def _add_text(self, package: str, folder: str, name: str, text: str) -> str:
        # Parsed as a message, so that a type without package is looked for in the package's msg.
        parsed = get_types_from_msg(text, f'{package}/msg/{name}')
        type_name = f'{package}/{folder}/{name}'
        self.register({type_name: parsed[f'{package}/msg/{name}']})
        self.types.pop(type_name, None)  # rosbags' class; ours is made when it is asked for
        self.defaults[type_name] = _field_defaults(text)
        return type_name

    def type_hash(self, type_name: str) -> str:
        """Return RIHS01_… of a type, as ROS 2 computes it."""
        return _type_hash(type_name)


def _import_package_of(type_name: str) -> None:
    """Import `package.msg` of a nested type; it registers its types if it is one of ours."""
    package, folder, _ = type_name.split('/')
    with suppress(ModuleNotFoundError):
        import_module(f'{package}.{folder}')


def _field_defaults(text: str) -> dict[str, object]:
    """Return the default values that a definition sets, by field name."""
    matches = (FIELD_DEFAULT.match(line) for line in text.splitlines())
    return {match[1]: yaml.safe_load(match[2]) for match in matches if match}


@cache
def interface_store() -> InterfaceStore:
    """Return the store of this process, with the standard messages and services."""
    store = InterfaceStore()
    for path in sorted(DEFINITIONS.glob('*/srv/*.srv')):
        store.add_file(path.parent.parent.name, path)
    return store


@cache
def _type_hash(type_name: str) -> str:
    return interface_store().hash_rihs01(type_name)


def serialize(message: object) -> memoryview:
    """Return the CDR of a message, encapsulation header first."""
    return interface_store().serialize_cdr(message, message.ros_type_name)


def deserialize(data: bytes | memoryview, cls: type) -> object:
    """Return the message of a class; raises rosbags' SerdeError when the data is not its CDR."""
    return interface_store().deserialize_cdr(data, cls.ros_type_name)
