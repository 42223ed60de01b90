"""Make the Python class of a message or service from its parsed definition.

The classes behave as those that `rosidl_generator_py` generates: keyword constructor, typed
properties over underscored slots, `get_fields_and_field_types`, constants on the class.
"""

import array
from collections.abc import Callable
from operator import attrgetter

import numpy as np
from rosbags.typesys.base import normalize_fieldname

from embedded_ros.field_types import FieldType, field_type

PADDING = 'structure_needs_at_least_one_member'  # the wire's only field of an empty message


def make_message_class(
    type_name: str,
    definition: tuple[list, list],
    find_class: Callable[[str], type],
    defaults: dict[str, object],
) -> type:
    """Return the class of `package/msg/Name`.

    `definition` holds rosbags' constants and fields; `defaults` the values, by field name, that
    the definition sets.
    """
    constants, fields = definition
    package, folder, name = type_name.split('/')
    types = {normalize_fieldname(field): field_type(descriptor, find_class)
             for field, descriptor in fields if field != PADDING}
    body: dict[str, object] = {
        '__slots__': tuple(f'_{field}' for field in types),
        '__module__': f'{package}.{folder}',
        '__doc__': f'Message class {name!r}.',
        '__hash__': None,
        '_fields_and_field_types': {field: kind.idl_name for field, kind in types.items()},
        'ros_type_name': type_name,
    }
    body.update(_constants(constants))
    for field, kind in types.items():
        body[field] = property(attrgetter(f'_{field}'), _setter(name, field, kind))
        if kind.to_wire is not None:
            body[f'_wire_{field}'] = property(_wire_getter(field, kind.to_wire))
    body['__init__'] = _constructor(type_name, types, defaults)
    if not types:
        body[f'_{PADDING}'] = 0
    cls = type(name, (Message,), body)
    cls.from_wire = staticmethod(_wire_constructor(cls, types))
    return cls


def wire_fields(definition: tuple[list, list], cls: type) -> list[tuple[str, tuple]]:
    """Return the attribute that holds the wire's form of each field, and its descriptor."""
    found = []
    for field, descriptor in definition[1]:
        name = normalize_fieldname(field)
        special = f'_wire_{name}'
        found.append((special if hasattr(cls, special) else f'_{name}', descriptor))
    return found


class Message:
    """What all message classes share."""

    __slots__ = ()
    _fields_and_field_types: dict[str, str]

    @classmethod
    def get_fields_and_field_types(cls) -> dict[str, str]:
        """Return a copy of the map from field name to IDL type name."""
        return dict(cls._fields_and_field_types)

    def __repr__(self) -> str:
        fields = ', '.join(f'{name}={_shown(getattr(self, name))}'
                           for name in self._fields_and_field_types)
        return f'{type(self).__module__}.{type(self).__name__}({fields})'

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return False
        return all(_equal(getattr(self, slot), getattr(other, slot)) for slot in self.__slots__)


def _shown(value: object) -> str:
    return repr(value.tolist()) if isinstance(value, array.array) else repr(value)


def _equal(one: object, other: object) -> bool:
    same = one == other
    return bool(same.all()) if isinstance(same, np.ndarray) else same


def _constants(constants: list) -> dict[str, object]:
    return {name: bytes((value & 0xff,)) if kind == 'byte' else value
            for name, kind, value in constants}


def _setter(class_name: str, field: str, kind: FieldType) -> Callable[[object, object], None]:
    slot, convert = f'_{field}', kind.convert

    def assign(self: object, value: object) -> None:
        try:
            value = convert(value)
        except AssertionError as error:
            raise AssertionError(f"The {field!r} field of '{class_name}' {error}") from None
        setattr(self, slot, value)

    return assign


def _wire_getter(field: str, to_wire: Callable[[object], object]) -> Callable[[object], object]:
    get = attrgetter(f'_{field}')
    return lambda self: to_wire(get(self))


def _constructor(
    type_name: str, types: dict[str, FieldType], defaults: dict[str, object]
) -> Callable[..., None]:
    makers = [(f'_{field}', field,
               (lambda value=defaults[field], kind=kind: kind.convert(value))
               if field in defaults else kind.default)
              for field, kind in types.items()]

    def construct(self: object, **fields: object) -> None:
        unknown = fields.keys() - types.keys()
        assert not unknown, (
            f'Invalid arguments passed to constructor of {type_name}: '
            f'{", ".join(sorted(unknown))}; it has: {", ".join(types) or "no fields"}')
        for slot, field, default in makers:
            if field in fields:
                setattr(self, field, fields[field])
            else:
                setattr(self, slot, default())

    return construct


def _wire_constructor(cls: type, types: dict[str, FieldType]) -> Callable[..., object]:
    """Return a fast constructor from the values, in order, that rosbags has decoded."""
    slots = [(f'_{field}', kind.from_wire) for field, kind in types.items()]

    def construct(*values: object) -> object:
        message = object.__new__(cls)
        for (slot, from_wire), value in zip(slots, values, strict=False):
            setattr(message, slot, value if from_wire is None else from_wire(value))
        return message

    return construct


def make_service_class(type_name: str, request: type, response: type) -> type:
    """Return the class of `package/srv/Name`, which holds its Request and Response."""
    package, folder, name = type_name.split('/')
    return type(name, (), {'Request': request, 'Response': response,
                           '__module__': f'{package}.{folder}',
                           '__doc__': f'Service class {name!r}.', 'ros_type_name': type_name})
