"""A context: what is between init and shutdown, with its DDS participant and its arguments."""

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from embedded_ros.dds.config import domain_id_from_environment, forget_domains
from embedded_ros.dds.graph import Graph, LocalNode
from embedded_ros.dds.participant import Participant

from rclpy import signals
from rclpy._arguments import RosArguments, parse_arguments
from rclpy.exceptions import NotInitializedException

if TYPE_CHECKING:
    from rclpy.node import Node

_running: set['Context'] = set()  # all that were initialized and have a participant


class Context:
    """State of one initialization; the default one is that of `rclpy.init()`."""

    def __init__(self) -> None:
        # Re-entrant: a signal's handler may come while the main thread holds it.
        self._lock = threading.RLock()
        self._ok = False
        self._on_shutdown: list[Callable[[], None]] = []
        self._wakers: weakref.WeakSet = weakref.WeakSet()
        self._nodes: set[Node] = set()
        self._participant: Participant | None = None
        self._graph: Graph | None = None
        self.arguments = RosArguments()

    def init(self, args: list[str] | None = None, *, initialize_logging: bool = True,
             domain_id: int | None = None) -> None:
        """Start; raises RuntimeError when it runs already, ValueError for arguments not valid."""
        from rclpy.logging import configure_logging

        with self._lock:
            if self._ok:
                raise RuntimeError('Context.init() must only be called once')
            self.arguments = parse_arguments(args)
            if initialize_logging:
                configure_logging(self.arguments)
            participant = Participant(
                domain_id_from_environment() if domain_id is None else domain_id,
                self.arguments.enclave)
            try:
                self._graph = Graph(participant)
            except BaseException:
                participant.shutdown()
                raise
            self._participant = participant
            self._ok = True
            _running.add(self)

    def ok(self) -> bool:
        """Tell whether it runs: initialized and not shut down."""
        return self._ok

    def shutdown(self) -> None:
        """End it; raises RuntimeError when it does not run."""
        if not self._end():
            raise RuntimeError('Context must be initialized before it can be shutdown')
        self.release()

    def try_shutdown(self) -> None:
        """End it if it runs."""
        self._end()
        self.release()

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Call back once, when it ends; raises TypeError for what cannot be called."""
        if not callable(callback):
            raise TypeError(f'callback should be a callable, got {type(callback)}')
        with self._lock:
            self._on_shutdown.append(callback)

    def get_domain_id(self) -> int:
        """Return the number of the DDS domain."""
        return self.participant.domain_id

    @property
    def participant(self) -> Participant:
        """The DDS participant; raises NotInitializedException without one."""
        if self._participant is None:
            raise NotInitializedException()
        return self._participant

    @property
    def graph(self) -> Graph:
        """What is known of all nodes; raises NotInitializedException when it does not run."""
        if self._graph is None:
            raise NotInitializedException()
        return self._graph

    def add_waker(self, executor: object) -> None:
        """Call `executor.wake()` at the end, as long as the executor exists."""
        self._wakers.add(executor)

    def add_node(self, node: 'Node') -> None:
        """Keep the participant for a node, also past shutdown."""
        with self._lock:
            self._nodes.add(node)

    def remove_node(self, node: 'Node', local: LocalNode) -> None:
        """Forget a destroyed node, and withdraw it from the graph."""
        with self._lock:
            self._nodes.discard(node)
            if self._graph is not None:
                self._graph.remove_node(local)
        self.release()

    def _end(self) -> bool:
        """Say that it is over, and wake whoever waits. Safe in a signal's handler."""
        with self._lock:
            if not self._ok:
                return False
            self._ok = False
            callbacks, self._on_shutdown = self._on_shutdown, []
        for executor in list(self._wakers):
            executor.wake()
        for callback in callbacks:
            callback()
        return True

    def release(self, *, force: bool = False) -> None:
        """Delete the participant when it is over and no node needs it (or if forced)."""
        with self._lock:
            if self._ok or self._participant is None or (self._nodes and not force):
                return
            participant, self._participant = self._participant, None
            graph, self._graph = self._graph, None
            _running.discard(self)
        graph.close()
        participant.shutdown()

    def __enter__(self) -> 'Context':
        self.init()
        return self

    def __exit__(self, *_: object) -> None:
        self.try_shutdown()


def _end_all() -> None:
    for context in list(_running):
        context._end()


def _clean_up() -> None:
    """Delete all DDS entities, in order, while the interpreter still runs in full."""
    signals.ignore_interrupts()
    for context in list(_running):
        context._end()
        context.release(force=True)
    forget_domains()


signals.on_signal(_end_all)
atexit.register(_clean_up)
