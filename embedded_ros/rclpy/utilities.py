"""The default context, and the arguments that are not ROS'."""

import sys
import threading

from rclpy._arguments import split_arguments
from rclpy.context import Context

_lock = threading.RLock()
_default: Context | None = None


def get_default_context(*, shutting_down: bool = False) -> Context:
    """Return the context of `rclpy.init()`; with `shutting_down` the next call makes a new one."""
    global _default
    with _lock:
        context = _default = _default or Context()
        if shutting_down:
            _default = None
        return context


def ok(*, context: Context | None = None) -> bool:
    """Tell whether a context runs."""
    return (context or get_default_context()).ok()


def shutdown(*, context: Context | None = None) -> None:
    """End a context; raises RuntimeError when it does not run."""
    (context or get_default_context(shutting_down=True)).shutdown()


def try_shutdown(*, context: Context | None = None) -> None:
    """End a context if it runs."""
    (context or get_default_context(shutting_down=True)).try_shutdown()


def remove_ros_args(args: list[str] | None = None) -> list[str]:
    """Return the arguments (`sys.argv` when None) without those of `--ros-args`."""
    return split_arguments(sys.argv if args is None else list(args))[0]
