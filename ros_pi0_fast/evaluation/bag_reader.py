"""Observations from a rosbag, built by the node's own code: what it would have seen.

Reads rosbag2 in MCAP and SQLite, compressed or not; needs no ROS.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.bag_file import BagError, BagFile
from ros_pi0_fast.node.conversions import ConversionError, stamp_ns, to_rgb
from ros_pi0_fast.node.observation import Freshness, ObservationAssembler, ObservationRefused
from ros_pi0_fast.types import Observation

__all__ = ['BagError', 'BagReader', 'Inputs', 'Moment', 'Tick']

FRESHNESS = Freshness(max_observation_age_s=0.5, max_camera_skew_s=0.2)
"""The node's defaults."""
JOINTS, INSTRUCTION = '/joint_states', '/instruction'
TRANSPORTS = {'sensor_msgs/msg/Image': 'raw', 'sensor_msgs/msg/CompressedImage': 'compressed'}
KINDS = {JOINTS: ('sensor_msgs/msg/JointState',), INSTRUCTION: ('std_msgs/msg/String',)}
REORDER_NS = 10**9
"""By header, a message that was recorded so much later than its stamp's turn comes too late."""
LONGEST_PAUSE_NS = 60 * 10**9
"""In a longer gap of the bag no observation is asked for."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Which of a bag's messages are the robot's, and when they came."""

    remaps: Mapping[str, str] = field(default_factory=dict)
    """Topic as the profile and the node name it -> topic in the bag."""
    instruction: str = ''
    """What to do; empty: what the instruction topic says."""
    by_header: bool = False
    """Messages come at their stamps; else when they were recorded."""
    freshness: Freshness = FRESHNESS

    def topic(self, name: str) -> str:
        """Return the bag's topic for one of the node's."""
        name = f'/{name.lstrip("/")}'
        return self.remaps.get(name, name)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What the node would have known at one time."""

    time_ns: int
    """When it was recorded."""
    observation: Observation | None
    """None where the node would have refused."""
    reason: str
    """Why; empty where there is an observation."""


@dataclass(frozen=True, kw_only=True)
class Moment(Tick):
    """One message of a topic that was asked for, and what the node would have known then."""

    message: Any

    @property
    def stamp_ns(self) -> int:
        """Stamp of the message's header."""
        return stamp_ns(self.message)


class BagReader:
    """Reads one bag for one robot; a context manager.

    Args:
        path: Folder of a rosbag2, or one of its files.
        profile: The robot: names the topics.
        inputs: Which messages are its inputs.
        salvage: See BagFile.

    Raises:
        BagError: it is no rosbag, is damaged, or lacks a topic of the robot.
    """

    def __init__(self, path: Path, profile: RobotProfile, inputs: Inputs | None = None, *,
                 salvage: bool = False):
        self.inputs = inputs or Inputs()
        self._profile = profile
        self.notes: list[str] = []
        """What is unusual about the topics, in words."""
        self.assembler = ObservationAssembler(profile, self.inputs.freshness)
        """Counts what was refused."""
        topic = self.inputs.topic
        self.clocks_apart_s: float | None = None
        """Stamp of the first message with a header, minus when it was recorded."""
        self._last_stamp_ns = -1
        self._cameras = {topic(source.topic): (key, source.transport)
                         for key, source in profile.cameras.items()}
        self._joints, self._instruction = topic(JOINTS), topic(INSTRUCTION)
        self.file = BagFile(path, salvage=salvage)
        try:
            self._check()
        except BagError:
            self.file.close()
            raise

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    # --- what is there -------------------------------------------------------------------

    def _check(self) -> None:
        wanted = {**dict.fromkeys(self._cameras, tuple(TRANSPORTS)),
                  self._joints: KINDS[JOINTS]}
        if not self.inputs.instruction:
            wanted[self._instruction] = KINDS[INSTRUCTION]
        self._require(wanted)
        if len(wanted) < len(self._profile.cameras) + 1 + (not self.inputs.instruction):
            raise BagError(f'{self.file.path}: {", ".join(wanted)}: one topic for two inputs, '
                           'expected one for each: see --remap')
        for name, kinds in wanted.items():
            kind = self.file.topics[name].kind
            if kind not in kinds:
                raise BagError(f'{self.file.path}: {name}: found {kind}, expected '
                               f'{" or ".join(kinds)}{self._others(wanted, name)}')
        for name, (key, transport) in self._cameras.items():
            found = TRANSPORTS[self.file.topics[name].kind]
            if found != transport:
                self._cameras[name] = (key, found)
                self.notes.append(f'{name} is {found} in the bag, and {transport} in the profile')

    def _require(self, wanted: Mapping[str, tuple[str, ...]]) -> None:
        """Check that topics are there, each of one of these types; of any, if there are none."""
        there = self.file.topics
        missing = [topic for topic in wanted if topic not in there]
        if not missing:
            return
        named = []
        for topic in missing:
            near = difflib.get_close_matches(topic, [each for each in there if each not in wanted])
            named.append(topic + (f' (near: {", ".join(near)})' if near
                                  else self._others(wanted, topic)))
        raise BagError(f'{self.file.path}: has no {", ".join(named)}; it has '
                       f'{", ".join(there) or "no topic"}')

    def _others(self, wanted: Mapping[str, tuple[str, ...]], topic: str) -> str:
        """Return which topics, beside those that are wanted, have the type of one of them."""
        found = [each.name for each in self.file.topics.values()
                 if each.kind in wanted[topic] and each.name not in wanted]
        return f' (of that type: {", ".join(found)})' if found else ''

    # --- what the node would have known --------------------------------------------------

    def moments(self, topic: str) -> Iterator[Moment]:
        """Yield the messages of a topic with what the node would have known when they came.

        Args:
            topic: Its name, with the leading slash.

        Raises:
            BagError: there is no such topic, or the bag is damaged.
        """
        self._require({topic: ()})
        for name, time_ns, message in self._messages(topic):
            self._take(name, message)
            if name == topic:
                observation, reason = self._assemble(time_ns)
                yield Moment(time_ns=time_ns, message=message, observation=observation,
                             reason=reason)

    def ticks(self, rate_hz: float) -> Iterator[Tick]:
        """Yield what the node would have seen at each tick of its timer, from the first message
        on; nothing where there is nothing new.

        Args:
            rate_hz: How often it asks.

        Raises:
            BagError: the bag is damaged.
        """
        period_ns, due, end = round(1e9 / rate_hz), None, 0
        self._last_stamp_ns = -1
        for name, time_ns, message in self._messages():
            if due is None or time_ns - due > LONGEST_PAUSE_NS:
                due = time_ns
            while due < time_ns:
                yield from self._tick(due)
                due += period_ns
            self._take(name, message)
            if self.clocks_apart_s is None and hasattr(message, 'header'):
                self.clocks_apart_s = (stamp_ns(message) - time_ns) / 1e9
            end = time_ns
        while due is not None and due < end + period_ns:  # What came last is seen, too.
            yield from self._tick(due)
            due += period_ns

    def _tick(self, time_ns: int) -> Iterator[Tick]:
        """Yield what is seen now, or nothing where it is what was seen last."""
        observation, reason = self._assemble(time_ns)
        if observation is not None:
            if observation.stamp_ns == self._last_stamp_ns:
                return
            self._last_stamp_ns = observation.stamp_ns
        yield Tick(time_ns=time_ns, observation=observation, reason=reason)

    def _assemble(self, time_ns: int) -> tuple[Observation | None, str]:
        try:
            return self.assembler.assemble(time_ns), ''
        except ObservationRefused as refused:
            return None, str(refused)

    def _messages(self, *more: str) -> Iterator[tuple[str, int, Any]]:
        """Yield the messages of the inputs and of other topics, in the order of their times."""
        topics = {*self._cameras, self._joints, self._instruction, *more}
        if self.inputs.instruction:
            topics.discard(self._instruction)
            self.assembler.update_instruction(self.inputs.instruction)
        messages = self.file.messages(topics)
        return by_header(messages) if self.inputs.by_header else messages

    def _take(self, topic: str, message: Any) -> None:
        """Give the node's code a message; what it refuses, it counts."""
        inputs = self.assembler
        try:
            if topic in self._cameras:
                key, transport = self._cameras[topic]
                inputs.update_image(key, to_rgb(message, transport), stamp_ns(message))
            elif topic == self._joints:
                inputs.update_joints(message.name, message.position, stamp_ns(message))
            elif topic == self._instruction:
                inputs.update_instruction(message.data)
        except ConversionError as error:
            inputs.refuse(f'bad image: {topic}: {error}')
        except ObservationRefused:
            return  # It was counted where it was raised.


def by_header(messages: Iterator[tuple[str, int, Any]]) -> Iterator[tuple[str, int, Any]]:
    """Give messages the times of their stamps, and yield them in that order.

    One without a header comes as long after the one before it as it was recorded after that.
    """
    waiting: list[tuple[int, int, str, Any]] = []
    early: list[tuple[str, int, Any]] = []
    offset, latest, order = None, 0, itertools.count()
    for topic, time_ns, message in messages:
        if hasattr(message, 'header'):
            offset = stamp_ns(message) - time_ns
        early.append((topic, time_ns, message))
        if offset is None:
            continue
        for name, time, each in early:
            heapq.heappush(waiting, (time + offset, next(order), name, each))
        early.clear()
        latest = max(latest, time_ns + offset)
        while waiting and waiting[0][0] <= latest - REORDER_NS:
            yield _pop(waiting)
    while waiting:
        yield _pop(waiting)


def _pop(waiting: list[tuple[int, int, str, Any]]) -> tuple[str, int, Any]:
    time_ns, _, topic, message = heapq.heappop(waiting)
    return topic, time_ns, message
