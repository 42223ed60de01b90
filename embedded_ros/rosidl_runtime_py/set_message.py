"""Fill messages from dictionaries."""

import array
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from rosidl_runtime_py.utilities import get_message


def set_message_fields(msg: Any, values: Mapping[str, Any], expand_header_auto: bool = False,
                       expand_time_now: bool = False) -> list[Callable[[Any], None]]:
    """Set fields of a message; nested messages are maps, and numbers take the field's type.

    Returns what sets the stamp (a Time message) of every header that is given as `auto`, and of
    every time given as `now`, where these words are asked for; not inside lists. Raises
    AttributeError for a field that the message does not have, ValueError, TypeError or
    AssertionError for a value that does not fit.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f'expected a map of the fields of {msg.ros_type_name}, found {values!r}')
    kinds = msg.get_fields_and_field_types()
    stamps: list[Callable[[Any], None]] = []
    for name, value in values.items():
        if name not in kinds:
            raise AttributeError(f'{msg.ros_type_name} has no field {name!r}; it has: '
                                 f'{", ".join(kinds) or "none"}')
        current = getattr(msg, name)
        try:
            if expand_header_auto and kinds[name] == 'std_msgs/Header' and value == 'auto':
                stamps.append(partial(setattr, current, 'stamp'))
            elif expand_time_now and kinds[name] == 'builtin_interfaces/Time' and value == 'now':
                stamps.append(partial(setattr, msg, name))
            elif hasattr(current, 'get_fields_and_field_types') and not isinstance(
                    value, type(current)):
                nested = type(current)()
                stamps += set_message_fields(nested, value, expand_header_auto, expand_time_now)
                setattr(msg, name, nested)
            else:
                setattr(msg, name, _value(current, kinds[name], value))
        except (ValueError, TypeError) as error:
            raise type(error)(f'{msg.ros_type_name}.{name}: {error}') from error
    return stamps


def _value(current: Any, kind: str, value: Any) -> Any:
    if hasattr(current, 'get_fields_and_field_types'):
        return value
    if isinstance(current, array.array):
        numbers = float if current.typecode in 'fd' else int
        return array.array(current.typecode, [numbers(item) for item in value])
    if isinstance(current, np.ndarray):
        return np.array(value, current.dtype)
    if isinstance(current, list):
        return [_element(kind, item) for item in value]
    return _scalar(kind, value)


def _element(kind: str, value: Any) -> Any:
    """Return an element of a list: `sequence<package/Name>`, `package/Name[3]`, or a scalar."""
    inner = kind.removeprefix('sequence<').rstrip('>').split('[')[0].split(',')[0]
    if '/' not in inner:
        return _scalar(inner, value)
    package, name = inner.split('/')
    cls = get_message(f'{package}/msg/{name}')
    if isinstance(value, cls):
        return value
    element = cls()
    set_message_fields(element, value)
    return element


def _scalar(kind: str, value: Any) -> Any:
    if kind == 'octet':
        return value if isinstance(value, bytes) else bytes((
            ord(value) if isinstance(value, str) else int(value) & 0xff,))
    if kind in ('float', 'double'):
        return float(value)
    if kind == 'boolean':
        return bool(value)
    return str(value) if kind.startswith('string') else int(value)
