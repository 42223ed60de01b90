"""Observations from a rosbag, built by the node's own code: what it would have seen.

Reads rosbag2 in MCAP and SQLite, compressed or not, by `rosbags`; needs no ROS. Messages are read
one after another, so that a long bag takes no more memory than a short one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.node.conversions import ConversionError, stamp_ns, to_rgb
from ros_pi0_fast.node.observation import Freshness, ObservationAssembler, ObservationRefused
from ros_pi0_fast.types import Observation

FRESHNESS = Freshness(max_observation_age_s=0.5, max_camera_skew_s=0.2)
"""The node's defaults."""


class BagError(ValueError):
    """A bag cannot be used; the message names it, what was found and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One message of a topic that was asked for, and what the node would have known then."""

    time_ns: int
    """When it was recorded."""
    message: Any
    observation: Observation | None
    """None where the node would have refused."""
    reason: str
    """Why; empty where there is an observation."""

    @property
    def stamp_ns(self) -> int:
        """Stamp of the message's header."""
        return stamp_ns(self.message)


class BagReader:
    """Reads one bag for one robot; a context manager.

    Args:
        path: Folder of a rosbag2.
        profile: The robot: names the topics.
        freshness: How old and how far apart inputs may be.

    Raises:
        BagError: it is no rosbag, is damaged, or lacks a topic of the robot.
    """

    def __init__(self, path: Path, profile: RobotProfile, freshness: Freshness = FRESHNESS):
        self.path = Path(path)
        self.profile = profile
        self.assembler = ObservationAssembler(profile, freshness)
        """Counts what was refused."""
        self._cameras = {f'/{source.topic.lstrip("/")}': (key, source.transport)
                         for key, source in profile.cameras.items()}
        self._reader = self._open()

    def _open(self) -> AnyReader:
        if not self.path.exists():
            raise BagError(f'{self.path}: is not there, expected a rosbag2')
        try:
            reader = AnyReader([self.path], default_typestore=bag_types())
            reader.open()
        except (AnyReaderError, OSError, ValueError) as error:
            raise BagError(f'{self.path}: cannot be read as a rosbag2: {error}') from error
        try:
            self._require([*self._cameras, '/joint_states', '/instruction'], set(reader.topics))
        except BagError:
            reader.close()
            raise
        return reader

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def _require(self, wanted: list[str], there: set[str]) -> None:
        missing = [topic for topic in wanted if topic not in there]
        if missing:
            near = {topic: difflib.get_close_matches(topic, there, 1) for topic in missing}
            named = ', '.join(f'{topic} (near: {found[0]})' if found else topic
                              for topic, found in near.items())
            raise BagError(f'{self.path}: has no {named}; it has {", ".join(sorted(there))}')

    def moments(self, topic: str) -> Iterator[Moment]:
        """Yield the messages of a topic with what the node would have known when they came.

        Args:
            topic: Its name, with the leading slash.

        Raises:
            BagError: there is no such topic, or the bag is damaged.
        """
        self._require([topic], set(self._reader.topics))
        wanted = {*self._cameras, '/joint_states', '/instruction', topic}
        connections = [each for each in self._reader.connections if each.topic in wanted]
        for connection, time_ns, message in self._messages(connections):
            self._take(connection.topic, message)
            if connection.topic == topic:
                yield self._moment(time_ns, message)

    def _messages(self, connections: list[Connection]) -> Iterator[tuple[Connection, int, Any]]:
        try:
            for connection, time_ns, raw in self._reader.messages(connections):
                yield connection, time_ns, self._reader.deserialize(raw, connection.msgtype)
        except (AnyReaderError, OSError, ValueError, KeyError, AssertionError) as error:
            raise BagError(f'{self.path}: is damaged: {type(error).__name__}: {error}') from error

    def _take(self, topic: str, message: Any) -> None:
        """Give the node's code a message; what it refuses, it counts."""
        inputs = self.assembler
        try:
            if topic in self._cameras:
                key, transport = self._cameras[topic]
                inputs.update_image(key, to_rgb(message, transport), stamp_ns(message))
            elif topic == '/joint_states':
                inputs.update_joints(message.name, message.position, stamp_ns(message))
            elif topic == '/instruction':
                inputs.update_instruction(message.data)
        except ConversionError as error:
            inputs.refuse(f'bad image: {topic}: {error}')
        except ObservationRefused:
            return  # It was counted where it was raised.

    def _moment(self, time_ns: int, message: Any) -> Moment:
        try:
            observation, reason = self.assembler.assemble(time_ns), ''
        except ObservationRefused as refused:
            observation, reason = None, str(refused)
        return Moment(time_ns=time_ns, message=message, observation=observation, reason=reason)
