"""`field=value` changes to a frozen dataclass, as command lines take them."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from ros_pi0_fast.engine.variant import Variant, field_of

T = TypeVar('T')
WORDS = {'true': True, 'false': False, 'none': None}
"""As ROS 2 parameters write them."""


def override(config: T, assignments: Sequence[str]) -> T:
    """Return a config with fields changed by assignments such as 'loop.batch_size=256'.

    Values are Python literals, or true, false and none; anything else is taken as text.

    Raises:
        ValueError: if an assignment names no field or its value has another type; the message
            says which fields there are.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition('=')
        if not separator:
            raise ValueError(f'{assignment!r}: expected field=value')
        config = _replace(config, path.strip().split('.'), parse_value(text.strip()), assignment)
    return config


def variant_with(assignments: Sequence[str], start: Variant | None = None) -> Variant:
    """Return a variant with switches set, by their fields' names or the node's parameters.

    Args:
        assignments: Such as 'early_stop=false' or 'quantization.weights=int4'.
        start: What to change; the default variant if None.

    Raises:
        ValueError: see `override`; VariantError where there is no such switch.
    """
    named = []
    for assignment in assignments:
        name, separator, text = assignment.partition('=')
        field = field_of(name.strip()) if separator else name
        named.append(f'{field}{separator}{text}')
    return override(start or Variant(), named)


def parse_value(text: str) -> Any:
    """Return the value that a command line gives: a literal, a word of ROS 2's, or text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _replace(config: Any, path: Sequence[str], value: Any, assignment: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    head, *rest = path
    if head not in names:
        raise ValueError(f'{assignment!r}: no field {head!r}, expected one of {", ".join(names)}')
    old = getattr(config, head)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f'{assignment!r}: {head} has no fields')
        return dataclasses.replace(config, **{head: _replace(old, rest, value, assignment)})
    if isinstance(old, str) and value is None:
        value = 'none'
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if old is not None and value is not None and type(value) is not type(old):
        raise ValueError(f'{assignment!r}: {head} is {type(old).__name__}, '
                         f'found {type(value).__name__}')
    return dataclasses.replace(config, **{head: value})
