"""chunks.csv: one row for each chunk of each variant. All figures of a report come from it.

Beside the variants there are rows of RECORDED: what the bag says was done instead. The rows of an
observation are written together, so that a run that was interrupted goes on after the last whole
group of rows.
"""

from __future__ import annotations

import csv
import io
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.types import ActionChunk, Observation

RECORDED = 'recorded'
"""Stands for a variant."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one variant made of one observation."""

    index: int
    """Counts the observations, from 0."""
    time_ns: int
    """When the observation was asked for, by the bag's clock."""
    stamp_ns: int
    instruction: str
    variant: str
    """Name in the report."""
    valid: bool
    reason: str = ''
    compiled: int = 0
    """Executables that were compiled during the inference: its times do not count."""
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    postprocess_ms: float = 0.0
    total_ms: float = 0.0
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    generated_tokens: int = 0
    target_passes: int = 0
    draft_length: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    """Camera -> image tokens that the decoder saw."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Model ids."""
    actions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """float32, row-major [horizon, action_dim]; empty where not valid. NaN: not known."""

    @classmethod
    def of(cls, chunk: ActionChunk, observation: Observation, *, index: int, time_ns: int,
           variant: str, compiled: int = 0) -> Row:
        """Return the row of a chunk."""
        stats = chunk.stats
        same = {name: getattr(stats, name) for name in (*STAGES, *COUNTS)}
        return cls(index=index, time_ns=time_ns, stamp_ns=observation.stamp_ns,
                   instruction=observation.instruction, variant=variant, valid=chunk.valid,
                   reason=chunk.reason, compiled=compiled, kept=stats.kept_tokens,
                   tokens=np.asarray(chunk.token_ids), actions=chunk.actions.reshape(-1), **same)


STAGES = ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'postprocess_ms', 'total_ms')
COUNTS = ('prompt_tokens', 'prefix_tokens', 'generated_tokens', 'target_passes', 'draft_length',
          'drafted_tokens', 'accepted_tokens')
COLUMNS = tuple(each.name for each in fields(Row))
_TEXT = ('instruction', 'variant', 'reason')


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return ' '.join(f'{name}={count}' for name, count in value.items())
    if isinstance(value, np.ndarray):
        return ' '.join(map(str, value.tolist() if value.dtype.kind == 'i' else
                            (f'{number:.9g}' for number in value)))
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    return f'{value:.4f}' if isinstance(value, float) else str(value)


def _read(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if name == 'kept':
        return {key: int(count) for key, _, count in
                (word.rpartition('=') for word in text.split())}
    if name == 'tokens':
        return np.array(text.split(), np.int64)
    if name == 'actions':
        return np.array(text.split(), np.float32)
    if name in STAGES:
        return float(text)
    return bool(int(text)) if name == 'valid' else int(text)


class Journal:
    """Appends groups of rows to a file.

    Args:
        path: The file. If it is there, what is whole of it is kept.
        names: Of the rows of a group, in any order.

    Raises:
        ValueError: the file has other columns or other rows.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self._path, self._names = path, frozenset(names)
        self.last: Row | None = None
        """A row of the last observation whose rows are there."""
        if path.exists():
            self._cut(self._whole())
        self._file = path.open('a', encoding='utf-8', newline='')
        if not self._file.tell():
            self._append([COLUMNS])

    def _whole(self) -> int:
        """Count the rows of whole groups, and note the last one."""
        rows = 0
        for group in read_groups(self._path, damaged=True):
            if not self._names.issuperset(group):
                raise ValueError(f'{self._path}: found rows of {", ".join(group)}, expected '
                                 f'{", ".join(sorted(self._names))}: choose another folder, or '
                                 '--restart')
            if len(group) < len(self._names):
                break
            rows += len(group)
            self.last = next(iter(group.values()))
        return rows

    def _cut(self, rows: int) -> None:
        """Leave only the header and so many rows."""
        kept = self._path.with_suffix('.part')
        with self._path.open(encoding='utf-8', newline='') as old, \
                kept.open('w', encoding='utf-8', newline='') as new:
            new.writelines(itertools.islice(old, 1 + rows))
        kept.replace(self._path)

    def write(self, rows: Sequence[Row]) -> None:
        """Append the rows of one observation, all at once."""
        self._append([[_write(getattr(row, name)) for name in COLUMNS] for row in rows])

    def _append(self, lines: Sequence[Sequence[str]]) -> None:
        text = io.StringIO(newline='')
        csv.writer(text, lineterminator='\n').writerows(
            [[cell.replace('\n', ' ').replace('\r', ' ') for cell in line] for line in lines])
        self._file.write(text.getvalue())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path, *, damaged: bool = False) -> Iterator[Row]:
    """Yield the rows of a file.

    Args:
        path: The file.
        damaged: End at a row that is not whole; else that is an error.

    Raises:
        ValueError: the file has other columns, or a row is not whole.
    """
    with path.open(encoding='utf-8', newline='') as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise ValueError(f'{path}: found columns {",".join(header)}, expected '
                             f'{",".join(COLUMNS)}')
        for line in reader:
            try:
                yield Row(**{name: _read(name, text)
                             for name, text in zip(COLUMNS, line, strict=True)})
            except ValueError as error:
                if damaged:
                    return
                raise ValueError(f'{path}: row {reader.line_num}: {error}') from error


def read_groups(path: Path, *, damaged: bool = False) -> Iterator[dict[str, Row]]:
    """Yield the rows of each observation by their variants' names; see read_rows."""
    rows = read_rows(path, damaged=damaged)
    for _, group in itertools.groupby(rows, operator.attrgetter('index')):
        yield {row.variant: row for row in group}
