"""The policy as a lifecycle node: cameras, joints and an instruction in, action chunks out."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.compiler import CompilationCacheError, enable_persistent_cache
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.memory import return_free_memory
from ros_pi0_fast.engine.parameters import MemoryLimitError
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import VariantError
from ros_pi0_fast.msg import ActionChunk, InferenceStats
from ros_pi0_fast.node.health import Condition, Health
from ros_pi0_fast.node.outputs import Publishers
from ros_pi0_fast.node.parameters import (
    declare_parameters,
    find_problem,
    resolve_path,
    variant_of,
)
from ros_pi0_fast.node.process import run_to_the_end
from ros_pi0_fast.node.serving import Serving
from ros_pi0_fast.node.trajectory import TrajectoryError, check_positions
from ros_pi0_fast.node.transitions import Stopped, transition

DEFAULT_CHECKPOINT = 'checkpoints/tabletop'
DEFAULT_PROFILE = 'config/robots/tabletop.yaml'


@dataclass(frozen=True)
class _Policy:
    """What configure brings."""

    engine: Engine
    profile: RobotProfile


class PolicyNode(LifecycleNode):
    """Serves one policy on one robot.

    Inputs, the timer and the lifecycle have callback groups of their own, so that parameters can
    be read and pictures come in while the policy is compiled; inference has its own thread. A
    transition that fails leads to `unconfigured`, from where configure works again.
    """

    def __init__(self) -> None:
        super().__init__('policy_node')
        self.in_transition = threading.Lock()
        self.state, self.problem = 'unconfigured', ''
        self._settings = declare_parameters(self)
        self._keep_compiled_code()
        self._settings_lock = threading.Lock()
        self._policy: _Policy | None = None
        self._serving: Serving | None = None
        self._stopping = False
        publisher, latest = self.create_lifecycle_publisher, QoSProfile(depth=1)
        self._publishers = Publishers(
            chunks=publisher(ActionChunk, 'action_chunk', latest),
            trajectories=publisher(JointTrajectory, 'joint_trajectory', latest),
            stats=publisher(InferenceStats, '~/stats', 10),
            kept=publisher(Image, '~/kept_tokens', latest))
        self._health = Health(self, self._condition)
        for name, callback in (('~/profile', self._on_profile), ('~/reset', self._on_reset)):
            self.create_service(Trigger, name, callback,
                                callback_group=MutuallyExclusiveCallbackGroup())
        self.add_on_set_parameters_callback(self._on_parameters)
        if self._settings['autostart']:
            # Steady: simulated time may not have begun.
            self._start_timer = self.create_timer(
                0.0, self._autostart, callback_group=MutuallyExclusiveCallbackGroup(),
                clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _keep_compiled_code(self) -> None:
        folder = resolve_path(self._settings['compilation_cache'])
        if folder is None:
            return
        try:
            enable_persistent_cache(folder)
        except (OSError, CompilationCacheError) as error:  # Then every start compiles.
            self.get_logger().warning(f'compilation_cache: {error}')

    def _autostart(self) -> None:
        self._start_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- lifecycle -----------------------------------------------------------------------

    @transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load profile and checkpoint, check them against each other, and compile."""
        with self._settings_lock:
            settings = dict(self._settings)
        profile = RobotProfile.load(resolve_path(settings['robot_profile'], DEFAULT_PROFILE))
        if settings['joint_trajectory.enabled']:
            check_positions(profile)
        folder = resolve_path(settings['checkpoint'], DEFAULT_CHECKPOINT)
        self._tell(f'loading {folder} for {profile.source}')
        checkpoint, codec = load_policy(
            folder, profile, text_tokenizer=resolve_path(settings['text_tokenizer']),
            fast_tokenizer=resolve_path(settings['fast_tokenizer']))
        engine = Engine(checkpoint, codec, variant=variant_of(settings),
                        malformed=settings['malformed'],
                        max_decode_tokens=settings['max_decode_tokens'] or None,
                        memory_limit_mb=settings['memory_limit_mb'])
        engine.warm_up(self._tell)
        self._tell(f'configured: {profile.name}, variant {engine.variant.name}, '
                   f'{engine.compilations} executables')
        self._policy = _Policy(engine, profile)
        return super().on_configure(state)

    def _tell(self, text: str) -> None:
        self._check_stop()
        self.get_logger().info(text)

    def _check_stop(self) -> None:
        if self._stopping or not self.context.ok():
            raise Stopped

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and answer observations."""
        self._check_stop()
        with self._settings_lock:
            rate_hz = self._settings['rate_hz']
            self._serving = Serving(
                self, self._policy.engine, self._policy.profile, publishers=self._publishers,
                settings=self._settings)
        result = super().on_activate(state)
        self.get_logger().info(f'active: a chunk is asked for {rate_hz:g} times a second')
        return result

    @transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish nothing more, take no more inputs, and wait for the inference that runs."""
        self._stop_serving()
        return super().on_deactivate(state)

    @transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give up the policy and its memory."""
        self._give_up_policy()
        return super().on_cleanup(state)

    @transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from whatever state."""
        self._stop_serving()
        self._give_up_policy()
        return super().on_shutdown(state)

    @transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come back to where configure works again, whatever else fails on the way."""
        try:
            self._stop_serving()
        except Exception as error:
            self.get_logger().error(f'cannot stop serving: {type(error).__name__}: {error}')
            self._serving = None
        self._give_up_policy()
        super().on_deactivate(state)
        return super().on_error(state)

    def _stop_serving(self, timeout_s: float | None = None) -> bool:
        serving = self._serving
        if serving is not None and not serving.stop(timeout_s):
            return False
        self._serving = None
        return True

    def _give_up_policy(self) -> None:
        self._policy = None
        gc.collect()  # Weights are large, and must be gone before others are loaded.
        return_free_memory()

    def stop(self, timeout_s: float) -> bool:
        """Stop whatever the node does, from whatever state.

        Returns:
            Whether nothing of it runs any more: a compilation cannot be interrupted.
        """
        self._stopping = True
        if not self.in_transition.acquire(timeout=timeout_s):
            return False
        try:
            policy = self._policy
            return self._stop_serving(timeout_s) and (
                policy is None or policy.engine.wait(timeout_s))
        finally:
            self.in_transition.release()

    def _on_profile(self, request: Trigger.Request, response: Trigger.Response,
                    ) -> Trigger.Response:
        """Trace the next chunks."""
        with self._settings_lock:
            folder = resolve_path(self._settings['profile_folder'])
            chunks, serving = self._settings['profile_chunks'], self._serving
        try:
            if serving is None:
                raise RuntimeError('the node is not active')
            if folder is None:
                raise RuntimeError("profile_folder: '', expected a folder")
            written = serving.profiler.request(folder, chunks)
            response.success = True
            response.message = f'the next {chunks} chunks are traced to {written}'
        except (RuntimeError, OSError) as error:
            response.success, response.message = False, str(error)
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response,
                  ) -> Trigger.Response:
        """Let the next chunk know nothing of those before."""
        with self._settings_lock:
            serving = self._serving
        response.success = serving is not None
        response.message = 'the node is not active' if serving is None else (
            'the next chunk knows nothing of those before')
        if serving is not None:
            serving.forget()
        return response

    def _condition(self) -> Condition:
        serving = self._serving
        if serving is not None and self.state == 'active':
            return serving.condition
        return Condition(state=self.state, problem=self.problem, failed=bool(self.problem))

    # --- parameters ----------------------------------------------------------------------

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        with self._settings_lock:
            configured = self._policy is not None or self.in_transition.locked()
            # Kept here, since rclpy stores the values only after this callback.
            changed = {parameter.name: parameter.value for parameter in parameters
                       if parameter.name in self._settings}
            problem = (find_problem(parameters, configured=configured)
                       or self._find_conflict(self._settings | changed))
            if problem:
                return SetParametersResult(successful=False, reason=problem)
            self._settings.update(changed)
            if self._serving is not None:
                self._serving.apply(self._settings, set(changed))
        return SetParametersResult(successful=True)

    def _find_conflict(self, settings: dict[str, Any]) -> str:
        """Return why the node cannot run with these values of the parameters, or ''."""
        try:
            variant = variant_of(settings)
            if self._policy is not None:
                self._policy.engine.check(variant)
                if settings['joint_trajectory.enabled']:
                    check_positions(self._policy.profile)
        except (VariantError, MemoryLimitError, TrajectoryError) as error:
            return str(error)
        return ''


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    run_to_the_end(PolicyNode())


if __name__ == '__main__':
    main()
