"""Replay a rosbag and say of each optimization, and of all together, what it gains and costs.

    ros2 run ros_pi0_fast evaluate_bag BAG --robot PROFILE --checkpoint C --out DIR
    python -m ros_pi0_fast.evaluation.bag BAG --variants reference,engine,int8,speculative,all

Needs no ROS. Writes to DIR: report.html, report.json, chunks.csv (all that figures come from) and
predictions/, a bag to be opened beside the one that was replayed. After Ctrl-C there is a report
of what was done, and the same command goes on; each variant begins again then as a node does.
With --baseline it exits with 1 where something became worse than tolerated, and names it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.choice import MALFORMED
from ros_pi0_fast.engine.compiler import CompilationCacheError, enable_persistent_cache
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant, VariantError
from ros_pi0_fast.evaluation.bag_actions import find_actions
from ros_pi0_fast.evaluation.bag_gate import Tolerance, load_baseline, regressions
from ros_pi0_fast.evaluation.bag_reader import FRESHNESS, BagReader, Inputs
from ros_pi0_fast.evaluation.bag_replay import Replay, ReplayConfig
from ros_pi0_fast.evaluation.bag_report import (
    CHUNKS,
    PAGE,
    PREDICTIONS,
    Facts,
    build_report,
    scales_of,
    summary_lines,
    write_report,
)
from ros_pi0_fast.evaluation.bag_variants import DEFAULT, parse_variants
from ros_pi0_fast.evaluation.machine import describe_machine
from ros_pi0_fast.node.observation import Freshness
from ros_pi0_fast.share import share_folder
from ros_pi0_fast.weights.checkpoint import Checkpoint

RUN = 'run.json'
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class Interrupt:
    """Ctrl-C ends a replay after the observation that runs; a second one at once. A context
    manager."""

    def __init__(self) -> None:
        self.came = False
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        print('\nending; once more to end without a report', file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='evaluate_bag', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    share = share_folder()
    add('bag', type=Path, help='folder of a rosbag2, or an .mcap or .db3 file')
    add('--robot', type=Path, default=share / 'config/robots/tabletop.yaml', metavar='PROFILE')
    add('--checkpoint', type=Path, default=share / 'checkpoints/tabletop', metavar='FOLDER')
    add('--text-tokenizer', type=Path, help='where the checkpoint has none')
    add('--fast-tokenizer', type=Path, help='where the checkpoint has none')
    add('--variants', nargs='+', default=[','.join(DEFAULT)], metavar='NAMES',
        help=f'with commas between them: {", ".join(DEFAULT)} (all of these by default), the '
        'name of one gain, or field=value,field=value')
    add('--out', type=Path, help='folder to write (default: out/<name of the bag>)')
    add('--restart', action='store_true', help='forget what is in --out')
    add('--rate-hz', type=float, default=5.0, help='how often the node asks (default: 5)')
    add('--budget-ms', type=float, help='latency budget (default: a period of --rate-hz)')
    add('--deadline-ms', type=float,
        help='longer inferences are counted as late (default: a period of --rate-hz)')
    add('--time', choices=('receive', 'header'), default='receive',
        help='when messages come: as recorded, or at their stamps')
    add('--remap', nargs='+', default=[], metavar='TOPIC:=TOPIC',
        help="the node's topic, and the bag's")
    add('--instruction', default='', help='instead of those in the bag')
    add('--actions', default='', metavar='TOPIC', help='what was commanded or executed')
    add('--max-observation-age-s', type=float, default=FRESHNESS.max_observation_age_s)
    add('--max-camera-skew-s', type=float, default=FRESHNESS.max_camera_skew_s)
    add('--malformed', choices=MALFORMED, default=MALFORMED[0])
    add('--no-overlays', action='store_true', help='write no pictures')
    add('--compilation-cache', type=Path, default=Path('~/.cache/ros_pi0_fast'))
    add('--baseline', type=Path, metavar='REPORT', help='report.json to compare with')
    add('--tolerance', type=Path, metavar='FILE',
        help='how much worse is tolerated (default: config/bag_tolerance.yaml)')
    return parser


def _config(options: argparse.Namespace) -> ReplayConfig:
    """Return what to replay; raises ValueError naming the option."""
    remaps = {}
    for word in options.remap:
        name, separator, topic = word.partition(':=')
        if not (name and separator and topic):
            raise ValueError(f'--remap {word}: expected TOPIC:=TOPIC')
        remaps[f'/{name.lstrip("/")}'] = f'/{topic.lstrip("/")}'
    period_ms = 1e3 / options.rate_hz if options.rate_hz > 0 else 0.0
    options.budget_ms = period_ms if options.budget_ms is None else options.budget_ms
    options.deadline_ms = period_ms if options.deadline_ms is None else options.deadline_ms
    for name in ('rate_hz', 'budget_ms', 'deadline_ms', 'max_observation_age_s',
                 'max_camera_skew_s'):
        value = getattr(options, name)
        if not 0 <= value < float('inf') or (not value and name == 'rate_hz'):
            raise ValueError(f'--{name.replace("_", "-")} {value:g}: expected a number above 0')
    inputs = Inputs(remaps=remaps, instruction=options.instruction.strip(),
                    by_header=options.time == 'header', freshness=Freshness(
                        max_observation_age_s=options.max_observation_age_s,
                        max_camera_skew_s=options.max_camera_skew_s))
    return ReplayConfig(
        bag=options.bag, out=options.out or Path('out') / options.bag.stem,
        rate_hz=options.rate_hz, inputs=inputs, actions=options.actions,
        overlays=not options.no_overlays)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run that goes on must have in common with the one before."""
    names = ('bag', 'robot', 'checkpoint', 'text_tokenizer', 'fast_tokenizer', 'rate_hz', 'time',
             'remap', 'instruction', 'actions', 'max_observation_age_s', 'max_camera_skew_s',
             'malformed', 'no_overlays')
    found = {name: getattr(options, name) for name in names}
    found = {name: str(value.resolve()) if isinstance(value, Path) else value
             for name, value in found.items()}
    return found | {'variants': list(parse_variants(options.variants))}


def _begin(out: Path, settings: dict[str, Any], *, restart: bool) -> dict[str, Any]:
    """Make the folder; return what a run before left in it.

    Raises:
        ValueError: it has the run of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    if restart:
        (out / CHUNKS).unlink(missing_ok=True)
        (out / RUN).unlink(missing_ok=True)
        shutil.rmtree(out / PREDICTIONS, ignore_errors=True)
    before = json.loads((out / RUN).read_text('utf-8')) if (out / RUN).exists() else {}
    for name, value in settings.items():
        if before and before['settings'].get(name) != value:
            raise ValueError(f'{out}: has a replay with {name} {before["settings"].get(name)}, '
                             f'expected {value}: choose another --out, or --restart')
    if not before:
        (out / RUN).write_text(json.dumps({'settings': settings}), 'utf-8')
    return before


def _engine(checkpoint: Checkpoint, codec: PolicyCodec, variants: Sequence[Variant],
            malformed: str) -> Engine:
    """Return an engine with the first variant for which the checkpoint has weights."""
    for variant in variants:
        with suppress(VariantError):
            return Engine(checkpoint, codec, variant=variant, malformed=malformed,
                          kept_variants=None)
    return Engine(checkpoint, codec, malformed=malformed, kept_variants=None)


def _replay(options: argparse.Namespace, config: ReplayConfig, profile: RobotProfile,
            settings: dict[str, Any], stack: ExitStack) -> tuple[Facts, PolicyCodec]:
    """Replay what is left of the bag. What can be told early is: weights take long to load."""
    reader = stack.enter_context(BagReader(config.bag, profile, config.inputs, salvage=True))
    find_actions(reader.file.topics, config.actions)
    checkpoint, codec = load_policy(
        options.checkpoint, profile, text_tokenizer=options.text_tokenizer,
        fast_tokenizer=options.fast_tokenizer)
    before = _begin(config.out, settings, restart=options.restart)
    if 'facts' in before:
        facts = Facts(**before['facts'])
        if facts.complete:
            return replace(facts, budget_ms=options.budget_ms), codec
    variants = parse_variants(options.variants)
    engine = _engine(checkpoint, codec, list(variants.values()), options.malformed)
    interrupt = stack.enter_context(Interrupt())
    replay = Replay(config, reader, profile, engine, variants, lambda: interrupt.came)
    complete = replay.run()
    facts = Facts(
        bag={**replay.facts, 'checkpoint': str(options.checkpoint),
             'malformed': options.malformed},
        machine=describe_machine(), failed=replay.runners.failed,
        compiled={name: {'peak_mb': each.peak_mb, 'compile_s': each.compile_s}
                  for name, each in replay.runners.ready.items()},
        names=profile.actions.names, units=profile.actions.units, budget_ms=options.budget_ms,
        complete=complete)
    (config.out / RUN).write_text(
        json.dumps({'settings': settings, 'facts': vars(facts)}), 'utf-8')
    return facts, codec


def _gate(options: argparse.Namespace, report: dict[str, Any]) -> int:
    """Return the exit status, and print what became worse."""
    found = regressions(report, load_baseline(options.baseline),
                        Tolerance.load(options.tolerance))
    for line in found:
        print(f'REGRESSION {line}', file=sys.stderr)
    print(f'{len(found)} regressions against {options.baseline}')
    return 1 if found else 0


def run(options: argparse.Namespace) -> int:
    """Replay, report and compare; return the exit status."""
    config, settings = _config(options), _settings(options)
    if options.baseline:  # Wrong files are told of before anything takes time.
        load_baseline(options.baseline)
        Tolerance.load(options.tolerance)
    profile = RobotProfile.load(options.robot)
    with suppress(OSError, CompilationCacheError):  # Then every run compiles.
        enable_persistent_cache(options.compilation_cache.expanduser())
    with ExitStack() as stack:
        facts, codec = _replay(options, config, profile, settings, stack)
    if not (config.out / CHUNKS).exists():
        print('ended before the first observation was answered', file=sys.stderr)
        return INTERRUPTED
    report = build_report(config.out / CHUNKS, facts, scales_of(codec, options.deadline_ms))
    write_report(config.out, report)
    print('\n'.join([*summary_lines(report), *(f'note: {note}' for note in facts.bag['notes']),
                     str(config.out / PAGE)]))
    if not facts.complete:
        return INTERRUPTED
    return _gate(options, report) if options.baseline else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exits with 1 after a regression, 2 where nothing can be done."""
    try:
        status = run(_parser().parse_args(arguments))
    except ValueError as error:
        print(f'evaluate_bag: {error}', file=sys.stderr)
        status = 2
    except KeyboardInterrupt:  # Before there was anything to report, or the second one.
        status = INTERRUPTED
    sys.exit(status)


if __name__ == '__main__':
    main()
