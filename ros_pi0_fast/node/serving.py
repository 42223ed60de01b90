"""What the node does while it is active: inputs in, one inference at a time, chunks out."""

from __future__ import annotations

import threading
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from ros_pi0_fast.codec.policy_codec import ObservationError
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.memory import device_memory_bytes
from ros_pi0_fast.engine.parameters import MIB
from ros_pi0_fast.engine.profiling import Profiler
from ros_pi0_fast.engine.tuner import Tuner
from ros_pi0_fast.engine.variant import Variant, parameter_of
from ros_pi0_fast.node.conversions import ConversionError, stamp_ns, to_rgb
from ros_pi0_fast.node.health import Condition
from ros_pi0_fast.node.observation import Freshness, ObservationAssembler, ObservationRefused
from ros_pi0_fast.node.outputs import Outputs, Publishers, Rules
from ros_pi0_fast.node.parameters import variant_of
from ros_pi0_fast.node.worker import InferenceWorker
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

LOG_PERIOD_S = 5.0
"""Repeated refusals and failures are logged this often; all of them are on ~/stats."""
ENGINE_PARAMETERS = {'malformed', 'latency_budget_ms',
                     *(parameter_of(each.name) for each in fields(Variant))}
"""What a change of has the engine asked anew."""


class Serving:
    """Serves from one activation to the next deactivation.

    What belongs to an activation lives and ends with this object, so that a callback that is still
    running when the node is deactivated finds all it needs, and publishes nothing.

    Args:
        node: Subscribes and counts the time.
        engine: Compiled.
        profile: The robot.
        publishers: Of the node.
        settings: Values of the parameters that change while the node runs.
    """

    def __init__(self, node: Node, engine: Engine, profile: RobotProfile, *,
                 publishers: Publishers, settings: dict[str, Any]):
        self._node, self._engine, self._profile = node, engine, profile
        self._last_stamp_ns = -1
        self._inputs = ObservationAssembler(profile, _freshness(settings))
        self.outputs = Outputs(node, engine, profile, publishers, Rules.of(settings),
                               self._inputs.refusals)
        self.last_problem = ''
        """Why there was no valid chunk the last time; empty where there was one."""
        self._failure = self._decision = ''
        self.profiler = Profiler()
        self._lock = threading.Lock()
        self._open = True
        self._timer, self._timer_group = None, MutuallyExclusiveCallbackGroup()
        self._subscriptions: list[Any] = []
        engine.forget()
        self._tuner = Tuner(engine)
        self._ask(settings)
        self._worker = InferenceWorker(self._infer, self._on_chunk, self._on_failure,
                                       heard=node.context.ok)
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
        self.outputs.rules = Rules.of(settings)
        if changed & ENGINE_PARAMETERS:
            self._ask(settings)
        if 'rate_hz' in changed:
            self._set_rate(settings['rate_hz'])

    def _ask(self, settings: dict[str, Any]) -> None:
        self._tuner.ask(variant_of(settings), settings['malformed'],
                        settings['latency_budget_ms'])

    def forget(self) -> None:
        """Let the next chunk know nothing of those before."""
        self._engine.forget()

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
        self.outputs.close()
        with self._lock:
            self._open = False
            timer, self._timer = self._timer, None
        if timer is not None:
            self._node.destroy_timer(timer)
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
        ended = self._worker.stop(timeout_s)
        self.profiler.close()
        # What is being compiled to be measured need not be waited for, but at the end of all.
        measured = self._tuner.stop(0.0 if timeout_s is None else timeout_s)
        return ended and (measured or timeout_s is None)

    @property
    def condition(self) -> Condition:
        """How it goes."""
        recent, counts, engine = self.outputs.recent, self.outputs.counts, self._engine
        problem = '' if recent.latencies_ms else self.last_problem or 'nothing new to answer'
        if recent.missed:
            problem = problem or 'chunks were late (deadline_ms)'
        return Condition(
            state='active', problem=engine.failure or problem, failed=bool(engine.failure),
            hardware=self._profile.name, values={
                'variant': engine.variant.name, 'rate_hz': recent.rate_hz,
                'latency_p50_ms': recent.percentile(50), 'latency_p99_ms': recent.percentile(99),
                'deadline_misses': counts.deadline_misses,
                'dropped_observations': self._worker.dropped,
                'refused': sum(self._inputs.refusals.values()), 'malformed': counts.malformed,
                'over_limits': counts.over_limits, 'chunks_published': counts.chunks_published,
                'compilations': engine.compilations,
                'device_memory_mb': device_memory_bytes() / MIB,
                'last_problem': self.last_problem})

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
            if self._inputs.update_instruction(message.data):
                self._engine.forget()
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
        self._tuner.served(observation, chunk)
        self._publish(observation, chunk)
        self.outputs.kept(observation, chunk.stats)
        self._report_engine()

    def _publish(self, observation: Observation, chunk: ActionChunk) -> None:
        state, self.last_problem = self.outputs.chunk(observation, chunk)
        self._publish_stats(state, self.last_problem)

    def _report_engine(self) -> None:
        """Tell, once, of a variant that could not be compiled, and of what a budget decided."""
        failure, self._failure = self._failure, self._engine.failure
        if self._failure and self._failure != failure:
            self._node.get_logger().error(f'cannot run {self._failure}')
            self._publish_stats('failed', self._failure)
        report = self._tuner.report
        running, self._decision = self._decision, report.decision.partition(':')[0]
        if self._decision and self._decision != running:
            self._node.get_logger().info(f'latency_budget_ms: {report.decision}')

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
        self.outputs.chunk(observation, ActionChunk(
            actions=nothing, valid=False, reason=reason, stamp_ns=observation.stamp_ns,
            stats=InferenceStats(variant=self._engine.variant.name)))
        self.last_problem = reason
        self._publish_stats('failed', reason)

    def _publish_refusal(self, refused: ObservationRefused) -> None:
        self.last_problem = str(refused)
        self._node.get_logger().warning(f'refused: {refused}',
                                        throttle_duration_sec=LOG_PERIOD_S)
        self._publish_stats('refused', str(refused))

    def _publish_stats(self, state: str, reason: str) -> None:
        counts = self.outputs.counts
        counts.observations = self._worker.handed_in
        counts.observations_dropped = self._worker.dropped
        self.outputs.stats(state, reason, self._tuner.report)


def _freshness(settings: dict[str, Any]) -> Freshness:
    return Freshness(max_observation_age_s=settings['max_observation_age_s'],
                     max_camera_skew_s=settings['max_camera_skew_s'])
