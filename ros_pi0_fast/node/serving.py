"""What the node does while it is active: inputs in, one inference at a time, chunks out."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from ros_pi0_fast.codec.policy_codec import ObservationError
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.profiling import Profiler
from ros_pi0_fast.node.conversions import ConversionError, stamp_ns, to_rgb
from ros_pi0_fast.node.messages import Counts, chunk_message, kept_message, stats_message
from ros_pi0_fast.node.observation import Freshness, ObservationAssembler, ObservationRefused
from ros_pi0_fast.node.parameters import variant_of
from ros_pi0_fast.node.worker import InferenceWorker
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

LOG_PERIOD_S = 5.0
"""Repeated refusals and failures are logged this often; all of them are on ~/stats."""


class Serving:
    """Serves from one activation to the next deactivation.

    What belongs to an activation lives and ends with this object, so that a callback that is still
    running when the node is deactivated finds all it needs, and publishes nothing.

    Args:
        node: Subscribes and counts the time.
        engine: Compiled.
        profile: The robot.
        chunks, stats, kept: Publishers; kept is of pictures of what pruning kept.
        settings: Values of the parameters that change while the node runs.
    """

    def __init__(self, node: Node, engine: Engine, profile: RobotProfile, *, chunks: Publisher,
                 stats: Publisher, kept: Publisher, settings: dict[str, Any]):
        self._node, self._engine, self._profile = node, engine, profile
        self._chunks, self._stats, self._kept = chunks, stats, kept
        self._overlay = settings['pruning.overlay']
        self._counts = Counts()
        self._last_stamp_ns = -1
        self._inputs = ObservationAssembler(profile, _freshness(settings))
        self._failure = ''
        self.profiler = Profiler()
        self._lock = threading.Lock()
        self._open = True
        self._timer, self._timer_group = None, MutuallyExclusiveCallbackGroup()
        self._subscriptions: list[Any] = []
        engine.request(variant=variant_of(settings), malformed=settings['malformed'])
        self._worker = InferenceWorker(self._infer, self._on_chunk, self._on_failure)
        try:
            self._subscribe()
            self._set_rate(settings['rate_hz'])
        except Exception:
            self.stop()
            raise

    def _subscribe(self) -> None:
        group = MutuallyExclusiveCallbackGroup()
        for key, source in self._profile.cameras.items():
            kind = CompressedImage if source.transport == 'compressed' else Image
            self._subscriptions.append(self._node.create_subscription(
                kind, source.topic, partial(self._on_image, key, source.transport),
                qos_profile_sensor_data, callback_group=group))
        for kind, topic, callback in ((JointState, 'joint_states', self._on_joints),
                                      (String, 'instruction', self._on_instruction)):
            self._subscriptions.append(self._node.create_subscription(
                kind, topic, callback, 10, callback_group=group))

    def apply(self, settings: dict[str, Any], changed: set[str]) -> None:
        """Take new values of parameters; `changed` names those that are new."""
        self._inputs.freshness = _freshness(settings)
        self._overlay = settings['pruning.overlay']
        self._engine.request(variant=variant_of(settings), malformed=settings['malformed'])
        if 'rate_hz' in changed:
            self._set_rate(settings['rate_hz'])

    def _set_rate(self, rate_hz: float) -> None:
        with self._lock:
            if not self._open:
                return
            if self._timer is not None:
                self._node.destroy_timer(self._timer)
            self._timer = self._node.create_timer(1 / rate_hz, self._on_timer,
                                                  callback_group=self._timer_group)

    def stop(self, timeout_s: float | None = None) -> bool:
        """Publish nothing more, at once; then wait for the inference that runs.

        Returns:
            Whether it has ended within the time.
        """
        with self._lock:
            self._open = False
            timer, self._timer = self._timer, None
        if timer is not None:
            self._node.destroy_timer(timer)
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
        ended = self._worker.stop(timeout_s)
        self.profiler.close()
        return ended

    # --- inputs --------------------------------------------------------------------------

    def _on_image(self, key: str, transport: str, message: Image | CompressedImage) -> None:
        try:
            self._inputs.update_image(key, to_rgb(message, transport), stamp_ns(message))
        except ConversionError as error:
            self._publish_refusal(self._inputs.refuse(f'bad image: {key}: {error}'))
        except ObservationRefused as refused:
            self._publish_refusal(refused)

    def _on_joints(self, message: JointState) -> None:
        try:
            self._inputs.update_joints(message.name, message.position, stamp_ns(message))
        except ObservationRefused as refused:
            self._publish_refusal(refused)

    def _on_instruction(self, message: String) -> None:
        try:
            self._inputs.update_instruction(message.data)
        except ObservationRefused as refused:
            self._publish_refusal(refused)

    def _on_timer(self) -> None:
        try:
            observation = self._inputs.assemble(self._now_ns())
        except ObservationRefused as refused:
            self._publish_refusal(refused)
            return
        if observation.stamp_ns != self._last_stamp_ns:  # Else nothing new was seen.
            self._last_stamp_ns = observation.stamp_ns
            self._worker.submit(observation)

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    # --- inference, in the worker's thread -----------------------------------------------

    def _infer(self, observation: Observation) -> ActionChunk:
        self._inputs.check_fresh(observation, self._now_ns())
        with self.profiler.inference():
            chunk = self._engine.infer(observation)
        self._inputs.check_wanted(observation)
        return chunk

    def _on_chunk(self, observation: Observation, chunk: ActionChunk) -> None:
        self._counts.last = chunk.stats
        self._counts.malformed += chunk.reason.startswith('malformed')
        self._publish_chunk(observation, chunk)
        self._publish_stats('inference', chunk.reason)
        if self._overlay:
            self._publish_kept(kept_message(observation, chunk.stats, self._profile))
        self._report_failure()

    def _report_failure(self) -> None:
        """Tell, once, of a variant that was asked for and could not be compiled."""
        failure, self._failure = self._failure, self._engine.failure
        if self._failure and self._failure != failure:
            self._node.get_logger().error(f'cannot run {self._failure}')
            self._publish_stats('failed', self._failure)

    def _on_failure(self, observation: Observation, error: Exception) -> None:
        if isinstance(error, ObservationRefused):
            self._publish_refusal(error)
            return
        if isinstance(error, ObservationError):
            self._publish_refusal(self._inputs.refuse(f'bad observation: {error}'))
            return
        reason = f'inference failed: {type(error).__name__}: {error}'
        self._node.get_logger().error(reason, throttle_duration_sec=LOG_PERIOD_S)
        nothing = np.zeros((0, self._profile.action_dim), np.float32)
        self._publish_chunk(observation, ActionChunk(
            actions=nothing, valid=False, reason=reason, stamp_ns=observation.stamp_ns,
            stats=InferenceStats(variant=self._engine.variant.name)))
        self._publish_stats('failed', reason)

    # --- outputs -------------------------------------------------------------------------

    def _publish_chunk(self, observation: Observation, chunk: ActionChunk) -> None:
        with self._lock:
            if not self._open:
                return
            counts = self._counts
            counts.chunks_published += 1
            counts.chunks_valid += chunk.valid
            counts.age_ms = (self._now_ns() - observation.stamp_ns) / 1e6
            self._chunks.publish(chunk_message(
                chunk, self._profile, sequence=counts.chunks_published,
                instruction=observation.instruction))

    def _publish_kept(self, picture: Image) -> None:
        with self._lock:
            if self._open:
                self._kept.publish(picture)

    def _publish_refusal(self, refused: ObservationRefused) -> None:
        self._node.get_logger().warning(f'refused: {refused}',
                                        throttle_duration_sec=LOG_PERIOD_S)
        self._publish_stats('refused', str(refused))

    def _publish_stats(self, state: str, reason: str) -> None:
        with self._lock:
            if not self._open:
                return
            self._counts.observations = self._worker.handed_in
            pending = self._engine.pending
            self._stats.publish(stats_message(
                now=self._node.get_clock().now(), state=state, reason=reason,
                counts=self._counts, variant=self._engine.variant.name,
                pending_variant='' if pending is None else pending.name,
                refusals=dict(self._inputs.refusals), compilations=self._engine.compilations,
                weight_bytes=self._engine.weight_bytes))


def _freshness(settings: dict[str, Any]) -> Freshness:
    return Freshness(max_observation_age_s=settings['max_observation_age_s'],
                     max_camera_skew_s=settings['max_camera_skew_s'])
