"""How one field of a message behaves: its default, its check, its form on the wire.

The rules are those of the classes that `rosidl_generator_py` generates: a sequence of numbers is
an `array.array`, a fixed array of numbers a `numpy.ndarray`, all else a list; a value of a wrong
type or out of range raises AssertionError.
"""

import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rosbags.interfaces import Nodetype

# name in .msg files -> (array typecode, NumPy type, least, greatest)
NUMBERS: dict[str, tuple[str, type, float, float]] = {
    'int8': ('b', np.int8, -2**7, 2**7 - 1),
    'uint8': ('B', np.uint8, 0, 2**8 - 1),
    'char': ('B', np.uint8, 0, 2**8 - 1),
    'int16': ('h', np.int16, -2**15, 2**15 - 1),
    'uint16': ('H', np.uint16, 0, 2**16 - 1),
    'int32': ('i', np.int32, -2**31, 2**31 - 1),
    'uint32': ('I', np.uint32, 0, 2**32 - 1),
    'int64': ('q', np.int64, -2**63, 2**63 - 1),
    'uint64': ('Q', np.uint64, 0, 2**64 - 1),
    'float32': ('f', np.float32, -3.402823466e+38, 3.402823466e+38),
    'float64': ('d', np.float64, -1.7976931348623157e+308, 1.7976931348623157e+308),
}
IDL_NAMES = {'bool': 'boolean', 'byte': 'octet', 'char': 'uint8', 'float32': 'float',
             'float64': 'double'}


@dataclass(frozen=True, kw_only=True)
class FieldType:
    """Behaviour of a field; `from_wire` and `to_wire` are None where nothing is to be done."""

    idl_name: str
    default: Callable[[], object]
    convert: Callable[[object], object]  # -> what is stored; AssertionError says what was expected
    from_wire: Callable[[object], object] | None = None
    to_wire: Callable[[object], object] | None = None


def field_type(descriptor: tuple, find_class: Callable[[str], type]) -> FieldType:
    """Return the behaviour of a field that `rosbags` describes by `descriptor`.

    `find_class` gives the class of a nested message's type; it is called when first needed.
    """
    kind, content = descriptor
    if kind == Nodetype.BASE:
        return _scalar(*content)
    if kind == Nodetype.NAME:
        return _nested(content, find_class)
    element, count = content
    fixed = kind == Nodetype.ARRAY
    name = element[1][0] if element[0] == Nodetype.BASE else None
    if name in NUMBERS:
        return _number_array(name, count) if fixed else _number_sequence(name, count)
    return _list(field_type(element, find_class), name, count, fixed)


def _expect(condition: bool, value: object, expected: str) -> None:
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f'{shown[:80]}…'
        raise AssertionError(f'must be {expected}, not {shown} of type {type(value).__name__!r}')


def _scalar(name: str, bound: int) -> FieldType:
    if name == 'string':
        return _string(bound)
    if name == 'bool':
        return FieldType(idl_name='boolean', default=bool, convert=_checked(bool, 'a bool'))
    if name == 'byte':
        return _byte()
    _, _, least, greatest = NUMBERS[name]
    if name.startswith('float'):
        return FieldType(idl_name=IDL_NAMES[name], default=float,
                         convert=_float_check(name, greatest))

    def convert(value: object) -> object:
        _expect(isinstance(value, int) and least <= value <= greatest, value,
                f'an int in [{least}, {greatest}]')
        return value

    return FieldType(idl_name=IDL_NAMES.get(name, name), default=int, convert=convert)


def _checked(expected: type, text: str) -> Callable[[object], object]:
    def convert(value: object) -> object:
        _expect(isinstance(value, expected), value, text)
        return value

    return convert


def _float_check(name: str, greatest: float) -> Callable[[object], object]:
    def convert(value: object) -> object:
        _expect(isinstance(value, float), value, f'a float ({name})')
        finite_or_not = -greatest <= value <= greatest or value - value != 0  # inf and nan pass
        _expect(finite_or_not, value, f'a float in [{-greatest}, {greatest}]')
        return value

    return convert


def _string(bound: int) -> FieldType:
    def convert(value: object) -> object:
        _expect(isinstance(value, str), value, 'a str')
        _expect(not bound or len(value) <= bound, value, f'a str of at most {bound} characters')
        return value

    return FieldType(idl_name=f'string<{bound}>' if bound else 'string', default=str,
                     convert=convert)


def _byte() -> FieldType:
    def convert(value: object) -> object:
        _expect(isinstance(value, bytes | bytearray) and len(value) == 1, value, 'one byte')
        return bytes(value)

    return FieldType(
        idl_name='octet', default=lambda: b'\x00', convert=convert,
        from_wire=lambda value: bytes((value & 0xff,)),
        to_wire=lambda value: int.from_bytes(value, 'little', signed=True))


def _nested(name: str, find_class: Callable[[str], type]) -> FieldType:
    package, _, simple = name.split('/')

    def convert(value: object) -> object:
        expected = find_class(name)
        _expect(isinstance(value, expected), value, f'a {package}/{simple}')
        return value

    return FieldType(idl_name=f'{package}/{simple}', default=lambda: find_class(name)(),
                     convert=convert)


def _number_check(name: str) -> Callable[[Iterable], None]:
    """Return a check of a Python sequence of numbers; it raises AssertionError."""
    _, _, least, greatest = NUMBERS[name]
    kind, text = (float, 'floats') if name.startswith('float') else (int, 'ints')

    def check(values: Iterable) -> None:
        for value in values:
            _expect(isinstance(value, kind) and
                    (least <= value <= greatest or value - value != 0), value,
                    f'{text} in [{least}, {greatest}] ({name})')

    return check


def _as_vector(value: np.ndarray, name: str) -> np.ndarray:
    """Return a one-dimensional array of the field's own NumPy type, copied only if needed."""
    dtype = NUMBERS[name][1]
    _expect(value.ndim == 1, value, 'a one-dimensional array')
    _expect(np.can_cast(value.dtype, dtype, 'same_kind'), value, f'an array of {name}')
    if value.dtype != dtype and dtype not in (np.float32, np.float64):
        low, high = NUMBERS[name][2:]
        _expect(value.size == 0 or (value.min() >= low and value.max() <= high), value,
                f'an array of {name}')
    return np.ascontiguousarray(value, dtype)


def _number_array(name: str, count: int) -> FieldType:
    dtype = NUMBERS[name][1]
    check = _number_check(name)

    def convert(value: object) -> object:
        if not isinstance(value, np.ndarray):
            _expect(isinstance(value, Iterable) and not isinstance(value, str), value,
                    f'{count} values of {name}')
            value = list(value)
            check(value)
            value = np.array(value, dtype)
        value = _as_vector(value, name)
        _expect(value.size == count, value, f'{count} values of {name}')
        return value

    return FieldType(idl_name=f'{IDL_NAMES.get(name, name)}[{count}]',
                     default=lambda: np.zeros(count, dtype), convert=convert, from_wire=np.array)


def _number_sequence(name: str, bound: int) -> FieldType:
    code, dtype, _, _ = NUMBERS[name]
    check = _number_check(name)

    def from_buffer(value: object) -> array.array:
        numbers = array.array(code)
        numbers.frombytes(value)
        return numbers

    def convert(value: object) -> object:
        if isinstance(value, array.array) and value.typecode == code:
            numbers = value
        elif isinstance(value, np.ndarray):
            numbers = from_buffer(memoryview(_as_vector(value, name)).cast('B'))
        elif code == 'B' and isinstance(value, bytes | bytearray | memoryview):
            numbers = from_buffer(value)
        else:
            _expect(isinstance(value, Iterable) and not isinstance(value, str | bytes), value,
                    f'a sequence of {name}')
            value = list(value)
            check(value)
            numbers = array.array(code, value)
        _expect(not bound or len(numbers) <= bound, numbers, f'at most {bound} values of {name}')
        return numbers

    element = IDL_NAMES.get(name, name)
    return FieldType(
        idl_name=f'sequence<{element}, {bound}>' if bound else f'sequence<{element}>',
        default=lambda: array.array(code), convert=convert,
        from_wire=lambda value: from_buffer(memoryview(value).cast('B')) if len(value)
        else array.array(code),
        to_wire=lambda value: np.asarray(value, dtype))


# A `bool` or `byte` is packed one by one in Python and all at once by rosbags.
_LIST_FROM_WIRE = {
    'bool': lambda values: values.tolist(),
    'byte': lambda values: [bytes((value,)) for value in values.view(np.uint8)],
}
_LIST_TO_WIRE = {
    'bool': lambda values: np.array(values, np.bool_),
    'byte': lambda values: np.frombuffer(b''.join(values), np.int8),
}


def _list(element: FieldType, name: str | None, count: int, fixed: bool) -> FieldType:
    limit = f'{count}' if fixed else f'at most {count}'

    def convert(value: object) -> object:
        _expect(isinstance(value, Iterable) and not isinstance(value, str | bytes), value,
                f'a sequence of {element.idl_name}')
        values = value if isinstance(value, list) else list(value)
        size_fits = len(values) == count if fixed else not count or len(values) <= count
        _expect(size_fits, value, f'{limit} values of {element.idl_name}')
        for item in values:
            element.convert(item)
        return values

    bound = f', {count}' if count else ''
    return FieldType(
        idl_name=(f'{element.idl_name}[{count}]' if fixed
                  else f'sequence<{element.idl_name}{bound}>'),
        default=lambda: [element.default() for _ in range(count if fixed else 0)],
        convert=convert, from_wire=_LIST_FROM_WIRE.get(name), to_wire=_LIST_TO_WIRE.get(name))
