"""The actions that a bag says were commanded or executed, at the times of a chunk's rows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.bag_file import BagError, BagFile, Topic
from ros_pi0_fast.evaluation.bag_reader import by_header
from ros_pi0_fast.node.conversions import stamp_ns

USUAL = ('/joint_command', '/joint_commands', '/joint_trajectory', '/action_chunk')
"""Where they are looked for, in this order, if no topic is named."""
FIELDS = {'velocity': 'velocity', 'rad/s': 'velocity', 'm/s': 'velocity', 'N': 'effort',
          'Nm': 'effort'}
"""Unit of an action -> field of a JointState; position for others."""

Sample = tuple[int, np.ndarray]
"""When it is due, ns, and the action float32 [action_dim]."""


def find_actions(topics: Mapping[str, Topic], wanted: str = '') -> str:
    """Return the topic of the actions; '' where no usual one is there.

    Raises:
        ValueError: the topic that is wanted is not there, or of a type that holds no actions.
    """
    readable = [name for name, topic in topics.items() if topic.kind in _READERS]
    if not wanted:
        return next((name for name in USUAL if name in readable), '')
    if wanted in readable:
        return wanted
    found = topics[wanted].kind if wanted in topics else 'no such topic'
    raise ValueError(f'--actions {wanted}: found {found}, expected one of '
                     f'{", ".join(readable) or "these types: " + ", ".join(_READERS)}')


class RecordedActions:
    """Reads ahead of an evaluation, which asks for one window after another; a context manager.

    A row is known if an action is due within half a control period of it.

    Args:
        path: Of the bag.
        topic: Of the actions: a JointState (by name, its position, velocity or effort by the
            unit of the action), a JointTrajectory, an ActionChunk or a Float64MultiArray.
        profile: The robot.
        stamps: Messages come at their stamps: see Inputs.by_header.

    Raises:
        BagError: the bag cannot be opened, or a message does not hold the robot's actions; of
            the first one that is told here.
    """

    def __init__(self, path: Path, topic: str, profile: RobotProfile, *, stamps: bool = False):
        self._file = BagFile(path, salvage=True)
        self._topic, self._profile = topic, profile
        self._read = _READERS[self._file.topics[topic].kind]
        self._period_ns = round(1e9 / profile.control_rate_hz)
        self._samples: deque[Sample] = deque()
        messages = self._file.messages([topic])
        self._messages = by_header(messages) if stamps else messages
        self._until_ns = -math.inf
        """Messages up to this time were read."""
        try:
            self._read_one()
        except BagError:
            self._file.close()
            raise

    def __enter__(self) -> RecordedActions:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def window(self, start_ns: int) -> np.ndarray:
        """Return the actions of a chunk's rows, float32 [horizon, action_dim]; NaN: not known.

        Args:
            start_ns: When the first row is due; not before that of the call before.
        """
        horizon = self._profile.horizon
        due = start_ns + self._period_ns * np.arange(horizon)
        self._read_until(int(due[-1]) + self._period_ns)
        while self._samples and self._samples[0][0] < start_ns - self._period_ns:
            self._samples.popleft()
        rows = np.full((horizon, self._profile.action_dim), np.nan, np.float32)
        if not self._samples:
            return rows
        times = np.array([time for time, _ in self._samples])
        nearest = np.abs(times[None] - due[:, None]).argmin(1)
        for row, index in enumerate(nearest):
            if abs(times[index] - due[row]) <= self._period_ns / 2:
                rows[row] = self._samples[index][1]
        return rows

    def _read_until(self, time_ns: int) -> None:
        while self._until_ns <= time_ns:
            self._read_one()

    def _read_one(self) -> None:
        found = next(self._messages, None)
        if found is None:
            self._until_ns = math.inf
            return
        _, self._until_ns, message = found
        try:
            self._add(self._until_ns, list(self._read(message, self._until_ns, self._profile)))
        except (ValueError, KeyError) as error:
            raise BagError(f'{self._file.path}: {self._topic}: {error}') from error

    def _add(self, now_ns: int, samples: list[Sample]) -> None:
        """Take actions that were commanded now: they replace what was planned for later."""
        earliest = now_ns - self._period_ns // 2
        samples = [sample for sample in samples if len(samples) == 1 or sample[0] >= earliest]
        if not samples:
            return
        while self._samples and self._samples[-1][0] >= samples[0][0]:
            self._samples.pop()
        self._samples.extend(samples)


# --- by type of message ------------------------------------------------------------------

def _joint_state(message: Any, now_ns: int, profile: RobotProfile) -> Iterator[Sample]:
    values = []
    for name, unit in zip(profile.actions.names, profile.actions.units, strict=True):
        column = FIELDS.get(unit, 'position')
        if name not in message.name:
            raise ValueError(f'found no {name} among {", ".join(message.name)}')
        numbers = getattr(message, column)
        if len(numbers) != len(message.name):
            raise ValueError(f'{column}: found {len(numbers)} values for {len(message.name)} '
                             f'names')
        values.append(numbers[list(message.name).index(name)])
    yield stamp_ns(message) or now_ns, np.array(values, np.float32)


def _trajectory(message: Any, now_ns: int, profile: RobotProfile) -> Iterator[Sample]:
    start, names = stamp_ns(message) or now_ns, list(message.joint_names)
    order = [names.index(name) for name in profile.actions.names]
    for point in message.points:
        after = point.time_from_start
        yield (start + after.sec * 10**9 + after.nanosec,
               np.asarray(point.positions, np.float32)[order])


def _chunk(message: Any, now_ns: int, profile: RobotProfile) -> Iterator[Sample]:
    if not message.valid:
        return
    found = (int(message.horizon), int(message.action_dim))
    if found[1] != profile.action_dim or not message.absolute:
        raise ValueError(f'found {found[0]} x {found[1]}, absolute {message.absolute}, expected '
                         f'{profile.action_dim} absolute actions')
    period = message.control_period.sec * 10**9 + message.control_period.nanosec
    for row, action in enumerate(np.asarray(message.actions, np.float32).reshape(found)):
        yield stamp_ns(message) + row * period, action


def _array(message: Any, now_ns: int, profile: RobotProfile) -> Iterator[Sample]:
    if len(message.data) != profile.action_dim:
        raise ValueError(f'found {len(message.data)} values, expected {profile.action_dim}')
    yield now_ns, np.asarray(message.data, np.float32)


_READERS: dict[str, Callable[[Any, int, RobotProfile], Iterator[Sample]]] = {
    'sensor_msgs/msg/JointState': _joint_state,
    'trajectory_msgs/msg/JointTrajectory': _trajectory,
    'ros_pi0_fast/msg/ActionChunk': _chunk,
    'std_msgs/msg/Float64MultiArray': _array}
