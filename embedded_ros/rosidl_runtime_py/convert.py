"""Show messages: as YAML, as comma-separated values, as dictionaries."""

import array
import re
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import yaml

FIXED = re.compile(r'(.+)\[(\d+)\]')
SEQUENCE = re.compile(r'sequence<(.+?)(?:, (\d+))?>')


class _Dumper(yaml.SafeDumper):
    """YAML with maps in the order of a message's fields."""


_Dumper.add_representer(OrderedDict, lambda dumper, value: dumper.represent_dict(value.items()))


def message_to_yaml(msg: Any, *, truncate_length: int | None = None, no_arr: bool = False,
                    no_str: bool = False, flow_style: bool = False) -> str:
    """Return a message as YAML.

    Sequences and strings are cut to `truncate_length` elements; `no_arr` and `no_str` show their
    type and length instead.
    """
    shown = message_to_ordereddict(msg, truncate_length=truncate_length, no_arr=no_arr,
                                   no_str=no_str)
    return yaml.dump(shown, Dumper=_Dumper, allow_unicode=True, width=sys.maxsize,
                     sort_keys=False, default_flow_style=flow_style)


def message_to_csv(msg: Any, *, truncate_length: int | None = None, no_arr: bool = False,
                   no_str: bool = False) -> str:
    """Return the values of a message in one line; see message_to_yaml."""
    shown = _convert(msg, None, truncate_length, no_arr, no_str)
    return ','.join(_flat(shown))


def message_to_ordereddict(msg: Any, *, truncate_length: int | None = None, no_arr: bool = False,
                           no_str: bool = False) -> OrderedDict:
    """Return a message as nested dictionaries; see message_to_yaml."""
    return OrderedDict(
        (name, _convert(getattr(msg, name), kind, truncate_length, no_arr, no_str))
        for name, kind in msg.get_fields_and_field_types().items())


def _flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _flat(item)]
    if isinstance(value, list):
        return [text for item in value for text in _flat(item)]
    return [str(value)]


def _convert(value: Any, kind: str | None, length: int | None, no_arr: bool, no_str: bool) -> Any:
    if isinstance(value, bytes):
        value = value.decode('latin-1')
        return _cut(value, length)
    if isinstance(value, str):
        return f'<string length: <{len(value)}>>' if no_str else _cut(value, length)
    if isinstance(value, list | tuple | array.array | np.ndarray):
        if no_arr and kind is not None:
            return _summary(kind, len(value))
        # Cut before converting: an image has a million elements.
        short = value if length is None or len(value) <= length else value[:length]
        items = short.tolist() if hasattr(short, 'tolist') else [
            _convert(item, None, length, no_arr, no_str) for item in short]
        return items + ['...'] * (len(short) < len(value))
    if hasattr(value, 'get_fields_and_field_types'):
        return message_to_ordereddict(value, truncate_length=length, no_arr=no_arr, no_str=no_str)
    return value


def _cut(text: str, length: int | None) -> str:
    return text if length is None or len(text) <= length else f'{text[:length]}...'


def _summary(kind: str, length: int) -> str:
    fixed, sequence = FIXED.fullmatch(kind), SEQUENCE.fullmatch(kind)
    if fixed:
        return f'<array type: {fixed[1]}[{fixed[2]}]>'
    bound = f'[{sequence[2]}]' if sequence[2] else ''
    return f'<sequence type: {sequence[1]}{bound}, length: {length}>'
