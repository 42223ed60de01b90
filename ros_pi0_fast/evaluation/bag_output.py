"""A rosbag2 (MCAP) with what each variant would have said, to be opened beside the bag.

Messages have the times of the bag that was replayed, so that Foxglove and `ros2 bag play` show
both together: `/<variant>/action_chunk`, and `/<variant>/overlay` with the pictures.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.bag_file import BagFile
from ros_pi0_fast.evaluation.bag_overlay import to_jpeg
from ros_pi0_fast.types import ActionChunk

CHUNK, PICTURE = 'ros_pi0_fast/msg/ActionChunk', 'sensor_msgs/msg/CompressedImage'
STAGES = ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')
_EMPTY = {'bool': False, 'int': 0, 'float': 0.0, 'str': ''}


class PredictionBag:
    """Writes such a bag; a context manager.

    Args:
        path: Folder to write. What a run before left there, up to a time, is kept.
        profile: The robot.
        keep_until_ns: That time; None for nothing.
    """

    def __init__(self, path: Path, profile: RobotProfile, keep_until_ns: int | None = None):
        self._profile = profile
        self._store = bag_types()
        self._connections: dict[str, Connection] = {}
        old = path.with_name(f'{path.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        self._writer = Writer(path, version=Writer.VERSION_LATEST,
                              storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        if old.exists():
            if keep_until_ns is not None:
                self._copy(old, keep_until_ns)
            shutil.rmtree(old)

    def __enter__(self) -> PredictionBag:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _copy(self, old: Path, until_ns: int) -> None:
        """Copy the messages of a bag that a run before left, ended properly or not."""
        with BagFile(old, salvage=True) as bag:
            kinds = {topic.name: topic.kind for topic in bag.topics.values()}
            for topic, time_ns, message in bag.messages(kinds):
                if time_ns <= until_ns:
                    self._write(topic, kinds[topic], time_ns, message)

    def write_chunk(self, name: str, time_ns: int, chunk: ActionChunk, *, sequence: int,
                    instruction: str) -> None:
        """Write a chunk of a variant."""
        profile, period_ns = self._profile, round(1e9 / self._profile.control_rate_hz)
        message = self._make(
            CHUNK, header=self._header(chunk.stamp_ns), sequence=sequence,
            horizon=len(chunk.actions), action_dim=profile.action_dim,
            names=list(profile.actions.names),
            actions=chunk.actions.astype(np.float32).reshape(-1),
            control_period=self._make('builtin_interfaces/msg/Duration',
                                      sec=period_ns // 10**9, nanosec=period_ns % 10**9),
            absolute=True, valid=chunk.valid, reason=chunk.reason, instruction=instruction,
            variant=chunk.stats.variant, **{each: getattr(chunk.stats, each) for each in STAGES})
        self._write(topic_of(name, 'action_chunk'), CHUNK, time_ns, message)

    def write_overlay(self, name: str, time_ns: int, stamp_ns: int, picture: np.ndarray) -> None:
        """Write a picture uint8 RGB [h, w, 3] for a variant."""
        message = self._make(PICTURE, header=self._header(stamp_ns), format='jpeg',
                             data=to_jpeg(picture))
        self._write(topic_of(name, 'overlay'), PICTURE, time_ns, message)

    def _write(self, topic: str, kind: str, time_ns: int, message: Any) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store)
        self._writer.write(self._connections[topic], time_ns,
                           self._store.serialize_cdr(message, kind))

    def _header(self, stamp_ns: int) -> Any:
        stamp = self._make('builtin_interfaces/msg/Time', sec=stamp_ns // 10**9,
                           nanosec=stamp_ns % 10**9)
        return self._make('std_msgs/msg/Header', stamp=stamp, frame_id=self._profile.name)

    def _make(self, kind: str, **values: Any) -> Any:
        """Build a message; plain fields that are not given are empty."""
        made = self._store.types[kind]
        missing = {each.name: _EMPTY[each.type] for each in dataclasses.fields(made)
                   if each.name not in values and each.type in _EMPTY}
        return made(**values, **missing)


def topic_of(variant: str, what: str) -> str:
    """Return the topic of a variant: its name as ROS allows it."""
    word = re.sub(r'\W+', '_', variant).strip('_')
    return f'/{word if word[:1].isalpha() else f"v{word}"}/{what}'
