"""From the rows of chunks.csv to figures of each variant, one observation after another.

Of each chunk a few numbers are kept, for percentiles; all else are sums.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros_pi0_fast.evaluation.bag_rows import RECORDED, STAGES, Row
from ros_pi0_fast.evaluation.bag_variants import REFERENCE_NAME
from ros_pi0_fast.evaluation.benchmark import token_agreement

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What chunks are measured by."""

    horizon: int
    period_s: float
    """Between two rows."""
    ranges: np.ndarray
    """float [action_dim]: how far each action goes in the data that the policy was trained on."""
    deadline_ms: float


class ActionError:
    """Absolute differences between chunks: means by joint and by step, and the largest."""

    def __init__(self, scales: Scales):
        self._scales = scales
        shape = (scales.horizon, len(scales.ranges))
        self._sum, self._count = np.zeros(shape), np.zeros(shape)
        self._largest = np.zeros(shape[1])
        self.chunks = 0

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Add a pair of chunks [horizon, action_dim]; NaN is left out."""
        error = np.abs(found.astype(np.float64) - expected)
        known = np.isfinite(error)
        if not known.any():
            return
        self.chunks += 1
        self._sum += np.where(known, error, 0)
        self._count += known
        self._largest = np.maximum(self._largest, np.where(known, error, 0).max(0))

    def summary(self) -> dict[str, Any] | None:
        """Return the figures; None where there were no chunks.

        `relative` is the mean over joints of the mean error over the joint's range.
        """
        if not self.chunks:
            return None
        count = np.maximum(self._count, 1)
        by_joint = self._sum.sum(0) / np.maximum(self._count.sum(0), 1)
        return {'chunks': self.chunks, 'relative': float(np.mean(by_joint / self._scales.ranges)),
                'by_joint': by_joint.tolist(), 'largest': self._largest.tolist(),
                'by_step': np.where(self._count > 0, self._sum / count, np.nan).tolist(),
                'by_step_relative': (self._sum / count / self._scales.ranges).mean(1).tolist()}


class Seam:
    """Jumps between consecutive chunks: what the newer one says is due at its own first row,
    and what the older one said of that time."""

    def __init__(self, scales: Scales):
        self._scales = scales
        self._before: Row | None = None
        self._jumps = [array('d') for _ in scales.ranges]

    def add(self, row: Row) -> None:
        """Add the next row of the variant."""
        before, self._before = self._before, row if row.valid else None
        if before is None or not row.valid or before.instruction != row.instruction:
            return
        steps = (row.stamp_ns - before.stamp_ns) / 1e9 / self._scales.period_s
        if not 0 <= steps <= self._scales.horizon - 1:
            return
        shape = (self._scales.horizon, -1)
        old, new = before.actions.reshape(shape), row.actions.reshape(shape)
        low = min(int(steps), self._scales.horizon - 2) if self._scales.horizon > 1 else 0
        high = min(low + 1, self._scales.horizon - 1)
        planned = old[low] + (steps - low) * (old[high] - old[low])
        for jumps, jump in zip(self._jumps, np.abs(new[0] - planned), strict=True):
            jumps.append(float(jump))

    def summary(self) -> dict[str, Any] | None:
        """Return the figures; None where no chunk followed another in time."""
        if not self._jumps[0]:
            return None
        jumps = np.array([np.asarray(each) for each in self._jumps])
        by_joint = jumps.mean(1)
        return {'pairs': jumps.shape[1], 'by_joint': by_joint.tolist(),
                'p95': np.percentile(jumps, 95, axis=1).tolist(),
                'largest': jumps.max(1).tolist(),
                'relative': float(np.mean(by_joint / self._scales.ranges))}


class VariantFigures:
    """Figures of one variant; grows with each of its rows."""

    def __init__(self, scales: Scales):
        self._scales = scales
        self._times = {stage: array('d') for stage in STAGES}
        self._ratios, self._agreements = array('d'), array('d')
        self._sums: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._reference, self._recorded = ActionError(scales), ActionError(scales)
        self._seam = Seam(scales)

    def add(self, row: Row, reference: Row | None, recorded: Row | None) -> None:
        """Add a row, and those of the reference and of the recording for the same observation."""
        counts = self._sums
        counts['chunks'] += 1
        counts['valid'] += row.valid
        if not row.valid:
            self._reasons[row.reason.partition(':')[0]] += 1
        self._add_times(row, reference)
        for name in ('generated_tokens', 'target_passes', 'prefix_tokens', 'drafted_tokens',
                     'accepted_tokens'):
            counts[name] += getattr(row, name)
        counts['drafted_passes'] += row.target_passes if row.draft_length else 0
        self._kept.update(row.kept)
        self._seam.add(row)
        # Chunks that came over the wire have no tokens with them.
        if reference is not None and bool(len(row.tokens)) == bool(row.generated_tokens):
            self._agreements.append(_agreement(row, reference))
            counts['identical'] += np.array_equal(row.tokens, reference.tokens)
        shape = (self._scales.horizon, -1)
        for other, error in ((reference, self._reference), (recorded, self._recorded)):
            if row.valid and other is not None and other.valid:
                error.add(row.actions.reshape(shape), other.actions.reshape(shape))

    def _add_times(self, row: Row, reference: Row | None) -> None:
        if row.compiled:
            self._sums['compiled'] += 1
            return
        for stage, values in self._times.items():
            values.append(getattr(row, stage))
        self._sums['deadline_misses'] += row.total_ms > self._scales.deadline_ms
        if reference is not None and not reference.compiled:
            self._ratios.append(reference.total_ms / max(row.total_ms, 1e-9))

    def summary(self) -> dict[str, Any]:
        """Return the figures: numbers, lists of numbers, None where there is nothing to say."""
        counts, chunks = self._sums, self._sums['chunks']
        timed = bool(self._times['total_ms'])
        passes, drafted = counts['drafted_passes'], counts['drafted_tokens']
        return {
            'chunks': chunks, 'valid': counts['valid'],
            'malformed': self._reasons['malformed'], 'reasons': dict(self._reasons),
            'latency': {stage: _percentiles(values) for stage, values in self._times.items()
                        } if timed else None,
            'timed': len(self._times['total_ms']), 'compiled': counts['compiled'],
            'speedup': float(np.median(self._ratios)) if self._ratios else None,
            'deadline_misses': counts['deadline_misses'],
            'tokens': counts['generated_tokens'] / chunks,
            'passes': counts['target_passes'] / chunks,
            'prefix_tokens': counts['prefix_tokens'] / chunks,
            'kept': {key: count / chunks for key, count in self._kept.items()},
            'acceptance_length': 1 + counts['accepted_tokens'] / passes if passes else None,
            'acceptance': counts['accepted_tokens'] / drafted if drafted else None,
            'token_agreement': float(np.mean(self._agreements)) if self._agreements else None,
            'identical': counts['identical'] if self._agreements else None,
            'error_reference': self._reference.summary(),
            'error_recorded': self._recorded.summary(), 'seam': self._seam.summary()}


def _agreement(row: Row, reference: Row) -> float:
    if not len(row.tokens) and not len(reference.tokens):
        return 1.0
    return token_agreement(row.tokens, reference.tokens)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f'p{percent}': float(value) for percent, value in zip(PERCENTILES, found, strict=True)
            } | {'mean': float(np.mean(values))}


def summarize(groups: Iterable[dict[str, Row]], scales: Scales) -> dict[str, dict[str, Any]]:
    """Return the figures of each variant, in the order in which they first come.

    Args:
        groups: Rows of each observation by variant.
        scales: What they are measured by.
    """
    figures: dict[str, VariantFigures] = {}
    for group in groups:
        reference, recorded = group.get(REFERENCE_NAME), group.get(RECORDED)
        for name, row in group.items():
            if name != RECORDED:
                figures.setdefault(name, VariantFigures(scales)).add(row, reference, recorded)
    return {name: found.summary() for name, found in figures.items()}
