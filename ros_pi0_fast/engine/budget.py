"""Which variant to run so that an inference takes no longer than a budget: pure decisions.

Variants are on a ladder, the least lossy first. Each is known by the latency that 90 % of its
inferences stay below: of the one that serves, by what it serves; of others, by measurements that
are asked for one at a time, and no more than needed. The first that fits runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ros_pi0_fast.engine.variant import LOSSLESS, Variant

QUANTILE = 0.9
MIN_SERVED = 10
"""Inferences that must have been served before they count."""
KEPT_SERVED = 40
"""The last ones, that count."""
MARGIN = 0.9
"""A variant that is not running fits if it takes this much of the budget: it is not worth
changing to one that will soon be too slow."""
RETRY_S = 60.0
"""How long a measurement of a variant that did not fit counts; twice as long after each one."""
MAX_DOUBLINGS = 6


def ladder(asked: Variant, drafters: Sequence[str]) -> tuple[Variant, ...]:
    """Return what may run instead of a variant, the least lossy first, beginning with itself.

    First what changes no token: all lossless switches, then speculation, which only guesses where
    that pays. Then int8 weights, half of the image tokens, int4 weights, a quarter of the image
    tokens, and all together with an int8 cache. None is less lossy than what is asked for.

    Args:
        asked: The variant that the user asked for.
        drafters: What can guess with this checkpoint, the best last.
    """
    lossless = replace(asked, **dict.fromkeys(LOSSLESS, True))
    rungs = [asked, lossless]
    base = lossless
    if drafters:
        drafter = asked.drafter if asked.drafter in drafters else drafters[-1]
        base = replace(lossless, speculative=True, drafter=drafter)
        rungs.append(base)
    rungs += [_coarser(base, bits='int8'), _pruned(base, 0.5), _coarser(base, bits='int4'),
              _pruned(base, 0.25),
              replace(_pruned(_coarser(base, bits='int4'), 0.25), quantized_cache='int8')]
    return tuple(dict.fromkeys(rungs))


def _coarser(variant: Variant, bits: str) -> Variant:
    order = ('none', 'int8', 'int4')
    return replace(variant, quantized_weights=max(variant.quantized_weights, bits,
                                                  key=order.index))


def _pruned(variant: Variant, ratio: float) -> Variant:
    if variant.pruning and variant.adaptive:  # It keeps between a quarter and a half already.
        return variant if ratio > 0.25 else replace(variant, adaptive=False, keep_ratio=ratio)
    kept = min(variant.keep_ratio, ratio) if variant.pruning else ratio
    return replace(variant, pruning=True, keep_ratio=kept, adaptive=False)


@dataclass(frozen=True, kw_only=True)
class BudgetReport:
    """What is known and decided; lists have the ladder's order."""

    budget_ms: float = 0.0
    """0: there is no budget, and nothing below."""
    decision: str = ''
    variants: tuple[str, ...] = ()
    latencies_ms: tuple[float, ...] = ()
    """NaN where not measured."""
    left_out: tuple[str, ...] = ()
    """Why it cannot run; empty where it can."""


@dataclass(kw_only=True)
class _Rung:
    variant: Variant
    latency_ms: float = math.nan
    measured_s: float = -math.inf
    misses: int = 0
    """How often in a row it did not fit."""
    left_out: str = ''
    served: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_SERVED))

    def known(self, now_s: float) -> bool:
        """Tell whether what was measured still counts."""
        wait_s = RETRY_S * 2 ** min(self.misses, MAX_DOUBLINGS)
        return not math.isnan(self.latency_ms) and now_s - self.measured_s < wait_s


class LatencyBudget:
    """Decides what runs. Times are seconds of one clock, latencies milliseconds.

    Args:
        rungs: The ladder, at least one; the first runs at the beginning.
        budget_ms: More than 0.
    """

    def __init__(self, rungs: Sequence[Variant], budget_ms: float):
        self.budget_ms = budget_ms
        self._rungs = [_Rung(variant=variant) for variant in rungs]
        self._current = self._rungs[0]

    def leave_out(self, variant: Variant, reason: str) -> None:
        """Never run a variant: it cannot."""
        self._find(variant).left_out = reason

    def measured(self, variant: Variant, latencies_ms: Sequence[float], now_s: float) -> None:
        """Take note of a measurement of a variant that does not serve."""
        rung = self._find(variant)
        self._note(rung, latencies_ms, now_s)
        rung.misses = 0 if self._fits(rung) else rung.misses + 1

    def served(self, variant: Variant, latency_ms: float, now_s: float) -> None:
        """Take note of an inference that was served."""
        if variant == self._current.variant:
            self._current.served.append(latency_ms)
            if len(self._current.served) >= MIN_SERVED:
                self._note(self._current, self._current.served, now_s)

    def next_to_measure(self, now_s: float) -> Variant | None:
        """Return the variant whose latency is needed for a decision; None: none is.

        It is the least lossy one, before the first that is known to fit, of which nothing is
        known, or nothing new.
        """
        if math.isnan(self._current.latency_ms) and not self._current.left_out:
            return None  # It will be known by what it serves.
        for rung in self._runnable:
            if rung is self._current:
                if self._fits(rung):
                    return None
            elif not rung.known(now_s):
                return rung.variant
            elif self._fits(rung):
                return None
        return None

    def decide(self) -> Variant:
        """Return the variant to run from now on."""
        best = next(filter(self._fits, self._runnable), None)
        if best is None and not self._unmeasured and self._runnable:
            best = min(self._runnable, key=lambda rung: rung.latency_ms * (
                MARGIN if rung is self._current else 1))
        if best is not None and best is not self._current:
            if not self._fits(self._current):
                self._current.misses += 1
            best.served.clear()
            self._current = best
        return self._current.variant

    @property
    def report(self) -> BudgetReport:
        """What is known and decided."""
        return BudgetReport(
            budget_ms=self.budget_ms, decision=self._decision,
            variants=tuple(rung.variant.name for rung in self._rungs),
            latencies_ms=tuple(rung.latency_ms for rung in self._rungs),
            left_out=tuple(rung.left_out for rung in self._rungs))

    @property
    def _decision(self) -> str:
        current, budget = self._current, f'{self.budget_ms:g} ms'
        name = current.variant.name
        if math.isnan(current.latency_ms):
            return f'{name}: not measured yet'
        took = f'{name}: {current.latency_ms:.1f} ms'
        if self._fits(current):
            return f'{took}, the least lossy that fits {budget}'
        if self._unmeasured:
            return f'{took} do not fit {budget}; measuring {self._unmeasured[0].variant.name}'
        return f'{took}, the fastest, as nothing fits {budget}'

    @property
    def _runnable(self) -> list[_Rung]:
        return [rung for rung in self._rungs if not rung.left_out]

    @property
    def _unmeasured(self) -> list[_Rung]:
        return [rung for rung in self._runnable if math.isnan(rung.latency_ms)]

    def _fits(self, rung: _Rung) -> bool:
        share = 1 if rung is self._current else MARGIN
        return rung.latency_ms <= share * self.budget_ms  # False for NaN.

    def _find(self, variant: Variant) -> _Rung:
        return next(rung for rung in self._rungs if rung.variant == variant)

    @staticmethod
    def _note(rung: _Rung, latencies_ms: Sequence[float], now_s: float) -> None:
        rung.latency_ms = float(np.quantile(latencies_ms, QUANTILE))
        rung.measured_s = now_s
