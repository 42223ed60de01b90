"""The command's own node, and the wait until it has seen the ROS graph.

There is no daemon that would know the graph already, so each command discovers it anew: it
waits until nothing new has appeared for a while, or until the one thing that it was asked about
is there.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from ros2cli.errors import CommandError, did_you_mean

SPIN_TIME = 3.0     # s, default of --spin-time: longest wait for discovery
SETTLE_TIME = 0.6   # s without a change after which the graph counts as complete
FIRST_LOOK = 1.0    # s that an empty or complete graph is watched at least
POLL = 0.05         # s
UNPUBLISHED = 'WARNING: topic [{}] does not appear to be published yet'


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that concern discovery."""
    parser.add_argument('--spin-time', type=float, default=SPIN_TIME,
                        help='Longest time in seconds to wait for discovery '
                        '(default: %(default)s)')
    parser.add_argument('--no-daemon', action='store_true',
                        help='Accepted for scripts; there is no daemon here')


@contextmanager
def command_node(name: str | None = None) -> Iterator[Node]:
    """Give a node for one command; hidden (`_ros2cli_PID`) unless it is given a name.

    Whatever ends the context from outside comes out as KeyboardInterrupt.
    """
    rclpy.init(args=[])
    try:
        node = rclpy.create_node(name or f'_ros2cli_{os.getpid()}', enable_rosout=False,
                                 start_parameter_services=False, use_global_arguments=False)
        try:
            yield node
        except ExternalShutdownException as error:  # SIGTERM while spinning
            raise KeyboardInterrupt from error
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def spin_until(node: Node, condition: Callable[[], bool], timeout: float) -> bool:
    """Spin until the condition holds; return whether it did before the timeout (s)."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline or not rclpy.ok():
            return False
        rclpy.spin_once(node, timeout_sec=POLL)
    return True


def wait_for_graph(node: Node, timeout: float = SPIN_TIME) -> None:
    """Spin until the graph has not changed for a while, at most timeout seconds."""
    start = changed = time.monotonic()
    seen: object = None

    def settled() -> bool:
        nonlocal seen, changed
        now = time.monotonic()
        graph = (sorted(node.get_node_names_and_namespaces()),
                 sorted((name, sorted(types)) for name, types in node.get_topic_names_and_types()),
                 sorted((name, sorted(types))
                        for name, types in node.get_service_names_and_types()))
        if graph != seen:
            seen, changed = graph, now
        return now - start >= FIRST_LOOK and now - changed >= SETTLE_TIME

    spin_until(node, settled, timeout)


@dataclass(frozen=True, order=True)
class NodeName:
    """A node in the graph."""

    full_name: str
    name: str
    namespace: str


def node_names(node: Node, *, hidden: bool = False) -> list[NodeName]:
    """Return the nodes that the graph knows, sorted; hidden ones (leading _) only if asked."""
    return sorted(NodeName(f'{namespace.rstrip("/")}/{name}', name, namespace)
                  for name, namespace in node.get_node_names_and_namespaces()
                  if hidden or not name.startswith('_'))


def absolute(name: str) -> str:
    """Return a name in the root namespace, in which commands live."""
    return name if name.startswith('/') else f'/{name}'


def is_hidden(name: str) -> bool:
    """Tell whether a topic's or service's name has a part with a leading underscore."""
    return any(part.startswith('_') for part in name.split('/'))


def require_node(node: Node, name: str, timeout: float = SPIN_TIME,
                 unknown: str = "Node not found: '{}'") -> NodeName:
    """Wait for a node and return it; raises CommandError with near matches when it is absent."""
    full_name = absolute(name)

    def find() -> NodeName | None:
        return next((n for n in node_names(node, hidden=True) if n.full_name == full_name), None)

    if not spin_until(node, lambda: find() is not None, timeout):
        names = [n.full_name for n in node_names(node)]
        raise CommandError(unknown.format(full_name) + did_you_mean(full_name, names))
    return find()


def topic_types(node: Node, name: str) -> list[str]:
    """Return the types of a topic; none while it is unknown."""
    return dict(node.get_topic_names_and_types()).get(name, [])


def require_topic(node: Node, name: str, timeout: float = SPIN_TIME,
                  unknown: str = "Unknown topic '{}'", *, patient: bool = False) -> str:
    """Wait for a topic and return its type.

    Raises CommandError, with near matches, when it does not appear in time (a patient command
    says so and goes on waiting), and when endpoints disagree on its type.
    """
    full_name = absolute(name)

    def types() -> list[str]:
        return topic_types(node, full_name)

    if not spin_until(node, lambda: bool(types()), timeout):
        known = [n for n, _ in node.get_topic_names_and_types() if not is_hidden(n)]
        message = unknown.format(full_name) + did_you_mean(full_name, known)
        if not patient:
            raise CommandError(message)
        print(message)
        if not spin_until(node, lambda: bool(types()), float('inf')):
            raise KeyboardInterrupt  # the context has ended
    found = types()
    if len(found) > 1:
        raise CommandError(f"topic '{full_name}' has more than one type: [{', '.join(found)}]")
    return found[0]
