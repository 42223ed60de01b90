"""The policy as a lifecycle node: cameras, joints and an instruction in, action chunks out."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from ros_pi0_fast.codec.policy_codec import ObservationError
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.msg import ActionChunk as ActionChunkMessage
from ros_pi0_fast.msg import InferenceStats as InferenceStatsMessage
from ros_pi0_fast.node.conversions import ConversionError, stamp_ns, to_rgb
from ros_pi0_fast.node.messages import Counts, chunk_message, stats_message
from ros_pi0_fast.node.observation import Freshness, ObservationAssembler, ObservationRefused
from ros_pi0_fast.node.parameters import declare_parameters, find_problem, path_parameter
from ros_pi0_fast.node.worker import InferenceWorker
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

DEFAULT_CHECKPOINT = 'checkpoints/tabletop'
DEFAULT_PROFILE = 'config/robots/tabletop.yaml'
EXECUTOR_THREADS = 4


class Stopped(RuntimeError):  # noqa: N818
    """The node is to end while it is being configured."""


class PolicyNode(LifecycleNode):
    """Serves one policy on one robot.

    Inputs, the timer and the lifecycle have callback groups of their own, so that parameters can
    be read and pictures come in while the policy is compiled; inference has its own thread.
    """

    def __init__(self) -> None:
        super().__init__('policy_node')
        declare_parameters(self)
        self._engine: Engine | None = None
        self._profile: RobotProfile | None = None
        self._inputs: ObservationAssembler | None = None
        self._worker: InferenceWorker | None = None
        self._connections: list[Any] = []
        self._counts = Counts()
        self._last_stamp_ns = -1
        self._input_group = MutuallyExclusiveCallbackGroup()
        self._timer_group = MutuallyExclusiveCallbackGroup()
        self._chunks = self.create_lifecycle_publisher(
            ActionChunkMessage, 'action_chunk', QoSProfile(depth=1))
        self._stats = self.create_lifecycle_publisher(InferenceStatsMessage, '~/stats', 10)
        self._timer = None
        self.add_on_set_parameters_callback(self._on_parameters)
        if self._value('autostart'):
            self._start_timer = self.create_timer(
                0.0, self._autostart, callback_group=MutuallyExclusiveCallbackGroup())

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _autostart(self) -> None:
        self._start_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- lifecycle -----------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load profile and checkpoint, check them against each other, and compile."""
        log = self.get_logger()
        try:
            self._load()
        except Stopped:
            log.info('stopped while configuring')
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # Whatever it is, its cause is told and the node stays up.
            log.error(f'cannot configure: {type(error).__name__}: {error}')
            self._unload()
            return TransitionCallbackReturn.FAILURE
        log.info(f'configured: {self._profile.name}, variant {self._engine.variant.name}, '
                 f'{self._engine.compilations} executables')
        return TransitionCallbackReturn.SUCCESS

    def _load(self) -> None:
        profile = RobotProfile.load(path_parameter(self, 'robot_profile', DEFAULT_PROFILE))
        folder = path_parameter(self, 'checkpoint', DEFAULT_CHECKPOINT)
        self._tell(f'loading {folder} for {profile.source}')
        checkpoint, codec = load_policy(
            folder, profile, text_tokenizer=path_parameter(self, 'text_tokenizer'),
            fast_tokenizer=path_parameter(self, 'fast_tokenizer'))
        engine = Engine(checkpoint, codec, malformed=self._value('malformed'),
                        max_decode_tokens=self._value('max_decode_tokens') or None)
        engine.warm_up(self._tell)
        self._engine, self._profile = engine, profile
        self._inputs = ObservationAssembler(profile, self._freshness({}))

    def _tell(self, text: str) -> None:
        if not self.context.ok():
            raise Stopped
        self.get_logger().info(text)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and answer observations."""
        self._counts = Counts()
        self._inputs.clear()
        self._inputs.refusals = Counter()
        self._last_stamp_ns = -1
        self._worker = InferenceWorker(self._engine.infer, self._on_chunk, self._on_failure)
        result = super().on_activate(state)
        self._connect()
        self.get_logger().info(f'active: a chunk is asked for {self._value("rate_hz"):g} times '
                               'a second')
        return result

    def _connect(self) -> None:
        for key, source in self._profile.cameras.items():
            kind = CompressedImage if source.transport == 'compressed' else Image
            self._connections.append(self.create_subscription(
                kind, source.topic, partial(self._on_image, key, source.transport),
                qos_profile_sensor_data, callback_group=self._input_group))
        for kind, topic, callback in ((JointState, 'joint_states', self._on_joints),
                                      (String, 'instruction', self._on_instruction)):
            self._connections.append(self.create_subscription(
                kind, topic, callback, 10, callback_group=self._input_group))
        self._set_timer(self._value('rate_hz'))

    def _set_timer(self, rate_hz: float) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
        self._timer = self.create_timer(1 / rate_hz, self._on_timer,
                                        callback_group=self._timer_group)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more inputs, wait for the inference that runs, and publish nothing more."""
        self._disconnect()
        return super().on_deactivate(state)

    def _disconnect(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for subscription in self._connections:
            self.destroy_subscription(subscription)
        self._connections.clear()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give up the policy and its memory."""
        self._unload()
        return TransitionCallbackReturn.SUCCESS

    def _unload(self) -> None:
        self._engine = self._profile = self._inputs = None

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from whatever state."""
        self._disconnect()
        self._unload()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come back to where configure works again."""
        self._disconnect()
        self._unload()
        return TransitionCallbackReturn.SUCCESS

    # --- parameters ----------------------------------------------------------------------

    def _freshness(self, changed: dict[str, Any]) -> Freshness:
        return Freshness(**{name: changed.get(name, self._value(name))
                            for name in ('max_observation_age_s', 'max_camera_skew_s')})

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        problem = find_problem(parameters)
        if problem:
            return SetParametersResult(successful=False, reason=problem)
        changed = {parameter.name: parameter.value for parameter in parameters}
        if self._inputs is not None:
            self._inputs.freshness = self._freshness(changed)
        if 'rate_hz' in changed and self._timer is not None:
            self._set_timer(changed['rate_hz'])
        if 'malformed' in changed and self._engine is not None:
            self._change_malformed(changed['malformed'])
        return SetParametersResult(successful=True)

    def _change_malformed(self, value: str) -> None:
        worker = self._worker
        if worker is None:
            self._engine.malformed = value
            return
        with worker.exclusive:
            self._engine.malformed = value

    # --- inputs --------------------------------------------------------------------------

    def _on_image(self, key: str, transport: str, message: Image | CompressedImage) -> None:
        try:
            pixels = to_rgb(message, transport)
            self._inputs.update_image(key, pixels, stamp_ns(message))
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
        worker = self._worker
        if worker is None:
            return
        try:
            observation = self._inputs.assemble(self.get_clock().now().nanoseconds)
        except ObservationRefused as refused:
            self._publish_refusal(refused)
            return
        if observation.stamp_ns != self._last_stamp_ns:  # Else nothing new was seen.
            self._last_stamp_ns = observation.stamp_ns
            worker.submit(observation)

    # --- outputs -------------------------------------------------------------------------

    def _on_chunk(self, observation: Observation, chunk: ActionChunk) -> None:
        self._counts.last = chunk.stats
        self._counts.malformed += chunk.reason.startswith('malformed')
        self._publish_chunk(observation, chunk)
        self._publish_stats('inference', chunk.reason)

    def _on_failure(self, observation: Observation, error: Exception) -> None:
        if isinstance(error, ObservationError):
            self._publish_refusal(self._inputs.refuse(f'bad observation: {error}'))
            return
        reason = f'inference failed: {type(error).__name__}: {error}'
        self.get_logger().error(reason)
        nothing = np.zeros((0, self._profile.action_dim), np.float32)
        self._publish_chunk(observation, ActionChunk(
            actions=nothing, valid=False, reason=reason, stamp_ns=observation.stamp_ns,
            stats=InferenceStats(variant=self._engine.variant.name)))
        self._publish_stats('failed', reason)

    def _publish_chunk(self, observation: Observation, chunk: ActionChunk) -> None:
        counts = self._counts
        counts.chunks_published += 1
        counts.chunks_valid += chunk.valid
        counts.age_ms = (self.get_clock().now().nanoseconds - observation.stamp_ns) / 1e6
        self._chunks.publish(chunk_message(
            chunk, self._profile, sequence=counts.chunks_published,
            instruction=observation.instruction))

    def _publish_refusal(self, refused: ObservationRefused) -> None:
        self.get_logger().warning(f'refused: {refused}', throttle_duration_sec=5.0)
        self._publish_stats('refused', str(refused))

    def _publish_stats(self, state: str, reason: str) -> None:
        if self._worker is not None:
            self._counts.observations = self._worker.handed_in
        self._stats.publish(stats_message(
            now=self.get_clock().now(), state=state, reason=reason, counts=self._counts,
            variant=self._engine.variant.name, refusals=dict(self._inputs.refusals),
            compilations=self._engine.compilations))


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    node = PolicyNode()
    executor = MultiThreadedExecutor(num_threads=EXECUTOR_THREADS)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        node.get_logger().info('stopping')
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(0)


if __name__ == '__main__':
    main()
