"""The policy as a lifecycle node: cameras, joints and an instruction in, action chunks out."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.compiler import enable_persistent_cache
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.parameters import MemoryLimitError
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import VariantError
from ros_pi0_fast.msg import ActionChunk, InferenceStats
from ros_pi0_fast.node.parameters import (
    declare_parameters,
    find_problem,
    resolve_path,
    variant_of,
)
from ros_pi0_fast.node.serving import Serving

DEFAULT_CHECKPOINT = 'checkpoints/tabletop'
DEFAULT_PROFILE = 'config/robots/tabletop.yaml'
EXECUTOR_THREADS = 4
STOP_TIMEOUT_S = 2.0
"""How long the end of the process waits for compilation or inference. `ros2 launch` kills what
has not ended 10 s after SIGINT."""

Transition = Callable[['PolicyNode', LifecycleState], TransitionCallbackReturn]


class Stopped(RuntimeError):  # noqa: N818
    """The node is to end while it is being configured."""


def _transition(callback: Transition) -> Transition:
    """Run one transition at a time, and tell why one failed: rclpy itself keeps that silent."""
    @functools.wraps(callback)
    def run(node: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
        with node.in_transition:
            try:
                return callback(node, state)
            except Stopped:
                node.get_logger().info('stopped on the way')
                return TransitionCallbackReturn.FAILURE
            except Exception as error:  # Whatever it is, its cause is told and the node stays up.
                node.get_logger().error(f'cannot {callback.__name__.removeprefix("on_")}: '
                                        f'{type(error).__name__}: {error}')
                return TransitionCallbackReturn.ERROR
    return run


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
        self._settings = declare_parameters(self)
        self._keep_compiled_code()
        self._settings_lock = threading.Lock()
        self._policy: _Policy | None = None
        self._serving: Serving | None = None
        self._stopping = False
        self._chunks = self.create_lifecycle_publisher(
            ActionChunk, 'action_chunk', QoSProfile(depth=1))
        self._stats = self.create_lifecycle_publisher(InferenceStats, '~/stats', 10)
        self._kept = self.create_lifecycle_publisher(Image, '~/kept_tokens', QoSProfile(depth=1))
        self.create_service(Trigger, '~/profile', self._on_profile,
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
        except OSError as error:  # Then every start compiles.
            self.get_logger().warning(f'compilation_cache: {error}')

    def _autostart(self) -> None:
        self._start_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- lifecycle -----------------------------------------------------------------------

    @_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load profile and checkpoint, check them against each other, and compile."""
        with self._settings_lock:
            settings = dict(self._settings)
        profile = RobotProfile.load(resolve_path(settings['robot_profile'], DEFAULT_PROFILE))
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

    @_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and answer observations."""
        self._check_stop()
        with self._settings_lock:
            rate_hz = self._settings['rate_hz']
            self._serving = Serving(
                self, self._policy.engine, self._policy.profile, chunks=self._chunks,
                stats=self._stats, kept=self._kept, settings=self._settings)
        result = super().on_activate(state)
        self.get_logger().info(f'active: a chunk is asked for {rate_hz:g} times a second')
        return result

    @_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish nothing more, take no more inputs, and wait for the inference that runs."""
        self._stop_serving()
        return super().on_deactivate(state)

    @_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give up the policy and its memory."""
        self._policy = None
        return super().on_cleanup(state)

    @_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from whatever state."""
        self._stop_serving()
        self._policy = None
        return super().on_shutdown(state)

    @_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come back to where configure works again."""
        self._stop_serving()
        self._policy = None
        super().on_deactivate(state)
        return super().on_error(state)

    def _stop_serving(self, timeout_s: float | None = None) -> bool:
        serving = self._serving
        if serving is not None and not serving.stop(timeout_s):
            return False
        self._serving = None
        return True

    def stop(self, timeout_s: float) -> bool:
        """Stop whatever the node does, from whatever state.

        Returns:
            Whether nothing of it runs any more: a compilation cannot be interrupted.
        """
        self._stopping = True
        if not self.in_transition.acquire(timeout=timeout_s):
            return False
        try:
            return self._stop_serving(timeout_s)
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
        """Return why no variant can run with these values of the parameters, or ''."""
        try:
            variant = variant_of(settings)
            if self._policy is not None:
                self._policy.engine.check(variant)
        except (VariantError, MemoryLimitError) as error:
            return str(error)
        return ''


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    node = PolicyNode()
    executor = MultiThreadedExecutor(num_threads=EXECUTOR_THREADS)
    executor.add_node(node)
    code = 0
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass  # How a node is asked to end.
    except Exception:
        node.get_logger().fatal(traceback.format_exc())
        code = 1
    _ignore_signals()
    node.get_logger().info('stopping')
    _close(node, executor, code)
    sys.exit(code)


def _ignore_signals() -> None:
    """Let a second Ctrl-C, or launch's SIGTERM, not tear the end apart: it is short anyway."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _close(node: PolicyNode, executor: MultiThreadedExecutor, code: int) -> None:
    if not node.stop(STOP_TIMEOUT_S):
        # Python would wait for the thread that compiles; XLA does not let it be interrupted.
        node.get_logger().info('ending while a compilation or inference still runs')
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
