"""Normalization statistics (norm_stats.json) and the arithmetic on them, as openpi does it.

Formulas: openpi ``transforms.Normalize`` / ``Unnormalize``. The statistics are float64, so that
normalized values are float64 whatever comes in; nothing is clipped.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.codec.strict_yaml import is_number

EPSILON = 1e-6
"""Added to every range and standard deviation, as in openpi."""

_REQUIRED = ('state', 'actions')


class NormStatsError(ValueError):
    """A norm_stats.json cannot be used; the message names file, key, found and expected."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stats:
    """Statistics of one vector; every array is float64 [n], n at least the vector's length."""

    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray | None = None
    """1st percentile; None where the file has null."""
    q99: np.ndarray | None = None

    @property
    def dim(self) -> int:
        """Length of the statistics."""
        return len(self.mean)

    def normalize(self, x: np.ndarray, mode: str) -> np.ndarray:
        """Map robot units [..., d] to about [-1, 1] ('quantile') or unit variance ('z-score').

        Statistics longer than d are cut to d.
        """
        d = x.shape[-1]
        if mode == 'z-score':
            return (x - self.mean[:d]) / (self.std[:d] + EPSILON)
        q01, q99 = self._quantiles(mode)
        return (x - q01[:d]) / (q99[:d] - q01[:d] + EPSILON) * 2.0 - 1.0

    def unnormalize(self, x: np.ndarray, mode: str) -> np.ndarray:
        """Undo `normalize`; dimensions past the statistics pass through."""
        d = min(x.shape[-1], self.dim)
        if mode == 'z-score':
            known = x[..., :d] * (self.std[:d] + EPSILON) + self.mean[:d]
        else:
            q01, q99 = self._quantiles(mode)
            known = (x[..., :d] + 1.0) / 2.0 * (q99[:d] - q01[:d] + EPSILON) + q01[:d]
        return known if d == x.shape[-1] else np.concatenate([known, x[..., d:]], axis=-1)

    def _quantiles(self, mode: str) -> tuple[np.ndarray, np.ndarray]:
        if mode != 'quantile':
            raise ValueError(f"mode: found {mode!r}, expected 'quantile' or 'z-score'")
        if self.q01 is None or self.q99 is None:
            raise NormStatsError('quantile normalization needs q01 and q99, found null')
        return self.q01, self.q99


@dataclass(frozen=True, kw_only=True, eq=False)
class NormStats:
    """Statistics of one robot's state and actions."""

    state: Stats
    actions: Stats
    source: Path | None = None
    """File that they were read from."""

    @classmethod
    def load(cls, path: str | Path) -> NormStats:
        """Read a norm_stats.json, or the one in a folder.

        Raises:
            NormStatsError: not readable, not JSON, a key missing, a vector of a wrong type,
                length, order (q01 above q99) or value (not finite).
        """
        path = Path(path)
        path = path / 'norm_stats.json' if path.is_dir() else path
        try:
            data = json.loads(path.read_text('utf-8'))
        except OSError as error:
            raise NormStatsError(f'{path}: cannot be read: {error.strerror}') from error
        except ValueError as error:
            raise NormStatsError(f'{path}: is not JSON: {error}') from error
        stats = data.get('norm_stats') if isinstance(data, dict) else None
        if not isinstance(stats, dict):
            raise NormStatsError(f"{path}: found no mapping 'norm_stats', expected one with "
                                 f'{" and ".join(_REQUIRED)}')
        return cls(**{key: _parse(path, key, stats.get(key)) for key in _REQUIRED}, source=path)

    def save(self, path: str | Path) -> None:
        """Write openpi's norm_stats.json to a file, or into a folder."""
        path = Path(path)
        path = path if path.suffix == '.json' else path / 'norm_stats.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {key: {name: None if (value := getattr(getattr(self, key), name)) is None
                         else value.tolist() for name in ('mean', 'std', 'q01', 'q99')}
                   for key in _REQUIRED}
        path.write_text(json.dumps({'norm_stats': content}, indent=2), 'utf-8')

    @classmethod
    def compute(cls, *, state: np.ndarray, actions: np.ndarray) -> NormStats:
        """Compute statistics from data [..., d] of robot states and of the model's actions.

        Actions are those that the model predicts: after the delta transform.
        """
        return cls(state=_compute(state), actions=_compute(actions))


def _compute(data: np.ndarray) -> Stats:
    rows = np.asarray(data, np.float64).reshape(-1, np.shape(data)[-1])
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
    return Stats(mean=rows.mean(axis=0), std=rows.std(axis=0), q01=q01, q99=q99)


def _parse(path: Path, key: str, entry: Any) -> Stats:
    if not isinstance(entry, Mapping):
        raise NormStatsError(f'{path}: norm_stats.{key}: found {type(entry).__name__}, '
                             'expected a mapping with mean, std, q01 and q99')
    vectors = {name: _vector(path, f'norm_stats.{key}.{name}', entry.get(name),
                             optional=name in ('q01', 'q99'))
               for name in ('mean', 'std', 'q01', 'q99')}
    length = len(vectors['mean'])
    for name, vector in vectors.items():
        if vector is not None and len(vector) != length:
            raise NormStatsError(f'{path}: norm_stats.{key}.{name}: found {len(vector)} numbers, '
                                 f'expected {length}, as in mean')
    q01, q99 = vectors['q01'], vectors['q99']
    if q01 is not None and q99 is not None and (wrong := np.flatnonzero(q01 > q99)).size:
        i = int(wrong[0])
        raise NormStatsError(f'{path}: norm_stats.{key}.q01[{i}]: found {q01[i]}, '
                             f'expected no more than q99[{i}], {q99[i]}')
    if (wrong := np.flatnonzero(vectors['std'] < 0)).size:
        i = int(wrong[0])
        raise NormStatsError(f'{path}: norm_stats.{key}.std[{i}]: found {vectors["std"][i]}, '
                             'expected 0 or more')
    return Stats(**vectors)


def _vector(path: Path, key: str, value: Any, *, optional: bool) -> np.ndarray | None:
    if value is None and optional:
        return None
    if not isinstance(value, list) or not value or not all(map(is_number, value)):
        raise NormStatsError(f'{path}: {key}: found {reprlib.repr(value)}, '
                             'expected a list of finite numbers')
    return np.asarray(value, np.float64)
