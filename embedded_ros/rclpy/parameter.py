"""Parameters: a name, a type and a value."""

from array import array
from enum import Enum
from typing import Any

from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue

from rclpy import _yaml

PARAMETER_SEPARATOR_STRING = '.'


class Parameter:
    """A named value of one of ROS' parameter types."""

    class Type(Enum):
        """The types; the values are those of rcl_interfaces/ParameterType."""

        NOT_SET = ParameterType.PARAMETER_NOT_SET
        BOOL = ParameterType.PARAMETER_BOOL
        INTEGER = ParameterType.PARAMETER_INTEGER
        DOUBLE = ParameterType.PARAMETER_DOUBLE
        STRING = ParameterType.PARAMETER_STRING
        BYTE_ARRAY = ParameterType.PARAMETER_BYTE_ARRAY
        BOOL_ARRAY = ParameterType.PARAMETER_BOOL_ARRAY
        INTEGER_ARRAY = ParameterType.PARAMETER_INTEGER_ARRAY
        DOUBLE_ARRAY = ParameterType.PARAMETER_DOUBLE_ARRAY
        STRING_ARRAY = ParameterType.PARAMETER_STRING_ARRAY

        @classmethod
        def from_parameter_value(cls, value: object) -> 'Parameter.Type':
            """Return the type that a Python value has; raises TypeError when it has none."""
            if value is None:
                return cls.NOT_SET
            for kind, scalar, _ in _SCALARS:
                if type(value) is scalar or (scalar is not bool and isinstance(value, scalar)
                                             and not isinstance(value, bool)):
                    return cls[kind]
            if isinstance(value, list | tuple | array):
                for kind, element in _ARRAYS:
                    if all(isinstance(item, element) and
                           (element is bool or not isinstance(item, bool)) for item in value):
                        return cls[kind]
                raise TypeError('The given value is not a list of one of the allowed types '
                                f"'bytes, bool, int, float, str': {value!r}")
            raise TypeError('The given value is not one of the allowed types '
                            f"'bool, int, float, str, list of these': {value!r}")

        def check(self, parameter_value: object) -> bool:
            """Tell whether a Python value is of this type."""
            try:
                found = type(self).from_parameter_value(parameter_value)
            except TypeError:
                return False
            empty = isinstance(parameter_value, list | tuple | array) and not len(parameter_value)
            return found is self or (empty and self.name.endswith('_ARRAY'))

    def __init__(self, name: str, type_: 'Parameter.Type | None' = None,
                 value: object = None) -> None:
        if type_ is None:
            type_ = Parameter.Type.from_parameter_value(value)
        if not isinstance(type_, Parameter.Type):
            raise TypeError(f'type must be an instance of Parameter.Type, not {type_!r}')
        if not type_.check(value):
            raise ValueError(f"Type '{type_}' and value '{value}' do not agree")
        self._name = name
        self._type = type_
        self._value = value

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    @property
    def type_(self) -> 'Parameter.Type':
        """The type."""
        return self._type

    @property
    def value(self) -> Any:
        """The value; None when not set."""
        return self._value

    @classmethod
    def from_parameter_msg(cls, message: ParameterMsg) -> 'Parameter':
        """Return the parameter of rcl_interfaces/Parameter."""
        return cls(message.name, cls.Type(message.value.type),
                   parameter_value_to_python(message.value))

    def get_parameter_value(self) -> ParameterValue:
        """Return the value as rcl_interfaces/ParameterValue."""
        message = ParameterValue(type=self._type.value)
        if self._type is not Parameter.Type.NOT_SET:
            value = list(self._value) if self._type.name.endswith('_ARRAY') else self._value
            setattr(message, f'{self._type.name.lower()}_value', value)
        return message

    def to_parameter_msg(self) -> ParameterMsg:
        """Return rcl_interfaces/Parameter."""
        return ParameterMsg(name=self._name, value=self.get_parameter_value())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameter) and (
            self._name, self._type, self._value) == (other.name, other.type_, other.value)

    def __hash__(self) -> int:
        return hash((self._name, self._type))

    def __repr__(self) -> str:
        return f'Parameter(name={self._name!r}, type_={self._type.name}, value={self._value!r})'


_SCALARS = (('BOOL', bool, bool), ('INTEGER', int, int), ('DOUBLE', float, float),
            ('STRING', str, str))
_ARRAYS = (('BYTE_ARRAY', bytes), ('BOOL_ARRAY', bool), ('INTEGER_ARRAY', int),
           ('DOUBLE_ARRAY', float), ('STRING_ARRAY', str))


def parameter_value_to_python(message: ParameterValue) -> Any:
    """Return the Python value of rcl_interfaces/ParameterValue; None when it is not set.

    Raises RuntimeError for a type that does not exist.
    """
    try:
        kind = Parameter.Type(message.type)
    except ValueError:
        raise RuntimeError(f'unexpected parameter type {message.type}') from None
    if kind is Parameter.Type.NOT_SET:
        return None
    value = getattr(message, f'{kind.name.lower()}_value')
    return value.tolist() if isinstance(value, array) else value


def get_parameter_value(string_value: str) -> ParameterValue:
    """Return the value that a text means, read as YAML; what is no value is a string."""
    try:
        value = _yaml.load(string_value)
        kind = Parameter.Type.from_parameter_value(value)
    except (ValueError, TypeError):
        value, kind = string_value, Parameter.Type.STRING
    if kind is Parameter.Type.NOT_SET:
        value, kind = string_value, Parameter.Type.STRING
    return Parameter('', kind, value).get_parameter_value()


def parameter_dict_from_yaml_file(file: str, use_wildcard: bool = False,
                                  target_nodes: list[str] | None = None,
                                  namespace: str = '') -> dict[str, ParameterMsg]:
    """Return the parameters of a parameter file, by name.

    With `target_nodes` those of these nodes (full names) only, with `use_wildcard` those for
    wildcards too.
    """
    from rclpy._arguments import parse_arguments

    found: dict[str, ParameterMsg] = {}
    for rule in parse_arguments(['--ros-args', '--params-file', file]).parameters:
        wild = '*' in rule.pattern
        if wild and not use_wildcard:
            continue
        if target_nodes and not any(rule.fits(node) for node in target_nodes):
            continue
        found[namespace + rule.name] = Parameter(namespace + rule.name,
                                                 value=rule.value).to_parameter_msg()
    return found
