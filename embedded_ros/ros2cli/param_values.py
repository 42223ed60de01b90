"""Parameter values between YAML text, Python and rcl_interfaces/ParameterValue."""

from typing import Any, NamedTuple

import yaml
from rcl_interfaces.msg import ParameterType, ParameterValue


class Label(NamedTuple):
    """How ros2param calls a type, how it introduces a value of it, and the field that holds it."""

    kind: str
    value: str
    field: str


LABELS: dict[int, Label] = {
    ParameterType.PARAMETER_NOT_SET: Label('not set', 'Parameter not set.', ''),
    ParameterType.PARAMETER_BOOL: Label('boolean', 'Boolean value is:', 'bool_value'),
    ParameterType.PARAMETER_INTEGER: Label('integer', 'Integer value is:', 'integer_value'),
    ParameterType.PARAMETER_DOUBLE: Label('double', 'Double value is:', 'double_value'),
    ParameterType.PARAMETER_STRING: Label('string', 'String value is:', 'string_value'),
    ParameterType.PARAMETER_BYTE_ARRAY: Label('byte array', 'Byte values are:',
                                              'byte_array_value'),
    ParameterType.PARAMETER_BOOL_ARRAY: Label('boolean array', 'Boolean values are:',
                                              'bool_array_value'),
    ParameterType.PARAMETER_INTEGER_ARRAY: Label('integer array', 'Integer values are:',
                                                 'integer_array_value'),
    ParameterType.PARAMETER_DOUBLE_ARRAY: Label('double array', 'Double values are:',
                                                'double_array_value'),
    ParameterType.PARAMETER_STRING_ARRAY: Label('string array', 'String values are:',
                                                'string_array_value'),
}
SCALARS = {bool: ParameterType.PARAMETER_BOOL, int: ParameterType.PARAMETER_INTEGER,
           float: ParameterType.PARAMETER_DOUBLE, str: ParameterType.PARAMETER_STRING}
ARRAYS = {bool: ParameterType.PARAMETER_BOOL_ARRAY, int: ParameterType.PARAMETER_INTEGER_ARRAY,
          float: ParameterType.PARAMETER_DOUBLE_ARRAY, str: ParameterType.PARAMETER_STRING_ARRAY}


def plain_value(value: ParameterValue) -> Any:
    """Return the Python value: None, bool, int, float, str, or a list of these."""
    field = LABELS[value.type].field
    if not field:
        return None
    plain = getattr(value, field)
    return plain if isinstance(plain, (bool, int, float, str)) else list(plain)


def parse_value(text: str) -> ParameterValue:
    """Return the value that a text stands for: YAML decides on its type, as in ros2param.

    What YAML takes for anything but a scalar or a list of one type stays text.
    """
    try:
        return value_message(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError):
        return value_message(text)


def value_message(value: object) -> ParameterValue:
    """Return a bool, int, float, str, or list of one of these as a message.

    An empty list counts as one of strings. Raises ValueError for any other value.
    """
    kind = SCALARS.get(type(value))
    if isinstance(value, list) and len(types := {type(item) for item in value} or {str}) == 1:
        kind = ARRAYS.get(types.pop())
    if kind is None:
        raise ValueError(f'{value!r}; expected a boolean, a number, text, or a list of one of '
                         'these')
    message = ParameterValue()
    message.type = kind
    setattr(message, LABELS[kind].field, value)
    return message
