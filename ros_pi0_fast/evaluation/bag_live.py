"""Scores the node that runs while `ros2 bag play` plays a bag to it, by the metrics of a replay.

    ros2 launch ros_pi0_fast replay.launch.xml bag:=BAG out:=DIR

The node must follow the bag's clock (use_sim_time). Only the robot's inputs are played, not what
else the bag holds. Rows are as in an offline replay, named by the variant that ran, so that a
variant that is toggled meanwhile has rows of its own; tokens are not on the wire. With the folder
of an offline replay of the same bag as `reference`, chunks are compared with its reference's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.bag_live_report import LiveSource, write_live_report
from ros_pi0_fast.evaluation.bag_reader import INSTRUCTION, JOINTS
from ros_pi0_fast.evaluation.bag_rows import Row
from ros_pi0_fast.evaluation.bag_variants import NAMED
from ros_pi0_fast.msg import ActionChunk, InferenceStats
from ros_pi0_fast.node.conversions import stamp_ns

NODE = 'policy_node'
DELAY_S, LINGER_S = 1.0, 2.0
"""Before the first message, for discovery; after the last one, for its chunk."""
CLOCK_HZ = 100
QUEUE = 100
_NAMES = {variant.name: name for name, variant in NAMED.items()}
_PARAMETERS = (
    ('bag', '', 'folder of the rosbag2 to play'),
    ('robot_profile', '', 'YAML file of the robot'),
    ('checkpoint', '', 'folder of the checkpoint: its statistics say how far actions go'),
    ('out', 'out/live', 'folder for the report'),
    ('reference', '', 'folder of an offline replay of the same bag to compare with; empty: none'),
    ('actions', '', 'topic of what was commanded or executed; empty: a usual one'),
    ('remap', [''], "the node's topic := the bag's topic, for each that differs"),
    ('rate', 1.0, 'how fast the bag is played'),
    ('rate_hz', 5.0, 'how often the node asks for a chunk; a period is deadline and budget'),
    ('start_timeout_s', 240.0, 'the node must be active after this time'))


class ReplayScorer(Node):
    """Plays a bag to the policy node beside it and keeps what it answers."""

    def __init__(self) -> None:
        super().__init__('replay_scorer')
        for name, default, text in _PARAMETERS:
            self.declare_parameter(name, default,
                                   ParameterDescriptor(description=text, read_only=True))
        for name in ('bag', 'robot_profile', 'checkpoint'):
            if not self.value(name):
                raise ValueError(f"{name}: found '', expected a path")
        self.profile = RobotProfile.load(self.value('robot_profile'))
        self.remaps = _remaps(self.value('remap'))
        self._chunks: list[ActionChunk] = []
        self._stats: dict[int, InferenceStats] = {}
        self.refused: dict[str, int] = {}
        self.create_subscription(ActionChunk, 'action_chunk', self._chunks.append,
                                 QoSProfile(depth=QUEUE))
        self.create_subscription(InferenceStats, f'{NODE}/stats', self._on_stats, QUEUE)
        self._watched = [self.create_publisher(kind, topic, qos)
                         for kind, topic, qos in _probes(self.profile)]
        self._player: subprocess.Popen | None = None

    def value(self, name: str):
        """Return a parameter's value."""
        return self.get_parameter(name).value

    def _on_stats(self, message: InferenceStats) -> None:
        self.refused = dict(zip(message.refusal_reasons, map(int, message.refusal_counts),
                                strict=True))
        if message.state == 'inference':
            self._stats[message.chunks_published] = message

    def run(self) -> None:
        """Wait for the node, play the bag, and wait for the last chunk.

        Raises:
            TimeoutError: the node did not become active.
            RuntimeError: the bag could not be played.
        """
        end = time.monotonic() + self.value('start_timeout_s')
        self.get_logger().info(f'waiting for {NODE} to be active')
        while not all(each.get_subscription_count() for each in self._watched):
            if time.monotonic() > end:
                raise TimeoutError(f'{NODE} is not active after '
                                   f'{self.value("start_timeout_s"):g} s')
            rclpy.spin_once(self, timeout_sec=0.1)
        while self._watched:  # What is played comes from the player alone.
            self.destroy_publisher(self._watched.pop())
        self._player = subprocess.Popen(self._command())
        while self._player.poll() is None:
            rclpy.spin_once(self, timeout_sec=0.05)
        end = time.monotonic() + LINGER_S
        while time.monotonic() < end:
            rclpy.spin_once(self, timeout_sec=0.05)
        if self._player.returncode:
            raise RuntimeError(f'ros2 bag play ended with {self._player.returncode}')

    def _command(self) -> list[str]:
        topics = {f'/{name.lstrip("/")}' for name in
                  (*(source.topic for source in self.profile.cameras.values()), JOINTS,
                   INSTRUCTION)}
        names = {topic: self.remaps.get(topic, topic) for topic in sorted(topics)}
        renamed = [f'{bag}:={self.resolve_topic_name(topic.lstrip("/"))}'
                   for topic, bag in names.items()]
        return ['ros2', 'bag', 'play', self.value('bag'), '--clock', str(CLOCK_HZ), '--delay',
                str(DELAY_S), '--rate', str(self.value('rate')), '--topics', *names.values(),
                '--remap', *renamed]

    def stop(self) -> None:
        """End the player, if it still runs."""
        if self._player is not None and self._player.poll() is None:
            self._player.terminate()
            self._player.wait()

    def rows(self) -> list[Row]:
        """Return a row for each chunk that came, in the order of their stamps."""
        chunks = sorted(self._chunks, key=stamp_ns)
        return [self._row(index, chunk, self._stats.get(chunk.sequence))
                for index, chunk in enumerate(chunks)]

    def _row(self, index: int, chunk: ActionChunk, stats: InferenceStats | None) -> Row:
        """Return the row of a chunk; what only the statistics know is 0 where they were lost."""
        times = {name: float(getattr(chunk, name)) for name in
                 ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')}
        counts = {} if stats is None else {
            **{name: int(getattr(stats, name)) for name in (
                'prompt_tokens', 'prefix_tokens', 'generated_tokens', 'target_passes',
                'draft_length', 'drafted_tokens', 'accepted_tokens')},
            'kept': dict(zip(stats.cameras, map(int, stats.kept_tokens), strict=True))}
        return Row(index=index, time_ns=stamp_ns(chunk), stamp_ns=stamp_ns(chunk),
                   instruction=chunk.instruction,
                   variant=_NAMES.get(chunk.variant, chunk.variant), valid=chunk.valid,
                   reason=chunk.reason, actions=np.array(chunk.actions, np.float32), **times,
                   **counts)


def _probes(profile: RobotProfile) -> list[tuple]:
    """Return type, topic and QoS of what the node subscribes once it is active."""
    from sensor_msgs.msg import CompressedImage, Image, JointState

    kinds = {'compressed': CompressedImage, 'raw': Image}
    return [*((kinds[source.transport], source.topic, qos_profile_sensor_data)
              for source in profile.cameras.values()),
            (JointState, JOINTS.lstrip('/'), 10)]


def _remaps(words: list[str]) -> dict[str, str]:
    found: Mapping[str, str] = dict(word.split(':=', 1) for word in words if ':=' in word)
    return {f'/{name.lstrip("/")}': f'/{topic.lstrip("/")}' for name, topic in found.items()}


def main() -> None:
    """Play, score and write; exits with 1 where that cannot be done."""
    rclpy.init()
    node, status = None, 1
    try:
        node = ReplayScorer()
        interrupted = False
        try:
            node.run()
        except (KeyboardInterrupt, ExternalShutdownException):
            interrupted = True  # What came so far is still worth its report.
        value = node.value
        lines = write_live_report(Path(value('out')), node.rows(), node.profile, LiveSource(
            bag=Path(value('bag')), checkpoint=Path(value('checkpoint')),
            reference=Path(value('reference')) if value('reference') else None,
            actions=value('actions'), rate_hz=value('rate_hz'), refused=node.refused,
            complete=not interrupted))
        print('\n'.join(lines), flush=True)
        status = 0
    except (ValueError, RuntimeError, OSError) as error:  # TimeoutError is an OSError.
        print(f'replay_scorer: {error}', file=sys.stderr, flush=True)
    finally:
        if node is not None:
            node.stop()
            node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(status)


if __name__ == '__main__':
    main()
