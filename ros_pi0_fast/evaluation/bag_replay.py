"""Replays a bag through several variants of a policy and notes what each one answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ros_pi0_fast.codec.policy_codec import ObservationError
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.evaluation.bag_actions import RecordedActions, find_actions
from ros_pi0_fast.evaluation.bag_output import PredictionBag
from ros_pi0_fast.evaluation.bag_overlay import Overlay
from ros_pi0_fast.evaluation.bag_reader import BagError, BagReader, Inputs, Tick
from ros_pi0_fast.evaluation.bag_report import CHUNKS, PREDICTIONS
from ros_pi0_fast.evaluation.bag_rows import RECORDED, Journal, Row
from ros_pi0_fast.evaluation.bag_variants import REFERENCE_NAME, Runners
from ros_pi0_fast.node.gate import release
from ros_pi0_fast.types import ActionChunk, Observation

CLOCKS_APART_S = 0.1
"""Stamps that are further from the times of recording are another clock's, or very late."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What to replay, and where to write."""

    bag: Path
    out: Path
    rate_hz: float = 5.0
    """How often the node asks for a chunk."""
    inputs: Inputs = field(default_factory=Inputs)
    actions: str = ''
    """Topic of what was done; empty: a usual one, if there is any."""
    overlays: bool = True
    """Write pictures, too."""


class Replay:
    """One replay.

    Args:
        config: What to replay.
        reader: Of its bag.
        profile: The robot.
        engine: Of the policy.
        variants: By name.
        stopped: Tells whether to end early.
    """

    def __init__(self, config: ReplayConfig, reader: BagReader, profile: RobotProfile,
                 engine: Engine, variants: Mapping[str, Variant], stopped: Callable[[], bool]):
        self.config, self.profile = config, profile
        self._reader = reader
        self.runners = Runners(engine, dict(variants))
        self.facts: dict[str, Any] = {}
        """About the bag, for the report."""
        self._stopped = stopped
        self._overlay = Overlay(profile=profile, size=profile.image_size)
        self._notes: list[str] = []
        self._sizes: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)

    def run(self) -> bool:
        """Replay from where a run before ended; return whether all of the bag was replayed.

        Raises:
            BagError: nothing of the bag can be evaluated.
            ValueError: there are no such actions, or the folder has the rows of another run.
        """
        reader, config = self._reader, self.config
        with ExitStack() as stack:
            topic = find_actions(reader.file.topics, config.actions)
            actions = self._open_actions(topic)
            if actions is not None:
                stack.enter_context(actions)
            ticks = self._progress(reader, reader.ticks(config.rate_hz))
            complete, counts = self._run(stack, ticks, reader, actions)
        self.facts = self._describe(reader, topic, counts)
        if complete and not counts['observations']:
            raise BagError(self._nothing(reader))
        return complete

    def _open_actions(self, topic: str) -> RecordedActions | None:
        """Return what was done; None where the bag does not say, which is noted.

        Raises:
            BagError: the topic was named, and does not say it.
        """
        without = 'errors are against the reference only (name a topic with --actions)'
        if not topic:
            self._notes.append(f'the bag has no actions on a usual topic: {without}')
            return None
        try:
            return RecordedActions(self.config.bag, topic, self.profile,
                                   stamps=self.config.inputs.by_header)
        except BagError as error:
            if self.config.actions:
                raise
            self._notes.append(f'{error}: {without}')
            return None

    # --- going through the bag -----------------------------------------------------------

    def _progress(self, reader: BagReader, ticks: Iterable[Tick]) -> Iterator[Tick]:
        total = (reader.file.end_ns - reader.file.start_ns) / 1e9
        with tqdm(total=total, unit='s', desc='replay', bar_format=(
                '{l_bar}{bar}| {n:.1f}/{total:.1f} s of the bag [{elapsed}<{remaining}]')) as bar:
            first = None
            for tick in ticks:
                first = tick.time_ns if first is None else first
                bar.update(min((tick.time_ns - first) / 1e9, total) - bar.n)
                yield tick
            bar.update(total - bar.n)

    def _run(self, stack: ExitStack, ticks: Iterable[Tick], reader: BagReader,
             actions: RecordedActions | None) -> tuple[bool, dict[str, int]]:
        counts = {'ticks': 0, 'observations': 0}
        out: _Outputs | None = None
        for tick in ticks:
            if self._stopped():
                return False, counts
            counts['ticks'] += 1
            if tick.observation is None:
                continue
            try:
                if out is None:
                    out = self._begin(tick, actions is not None)
                    if out is None:
                        return False, counts
                    stack.enter_context(out)
                self._answer(tick, counts['observations'], out, actions)
            except ObservationError as error:
                reader.assembler.refuse(f'bad observation: {error}')
                continue
            counts['observations'] += 1
        return True, counts

    def _begin(self, tick: Tick, has_actions: bool) -> _Outputs | None:
        """Compile the variants and open the files; None where that was interrupted."""
        self.runners.prepare(tick.observation, self._compiling)
        if self._stopped():
            return None
        if not self.runners.ready:
            raise ValueError('no variant can run: ' + '; '.join(
                f'{name}: {reason}' for name, reason in self.runners.failed.items()))
        return _Outputs(self, has_actions)

    def _answer(self, tick: Tick, index: int, out: _Outputs,
                actions: RecordedActions | None) -> None:
        """Have an observation answered, unless that was done before."""
        for key, picture in tick.observation.images.items():
            self._sizes[key].add(picture.shape[:2])
        recorded = actions.window(tick.observation.stamp_ns) if actions else None
        if index > out.last_index:
            out.write(tick, index, self._answers(tick.observation, index), recorded)

    def _compiling(self, names: Sequence[str]) -> Iterator[str]:
        for name in tqdm(names, desc='compile', unit='variant', leave=False):
            if self._stopped():
                return
            yield name

    def _answers(self, observation: Observation, index: int) -> dict[str, tuple[ActionChunk, int]]:
        """Return each variant's chunk, in the order of the report, and what it had to compile.

        Chunks are as a node publishes them by default: within the limits of the profile.
        """
        found = {name: (release(chunk, self.profile, 'clamp').chunk, compiled)
                 for name, chunk, compiled in self.runners.run(observation, index)}
        return {name: found[name] for name in self.runners.ready}

    def draw(self, tick: Tick, name: str, chunk: ActionChunk, reference: ActionChunk | None,
             recorded: np.ndarray | None) -> np.ndarray:
        """Return the picture of a chunk."""
        beside = reference.actions if reference and reference.valid else None
        return self._overlay.draw(tick.observation, chunk, title=name, reference=beside,
                                  recorded=recorded)

    # --- what is to be said about it -----------------------------------------------------

    def _describe(self, reader: BagReader, actions: str, counts: dict[str, int]) -> dict[str, Any]:
        file = reader.file
        notes = [*file.damage, *reader.notes, *self._notes]
        if file.end_ns <= file.start_ns:
            notes.append('the bag has no duration: all of its messages have the same time')
        notes += [f'{key}: the size of the pictures changes: {_sizes(sizes)}'
                  for key, sizes in self._sizes.items() if len(sizes) > 1]
        return {
            'name': self.config.bag.name, 'path': str(self.config.bag),
            'robot': self.profile.name, 'rate_hz': self.config.rate_hz,
            'start_ns': file.start_ns, 'end_ns': file.end_ns,
            'duration_s': (file.end_ns - file.start_ns) / 1e9,
            'messages': sum(topic.count for topic in file.topics.values()),
            'topics': {topic.name: f'{topic.kind}, {topic.count}'
                       for topic in file.topics.values()},
            'time': 'header' if self.config.inputs.by_header else 'receive',
            'actions': actions, 'refused': dict(reader.assembler.refusals), 'notes': notes,
            **counts}

    def _nothing(self, reader: BagReader) -> str:
        """Say why there was not one observation."""
        refused = reader.assembler.refusals
        reasons = ', '.join(f'{kind} ({count} times)' for kind, count in refused.most_common())
        text = (f'{self.config.bag}: found no observation that the node would have answered: '
                f'{reasons or "the bag has no messages of the robot"}')
        damage = ''.join(f'; {each}' for each in reader.file.damage)
        apart = reader.clocks_apart_s or 0.0
        if abs(apart) > CLOCKS_APART_S:
            damage += (f'; stamps are {apart:.3f} s from the times of recording: try --time '
                       'header')
        return text + damage


class _Outputs:
    """The files that grow with each observation; a context manager."""

    def __init__(self, replay: Replay, has_actions: bool):
        self._replay, config = replay, replay.config
        names = [*replay.runners.ready, *([RECORDED] if has_actions else [])]
        self._journal = Journal(config.out / CHUNKS, names)
        last = self._journal.last
        self.last_index = -1 if last is None else last.index
        self._bag = PredictionBag(config.out / PREDICTIONS, replay.profile,
                                  None if last is None else last.time_ns)

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.close()
        self._bag.__exit__(*error)

    def write(self, tick: Tick, index: int, answers: Mapping[str, tuple[ActionChunk, int]],
              recorded: np.ndarray | None) -> None:
        """Write what the variants answered to an observation."""
        seen, same = tick.observation, {'index': index, 'time_ns': tick.time_ns}
        rows = [Row.of(chunk, seen, variant=name, compiled=compiled, **same)
                for name, (chunk, compiled) in answers.items()]
        if recorded is not None:
            rows.append(Row(stamp_ns=seen.stamp_ns, instruction=seen.instruction,
                            variant=RECORDED, valid=bool(np.isfinite(recorded).any()),
                            actions=recorded.reshape(-1), **same))
        reference = answers.get(REFERENCE_NAME, (None, 0))[0]
        for name, (chunk, _) in answers.items():
            self._bag.write_chunk(name, tick.time_ns, chunk, sequence=index + 1,
                                  instruction=seen.instruction)
            if self._replay.config.overlays:
                self._bag.write_overlay(
                    name, tick.time_ns, seen.stamp_ns,
                    self._replay.draw(tick, name, chunk, reference, recorded))
        self._journal.write(rows)


def _sizes(sizes: Iterable[tuple[int, ...]]) -> str:
    return ', '.join(f'{height} x {width}' for height, width in sorted(sizes))
