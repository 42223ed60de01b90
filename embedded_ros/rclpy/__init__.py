"""The client library of ROS 2 for Python: the subset that `embedded_ros` has.

This is not the real rclpy. It has the same modules, names and behaviour as far as it goes, over
the same wire, for machines without ROS 2.
"""

from types import TracebackType
from typing import TYPE_CHECKING

from rclpy import signals
from rclpy.context import Context
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.utilities import get_default_context, ok
from rclpy.utilities import shutdown as _shutdown
from rclpy.utilities import try_shutdown as _try_shutdown

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node

__all__ = ['Context', 'Future', 'Parameter', 'create_node', 'get_default_context',
           'get_global_executor', 'init', 'ok', 'shutdown', 'spin', 'spin_once',
           'spin_until_future_complete', 'try_shutdown']

_global_executor: 'Executor | None' = None


class InitContextManager:
    """What `init` returns: ends the context when a `with` block ends."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __enter__(self) -> 'InitContextManager':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.context.try_shutdown()


def init(*, args: list[str] | None = None, context: Context | None = None,
         domain_id: int | None = None,
         signal_handler_options: SignalHandlerOptions | None = None) -> InitContextManager:
    """Start ROS in this process, by the arguments after `--ros-args` (`sys.argv` when None).

    Raises RuntimeError when the context runs already.
    """
    if signal_handler_options is None:
        default = context is None
        signal_handler_options = SignalHandlerOptions.ALL if default else SignalHandlerOptions.NO
    context = context or get_default_context()
    context.init(args, domain_id=domain_id)
    signals.install_signal_handlers(signal_handler_options)
    return InitContextManager(context)


def shutdown(*, context: Context | None = None, uninstall_handlers: bool | None = None) -> None:
    """End ROS in this process; raises RuntimeError when it does not run."""
    _forget_global_executor(context)
    _shutdown(context=context)
    if uninstall_handlers or (uninstall_handlers is None and context is None):
        signals.uninstall_signal_handlers()


def try_shutdown(*, context: Context | None = None,
                 uninstall_handlers: bool | None = None) -> None:
    """End ROS in this process if it runs."""
    _forget_global_executor(context)
    _try_shutdown(context=context)
    if uninstall_handlers or (uninstall_handlers is None and context is None):
        signals.uninstall_signal_handlers()


def get_global_executor() -> 'Executor':
    """Return the executor of `spin` and `spin_once`."""
    global _global_executor
    from rclpy.executors import SingleThreadedExecutor

    if _global_executor is None or not _global_executor.context.ok():
        _global_executor = SingleThreadedExecutor()
    return _global_executor


def _forget_global_executor(context: Context | None) -> None:
    global _global_executor
    if _global_executor is not None and context in (None, _global_executor.context):
        _global_executor.shutdown()
        _global_executor = None


def create_node(node_name: str, **options: object) -> 'Node':
    """Return a new Node; the options are those of its constructor."""
    from rclpy.node import Node

    return Node(node_name, **options)


def spin_once(node: 'Node', *, executor: 'Executor | None' = None,
              timeout_sec: float | None = None) -> None:
    """Run one callback of a node, or none within `timeout_sec` seconds."""
    executor = executor or get_global_executor()
    try:
        executor.add_node(node)
        executor.spin_once(timeout_sec=timeout_sec)
    finally:
        executor.remove_node(node)


def spin(node: 'Node', executor: 'Executor | None' = None) -> None:
    """Run a node's callbacks until the context ends.

    Raises ExternalShutdownException when something else than a callback ends it.
    """
    executor = executor or get_global_executor()
    try:
        executor.add_node(node)
        while executor.context.ok():
            executor.spin_once()
    finally:
        executor.remove_node(node)


def spin_until_future_complete(node: 'Node', future: Future,
                               executor: 'Executor | None' = None,
                               timeout_sec: float | None = None) -> None:
    """Run a node's callbacks until a future is done, at most `timeout_sec` seconds."""
    executor = executor or get_global_executor()
    try:
        executor.add_node(node)
        executor.spin_until_future_complete(future, timeout_sec)
    finally:
        executor.remove_node(node)
