"""YAML read strictly: safe types, no duplicate keys; every complaint names file and key."""

from __future__ import annotations

import reprlib
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

MAX_BYTES = 1 << 20
"""A profile is a page of text; anything longer is the wrong file."""

T = TypeVar('T')


class ProfileError(ValueError):
    """A robot profile cannot be used; the message names file, key, found and expected."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f'found key {key!r}, expected text', key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'found key {key!r} twice, expected once', key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str | Path) -> Section:
    """Read the mapping in a YAML file.

    Raises:
        ProfileError: not a regular file, too long, not UTF-8, not YAML, tagged or no mapping.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ProfileError(f'{path}: found {stat.filemode(mode)}, expected a regular file')
        with path.open('rb') as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(f'{path}: cannot be read: {error.strerror}') from error
    if len(raw) > MAX_BYTES:
        raise ProfileError(f'{path}: found over {MAX_BYTES} bytes, expected a robot profile')
    try:
        # _Loader is a SafeLoader: it builds plain values only and refuses python tags.
        data = yaml.load(raw.decode('utf-8'), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f'{path}: is not plain YAML: {error}') from error
    if not isinstance(data, dict):
        raise ProfileError(f'{path}: found {reprlib.repr(data)}, expected a mapping of keys')
    return Section(path, '', data)


class Section:
    """A mapping in a file whose values are taken one by one, each checked.

    Every getter raises ProfileError when the key is missing (unless `default` is given) or
    its value is of the wrong type.
    """

    REQUIRED: Any = object()
    """Stands for no default."""

    def __init__(self, file: Path, prefix: str, data: dict[str, Any]):
        self.file = file
        self._prefix = prefix
        self._data = data

    def error(self, key: str, found: object, expected: str) -> ProfileError:
        """Make the exception for a key; `found` is shown shortened."""
        return ProfileError(
            f'{self.file}: key {self._prefix + key!r}: found {reprlib.repr(found)}, '
            f'expected {expected}')

    def keys(self) -> Iterable[str]:
        """Return the keys in file order."""
        return self._data.keys()

    def refuse_unknown(self, known: Sequence[str]) -> None:
        """Raise on the first key that is not among known."""
        for key in self._data:
            if key not in known:
                raise ProfileError(f'{self.file}: unknown key {self._prefix + key!r}, '
                                   f'expected one of {", ".join(known)}')

    def has(self, key: str) -> bool:
        """Tell whether a key is there."""
        return key in self._data

    def _get(self, key: str, expected: str, default: Any = REQUIRED) -> Any:
        if key in self._data:
            return self._data[key]
        if default is self.REQUIRED:
            raise ProfileError(f'{self.file}: key {self._prefix + key!r}: found nothing, '
                               f'expected {expected}')
        return default

    def value(self, key: str, expected: str) -> Any:
        """Return a value as it is, for the caller to check."""
        return self._get(key, expected)

    def section(self, key: str) -> Section:
        """Return the mapping below a key."""
        value = self._get(key, 'a mapping')
        if not isinstance(value, dict):
            raise self.error(key, value, 'a mapping')
        return Section(self.file, f'{self._prefix}{key}.', value)

    def text(self, key: str, *, among: Sequence[str] = ()) -> str:
        """Return a non-empty text, one of `among` if given."""
        expected = f'one of {", ".join(among)}' if among else 'a non-empty text'
        value = self._get(key, expected)
        if not isinstance(value, str) or not value.strip() or (among and value not in among):
            raise self.error(key, value, expected)
        return value

    def integer(self, key: str, *, at_least: int, at_most: int, default: Any = REQUIRED) -> int:
        """Return an int in a range; `default` is returned as it is."""
        expected = f'an integer from {at_least} to {at_most}'
        if not self.has(key) and default is not self.REQUIRED:
            return default
        value = self._get(key, expected)
        if type(value) is not int or not at_least <= value <= at_most:
            raise self.error(key, value, expected)
        return value

    def positive(self, key: str) -> float:
        """Return a finite number above zero."""
        value = self._get(key, 'a number above 0')
        if not is_number(value) or value <= 0:
            raise self.error(key, value, 'a number above 0')
        return float(value)

    def items(self, key: str, what: str, check: Callable[[Any], bool], convert: Callable[[Any], T],
              *, length: int | None = None, default: Any = REQUIRED) -> tuple[T, ...]:
        """Return a list as a tuple; each item must pass `check`.

        Args:
            key: Key of the list.
            what: Plural noun for messages, such as 'names'.
            check: Tells whether an item is acceptable.
            convert: Applied to each item.
            length: Number of items required.
            default: Returned as a tuple where the key is missing.
        """
        expected = f'a list of {what}' if length is None else f'a list of {length} {what}'
        value = self._get(key, expected, default)
        if not isinstance(value, list | tuple):
            raise self.error(key, value, expected)
        if length is not None and len(value) != length:
            raise self.error(key, value, f'{expected}, not {len(value)}')
        for index, item in enumerate(value):
            if not check(item):
                raise self.error(f'{key}[{index}]', item, f'an item of {expected}')
        return tuple(convert(item) for item in value)

    def names(self, key: str, *, default: Any = REQUIRED) -> tuple[str, ...]:
        """Return a list of different, non-empty texts."""
        names = self.items(key, 'names', lambda x: isinstance(x, str) and bool(x.strip()), str,
                           default=default)
        if len(set(names)) != len(names):
            raise self.error(key, list(names), 'names that all differ')
        return names


def is_number(value: object) -> bool:
    """Tell whether a YAML value is an int or float that a finite float holds (no bool, no NaN)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300
