"""report.json and the page, from chunks.csv and what is known of the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.evaluation.bag_choice import candidates, decide
from ros_pi0_fast.evaluation.bag_metrics import Scales, summarize
from ros_pi0_fast.evaluation.bag_rows import read_groups
from ros_pi0_fast.evaluation.bag_variants import REFERENCE_NAME

FORMAT = 1
CHUNKS, REPORT, PAGE, PREDICTIONS = 'chunks.csv', 'report.json', 'report.html', 'predictions'


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All of a report that is not in chunks.csv."""

    bag: Mapping[str, Any]
    """What was replayed, how, and what of it could not be used."""
    machine: Mapping[str, Any]
    compiled: Mapping[str, Mapping[str, float]]
    """Of each variant that runs: peak_mb and compile_s."""
    failed: Mapping[str, str]
    """Variants that cannot run, and why."""
    names: tuple[str, ...]
    """Of the actions, and so the units."""
    units: tuple[str, ...]
    budget_ms: float
    complete: bool
    """The whole bag was replayed."""
    reference_ran: bool = True
    """The reference is a choice, too; else its rows are from elsewhere, to compare with."""


def scales_of(codec: PolicyCodec, deadline_ms: float) -> Scales:
    """Return what chunks of a policy are measured by.

    Actions' ranges are what the norm statistics map to -1 and 1: the 1st to the 99th percentile
    of the training data, or a standard deviation to both sides.
    """
    profile = codec.profile
    ends = np.stack([-np.ones(profile.action_dim), np.ones(profile.action_dim)])
    low, high = codec.norm_stats.actions.unnormalize(ends, profile.normalization)
    ranges = np.maximum(np.abs(high - low), np.finfo(np.float32).tiny)
    return Scales(horizon=profile.horizon, period_s=1 / profile.control_rate_hz, ranges=ranges,
                  deadline_ms=deadline_ms)


def build_report(chunks: Path, facts: Facts, scales: Scales) -> dict[str, Any]:
    """Return the report: plain values that JSON can hold."""
    variants = summarize(read_groups(chunks, damaged=True), scales)
    for name, figures in variants.items():
        figures.update(facts.compiled.get(name, {}))
    choices = [each for each in candidates(variants, REFERENCE_NAME)
               if facts.reference_ran or each.name != REFERENCE_NAME]
    report = {
        'format': FORMAT, **asdict(facts), 'variants': variants,
        'deadline_ms': scales.deadline_ms, 'horizon': scales.horizon,
        'period_s': scales.period_s, 'ranges': scales.ranges.tolist(),
        'observations': max((each['chunks'] for each in variants.values()), default=0),
        'candidates': [asdict(each) for each in choices],
        'choice': asdict(decide(choices, facts.budget_ms))}
    return _plain(report)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and report.html into a folder."""
    from ros_pi0_fast.evaluation.bag_page import render_page

    (folder / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + '\n', 'utf-8')
    (folder / PAGE).write_text(render_page(report), 'utf-8')


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report as a short table for a terminal."""
    lines = [f'{"variant":<26}{"p50":>8}{"p95":>8}{"p99":>8} ms{"speedup":>9}{"late":>6}'
             f'{"tokens agree":>14}{"error":>9}{"seam":>8}{"MiB":>8}']
    for name, each in report['variants'].items():
        times = (each['latency'] or {}).get('total_ms', {})
        cells = [*(_cell(times.get(f'p{p}'), '.1f', 8) for p in (50, 95, 99)), '   ',
                 _cell(each['speedup'], '.2f', 8, 'x'), _cell(each['deadline_misses'], 'd', 6),
                 _cell(each['token_agreement'], '.1%', 14),
                 _cell((each['error_reference'] or {}).get('relative'), '.2%', 9),
                 _cell((each['seam'] or {}).get('relative'), '.1%', 8),
                 _cell(each.get('peak_mb'), '.0f', 8)]
        lines.append(f'{name:<26}{"".join(cells)}')
    lines += [f'{name}: cannot run: {reason}' for name, reason in report['failed'].items()]
    choice = report['choice']
    return [*lines, f'at a budget of {report["budget_ms"]:g} ms run: '
            f'{choice["variant"] or "none"} ({choice["why"]})']


def _cell(value: float | None, form: str, width: int, unit: str = '') -> str:
    return f'{"-" if value is None else format(value, form) + unit:>{width}}'


def _plain(value: Any) -> Any:
    """Return a value without what JSON cannot hold: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
