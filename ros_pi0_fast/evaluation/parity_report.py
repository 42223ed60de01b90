"""Rows of a parity report: a quantity, its largest error, and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAME_WIDTH = 60


class FolderError(Exception):
    """A folder that cannot be compared with; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity."""

    name: str
    error: float
    """Largest absolute difference, or how many entries differ."""
    tolerance: float
    """Most that is allowed; 0 for what must be equal."""
    note: str = ''
    skipped: bool = False
    """Not compared, on purpose; the note says why."""

    @property
    def passed(self) -> bool:
        """Tell whether the error is allowed; NaN is not."""
        return self.skipped or self.error <= self.tolerance

    @classmethod
    def skip(cls, name: str, note: str) -> Row:
        """Return a row that says why something is not compared."""
        return cls(name=name, error=math.nan, tolerance=math.nan, note=note, skipped=True)

    def __str__(self) -> str:
        verdict = 'skip' if self.skipped else 'pass' if self.passed else 'MISS'
        error, allowed = f'{self.error:.1e}', f'{self.tolerance:.1e}'
        if self.tolerance == 0:
            error, allowed = f'{self.error:.0f}', 'exact'
        elif self.skipped:
            error = allowed = '-'
        return (f'{self.name:<{NAME_WIDTH}} {error:>9} {allowed:>9}  {verdict:<6}'
                f'  {self.note}').rstrip()


HEADER = f'{"quantity":<{NAME_WIDTH}} {"error":>9} {"allowed":>9}  result'


def within(name: str, actual: Any, expected: np.ndarray, tolerance: float, *,
           where: np.ndarray | None = None, note: str = '') -> Row:
    """Compare numbers by their largest absolute difference.

    Args:
        name: Of the quantity.
        actual: Ours.
        expected: The reference's.
        tolerance: Most that is allowed.
        where: bool, over the first axes: only there do the values mean anything.
        note: Shown at the row's end.
    """
    if mismatch := _shapes_differ(name, actual, expected, tolerance):
        return mismatch
    difference = _difference(actual, expected)
    if where is not None:
        difference = difference[np.asarray(where)]
    return Row(name=name, error=float(difference.max(initial=0.0)), tolerance=tolerance, note=note)


def root_mean_square(actual: Any, expected: np.ndarray) -> float:
    """Return the root of the mean squared difference, infinite where shapes differ."""
    if np.shape(actual) != np.shape(expected):
        return math.inf
    return float(np.sqrt(np.mean(np.square(_difference(actual, expected)))))


def equal(name: str, actual: Any, expected: np.ndarray, *, note: str = '') -> Row:
    """Compare what must be equal; the error is how many entries differ."""
    if mismatch := _shapes_differ(name, actual, expected, 0.0):
        return mismatch
    return Row(name=name, error=float(np.sum(np.asarray(actual) != expected)), tolerance=0.0,
               note=note)


def _difference(actual: Any, expected: np.ndarray) -> np.ndarray:
    return np.abs(np.asarray(actual).astype(np.float64) - np.asarray(expected, np.float64))


def _shapes_differ(name: str, actual: Any, expected: np.ndarray, tolerance: float) -> Row | None:
    if np.shape(actual) == np.shape(expected):
        return None
    return Row(name=name, error=math.inf, tolerance=tolerance,
               note=f'shape {np.shape(actual)}, expected {np.shape(expected)}')


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FolderError: it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise FolderError(f'{path}: cannot be read: {error}') from error
    if not isinstance(content, dict):
        raise FolderError(f'{path}: found {type(content).__name__}, expected an object')
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file.

    Raises:
        FolderError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError) as error:
        raise FolderError(f'{path}: cannot be read: {error}') from error


def entry(content: dict[str, Any], name: str, path: Path) -> Any:
    """Return what a file has under a name.

    Raises:
        FolderError: it has nothing there.
    """
    if name not in content:
        raise FolderError(f'{path}: no {name}')
    return content[name]


def show(rows: Iterable[Row]) -> list[Row]:
    """Print rows as they come, and return those that do not pass."""
    missed = []
    for row in rows:
        print(row, flush=True)
        if not row.passed:
            missed.append(row)
    return missed
