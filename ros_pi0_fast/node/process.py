"""The process of the node: spins it, and ends it cleanly and soon."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import rclpy
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor

if TYPE_CHECKING:
    from ros_pi0_fast.node.policy_node import PolicyNode

EXECUTOR_THREADS = 5
SWITCH_INTERVAL_S = 5e-4
"""How long a thread keeps Python's interpreter while another wants it. An inference wants it some
tens of times, and by default waits 5 ms each time where a variant is traced meanwhile."""
STOP_TIMEOUT_S = 2.0
"""How long the end of the process waits for compilation or inference. `ros2 launch` kills what
has not ended 10 s after SIGINT."""


def run_to_the_end(node: PolicyNode) -> None:
    """Spin a node until it is stopped, then end the process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
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
