"""Which variant to run at a latency budget: of those that fit, the one that loses the least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAME_LOSS = 1e-6
"""Relative errors that are closer than this are float order, not loss."""
PERCENTILE = 'p95'
"""Of the time of an inference that must fit."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One variant as a choice."""

    name: str
    ms: float
    """Its time, PERCENTILE."""
    loss: float
    """Mean action error against the reference, over the actions' ranges; where there is no
    reference, against what the bag says was done."""
    sound: bool
    """As many of its chunks are valid as of the reference's."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer at the top of the report."""

    variant: str | None
    """None where none fits."""
    why: str


def candidates(variants: Mapping[str, Mapping[str, Any]], reference: str) -> list[Candidate]:
    """Return the variants whose loss was measured, in their order."""
    base = variants.get(reference)
    share = base['valid'] / base['chunks'] if base else 0
    found = []
    for name, figures in variants.items():
        error = figures['error_reference' if base else 'error_recorded']
        if figures['latency'] is None or (error is None and figures['valid']):
            continue
        found.append(Candidate(
            name=name, ms=figures['latency']['total_ms'][PERCENTILE],
            loss=error['relative'] if error else float('inf'),
            sound=figures['valid'] / figures['chunks'] >= share and figures['valid'] > 0))
    return found


def decide(choices: list[Candidate], budget_ms: float) -> Decision:
    """Return the variant with the smallest loss among those that fit, the fastest of equals."""
    sound = [each for each in choices if each.sound]
    fitting = [each for each in sound if each.ms <= budget_ms]
    if not sound:
        return Decision(variant=None, why=(
            'no variant gave as many valid chunks as the reference' if choices else
            'there is neither a reference nor a recording to measure a loss against'))
    if not fitting:
        fastest = min(sound, key=lambda each: each.ms)
        return Decision(variant=None, why=(
            f'none fits into {budget_ms:g} ms; the fastest is {fastest.name}: {PERCENTILE} '
            f'{fastest.ms:.1f} ms'))
    least = min(each.loss for each in fitting)
    best = min((each for each in fitting if each.loss <= least + SAME_LOSS),
               key=lambda each: each.ms)
    return Decision(variant=best.name, why=(
        f'{PERCENTILE} {best.ms:.1f} ms, error {100 * best.loss:.2f} % of the range of the '
        f'actions: the smallest among the {len(fitting)} of {len(choices)} variants that fit'))
