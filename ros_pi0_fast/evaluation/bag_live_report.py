"""The report of chunks that a running node answered a bag with. No rclpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.bag_actions import RecordedActions, find_actions
from ros_pi0_fast.evaluation.bag_file import BagFile
from ros_pi0_fast.evaluation.bag_report import (
    CHUNKS,
    PAGE,
    Facts,
    build_report,
    scales_of,
    summary_lines,
    write_report,
)
from ros_pi0_fast.evaluation.bag_rows import RECORDED, Journal, Row, read_groups
from ros_pi0_fast.evaluation.bag_variants import REFERENCE_NAME
from ros_pi0_fast.evaluation.machine import describe_machine


@dataclass(frozen=True, kw_only=True)
class LiveSource:
    """What was played, and what it is compared with."""

    bag: Path
    checkpoint: Path
    reference: Path | None
    """Folder of an offline replay of the bag."""
    actions: str
    rate_hz: float
    refused: Mapping[str, int]
    """By the node: how often each kind of reason."""
    complete: bool


def write_live_report(out: Path, rows: Sequence[Row], profile: RobotProfile,
                      source: LiveSource) -> list[str]:
    """Write chunks.csv and the report; return it as lines.

    Raises:
        ValueError: there are no rows; or bag, checkpoint or reference cannot be used.
    """
    if not rows:
        raise ValueError('no chunk came; refused: ' + (', '.join(
            f'{kind} ({count} times)' for kind, count in source.refused.items()) or 'nothing'))
    out.mkdir(parents=True, exist_ok=True)
    chunks, notes = out / CHUNKS, []
    chunks.unlink(missing_ok=True)
    references = _references(source.reference)
    with BagFile(source.bag, salvage=True) as bag:
        topic = find_actions(bag.topics, source.actions)
        facts = {'name': source.bag.name, 'path': str(source.bag), 'start_ns': bag.start_ns,
                 'end_ns': bag.end_ns, 'duration_s': (bag.end_ns - bag.start_ns) / 1e9,
                 'messages': sum(each.count for each in bag.topics.values())}
        notes += bag.damage
    missing = sum(row.stamp_ns not in references for row in rows) if references else 0
    if missing:
        notes.append(f'{missing} of {len(rows)} chunks answer observations that the offline '
                     'replay did not have: let it ask (--rate-hz) as often as pictures come')
    _write(chunks, rows, references, RecordedActions(source.bag, topic, profile) if topic
           else None)
    period_ms = 1e3 / source.rate_hz
    codec = PolicyCodec.from_checkpoint(source.checkpoint, profile)
    report = build_report(chunks, Facts(
        bag={**facts, 'robot': profile.name, 'rate_hz': source.rate_hz, 'actions': topic,
             'checkpoint': str(source.checkpoint), 'refused': dict(source.refused),
             'notes': notes, 'mode': 'live'},
        machine=describe_machine(), compiled={}, failed={}, names=profile.actions.names,
        units=profile.actions.units, budget_ms=period_ms, complete=source.complete,
        reference_ran=any(row.variant == REFERENCE_NAME for row in rows)),
        scales_of(codec, period_ms))
    write_report(out, report)
    return [*summary_lines(report), *(f'note: {note}' for note in notes), str(out / PAGE)]


def _references(folder: Path | None) -> dict[int, Row]:
    """Return the rows of the reference by stamp, without its tokens: live chunks have none."""
    if folder is None:
        return {}
    return {row.stamp_ns: replace(row, tokens=np.zeros(0, np.int64))
            for group in read_groups(folder / CHUNKS, damaged=True)
            if (row := group.get(REFERENCE_NAME)) is not None}


def _write(path: Path, rows: Sequence[Row], references: Mapping[int, Row],
           actions: RecordedActions | None) -> None:
    names = {row.variant for row in rows} | {REFERENCE_NAME, RECORDED}
    journal = Journal(path, sorted(names))
    try:
        for row in rows:
            group = [row]
            if row.stamp_ns in references and row.variant != REFERENCE_NAME:
                group.append(replace(references[row.stamp_ns], index=row.index))
            if actions is not None:
                done = actions.window(row.stamp_ns)
                group.append(Row(index=row.index, time_ns=row.time_ns, stamp_ns=row.stamp_ns,
                                 instruction=row.instruction, variant=RECORDED,
                                 valid=bool(np.isfinite(done).any()), actions=done.reshape(-1)))
            journal.write(group)
    finally:
        journal.close()
        if actions is not None:
            actions.__exit__()
