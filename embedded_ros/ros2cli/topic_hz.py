"""`ros2 topic hz`: the rate at which messages arrive."""

import argparse
import math
import time
from collections import deque

import rclpy

from ros2cli.errors import CommandError
from ros2cli.graph import (
    POLL,
    UNPUBLISHED,
    absolute,
    add_graph_arguments,
    command_node,
    require_topic,
)
from ros2cli.qos import matching_qos
from ros2cli.topic_echo import message_class

WINDOW = 10000       # intervals
REPORT_PERIOD = 1.0  # s


def add_verb(verbs: argparse._SubParsersAction) -> None:
    """Add `hz` to the verbs of `ros2 topic`."""
    parser = verbs.add_parser('hz', help='Print the average receiving rate to screen')
    parser.add_argument('topic_name', help="Name of the ROS topic (e.g. '/chatter')")
    parser.add_argument('-w', '--window', type=int, default=WINDOW,
                        help='window size, in # of messages, for calculating rate '
                        '(default: %(default)s)')
    add_graph_arguments(parser)
    parser.set_defaults(main=hz)


class Rate:
    """Arrival times of a topic and the statistics of their last intervals."""

    def __init__(self, window: int) -> None:
        self._intervals: deque[float] = deque(maxlen=window)
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        """Count a message that arrived now (s, monotonic)."""
        if self._last is not None:
            self._intervals.append(now - self._last)
        self._last = now

    @property
    def last(self) -> float | None:
        """When the last message arrived; None before the first."""
        return self._last

    def report(self) -> str | None:
        """Return rate, extremes and deviation as ros2topic prints them; None without data."""
        n = len(self._intervals)
        if n == 0:
            return None
        mean = sum(self._intervals) / n
        deviation = math.sqrt(sum((value - mean) ** 2 for value in self._intervals) / n)
        return (f'average rate: {1 / mean if mean else 0.0:.3f}\n'
                f'\tmin: {min(self._intervals):.3f}s max: {max(self._intervals):.3f}s '
                f'std dev: {deviation:.5f}s window: {n}')


def hz(args: argparse.Namespace) -> None:
    """Print the rate once a second, while there are new messages, until interrupted."""
    if args.window < 1:
        raise CommandError(f'--window {args.window}: expected a positive integer')
    topic = absolute(args.topic_name)
    rate = Rate(args.window)
    with command_node() as node:
        message_type = require_topic(node, topic, args.spin_time, UNPUBLISHED, patient=True)
        # Raw: only the time of arrival counts, and decoding images would cost some of it.
        node.create_subscription(message_class(message_type), topic,
                                 lambda _: rate.arrived(time.monotonic()),
                                 matching_qos(node, topic), raw=True)
        reported = time.monotonic()
        while rclpy.ok():
            rclpy.spin_once(node, timeout_sec=POLL)
            if rate.last is not None and rate.last >= reported + REPORT_PERIOD:
                reported = rate.last
                print(rate.report() or '', end='\n')
