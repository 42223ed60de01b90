"""Whether a replay is worse than an earlier one of the same bag, by tolerances from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ros_pi0_fast.codec.strict_yaml import Section, is_number, read_yaml
from ros_pi0_fast.share import share_folder

DEFAULT = 'config/bag_tolerance.yaml'
HIGHER_IS_BETTER = ('valid_share', 'token_agreement', 'identical_share', 'speedup',
                    'acceptance_length', 'acceptance')
LOWER_IS_BETTER = (
    *(f'latency.{stage}.{which}' for which in ('p50', 'p95', 'p99', 'mean') for stage in (
        'preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'postprocess_ms', 'total_ms')),
    'error_reference.relative', 'error_recorded.relative', 'seam.relative', 'passes', 'tokens',
    'prefix_tokens', 'malformed', 'deadline_share', 'peak_mb')
METRICS = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
SAME_BAG = ('start_ns', 'end_ns', 'messages', 'rate_hz', 'robot')


class GateError(ValueError):
    """Two reports cannot be compared; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much worse a figure may be."""

    amount: float
    percent: bool

    @classmethod
    def parse(cls, section: Section, key: str) -> Limit:
        """Read one; raises ProfileError naming file and key."""
        expected = "a number of at least 0, or one with '%'"
        value = section.value(key, expected)
        text = str(value).strip()
        percent = text.endswith('%')
        try:
            amount = float(text.rstrip('% ')) if percent or is_number(value) else -1.0
        except ValueError:
            amount = -1.0
        if not 0 <= amount < float('inf'):
            raise section.error(key, value, expected)
        return cls(amount=amount, percent=percent)

    def of(self, baseline: float) -> float:
        """Return the limit in the figure's unit."""
        return abs(baseline) * self.amount / 100 if self.percent else self.amount

    def __str__(self) -> str:
        return f'{self.amount:g}%' if self.percent else f'{self.amount:g}'


Limits = Mapping[str, Limit]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Limits of all variants, and of single ones."""

    all: Limits
    variants: Mapping[str, Limits]

    @classmethod
    def load(cls, path: Path | None) -> Tolerance:
        """Read a file; None for the one of this package.

        Raises:
            ProfileError: naming the file, the key, the value found and the value expected.
        """
        root = read_yaml(path or share_folder() / DEFAULT)
        root.refuse_unknown((*METRICS, 'variants'))
        named = root.section('variants') if root.has('variants') else None
        variants = {}
        for name in named.keys() if named else ():
            section = named.section(name)
            section.refuse_unknown(METRICS)
            variants[name] = _limits(section)
        return cls(all=_limits(root), variants=variants)

    def of(self, variant: str) -> Limits:
        """Return the limits of a variant."""
        return {**self.all, **self.variants.get(variant, {})}


def _limits(section: Section) -> Limits:
    return {key: Limit.parse(section, key) for key in section.keys()  # noqa: SIM118
            if key != 'variants'}


def load_baseline(path: Path) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        GateError: it is none.
    """
    try:
        report = json.loads(path.read_text('utf-8'))
        if not isinstance(report['variants'], dict):
            raise TypeError('variants is no mapping')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GateError(f'--baseline {path}: {error!r}, expected a report.json of '
                        'evaluate_bag') from error
    return report


def regressions(report: Mapping[str, Any], baseline: Mapping[str, Any],
                tolerance: Tolerance) -> list[str]:
    """Return what became worse by more than is tolerated, a line each.

    Raises:
        GateError: the two are not of the same bag, robot and rate.
    """
    for key in SAME_BAG:
        found, expected = report['bag'].get(key), baseline['bag'].get(key)
        if found != expected:
            raise GateError(f'the baseline is of another replay: {key}: found {found}, expected '
                            f'{expected}')
    found = []
    for name, before in baseline['variants'].items():
        if name not in report['variants']:
            found.append(f'{name}: was measured, and now: '
                         f'{report["failed"].get(name, "not asked for")}')
            continue
        now = report['variants'][name]
        for metric, limit in tolerance.of(name).items():
            line = _compare(metric, figure(now, metric), figure(before, metric), limit)
            if line:
                found.append(f'{name}: {line}')
    return found


def _compare(metric: str, now: float | None, before: float | None, limit: Limit) -> str:
    if before is None:
        return ''
    if now is None:
        return f'{metric}: found none, baseline {before:.6g}'
    worse = before - now if metric in HIGHER_IS_BETTER else now - before
    if worse <= limit.of(before) + 1e-12:
        return ''
    return (f'{metric}: found {now:.6g}, baseline {before:.6g}: worse by {worse:.3g}, expected '
            f'at most {limit.of(before):.3g} ({limit})')


def figure(variant: Mapping[str, Any], metric: str) -> float | None:
    """Return a figure of a variant by its dotted name; None where it has none."""
    shares = {'valid_share': 'valid', 'identical_share': 'identical',
              'deadline_share': 'deadline_misses'}
    if metric in shares:
        value = variant[shares[metric]]
        count = variant['timed' if metric == 'deadline_share' else 'chunks']
        return None if value is None or not count else value / count
    value: Any = variant
    for part in metric.split('.'):
        value = None if value is None else value.get(part)
    return value
