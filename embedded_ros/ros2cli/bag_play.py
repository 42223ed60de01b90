"""`ros2 bag play`: publish a bag's messages, as the bytes that were recorded, in their rhythm."""

import argparse
import time
from contextlib import suppress
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Connection, QosDurability, QosReliability
from rosbags.rosbag2 import Reader, ReaderError
from rosgraph_msgs.msg import Clock

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.graph import absolute, command_node, wait_for_graph
from ros2cli.topic_echo import message_class

DEFAULT_DEPTH = 10
DEFAULT_CLOCK = 40.0  # Hz
LONGEST_SLEEP = 0.1   # s, so that a signal is noticed
ACKNOWLEDGE = 2.0     # s after the last message, for reliable readers to have it all


def add_verb(verbs: argparse._SubParsersAction) -> None:
    """Add `play` to the verbs of `ros2 bag`."""
    parser = verbs.add_parser('play', help='Play back ROS data from a bag')
    parser.add_argument('bag_path', type=Path, help='Bag to open')
    parser.add_argument('-r', '--rate', type=float, default=1.0, metavar='N',
                        help='rate at which to play back messages (default: %(default)s)')
    parser.add_argument('-l', '--loop', action='store_true',
                        help='enables loop playback when playing a bagfile')
    parser.add_argument('--topics', nargs='+', default=[], metavar='TOPIC',
                        help='Space-delimited list of topics to play')
    parser.add_argument('-m', '--remap', nargs='+', default=[], metavar='OLD:=NEW',
                        help='list of topics to be remapped')
    parser.add_argument('--start-offset', type=float, default=0.0, metavar='N',
                        help='Start the playback N seconds into the bag')
    parser.add_argument('-d', '--delay', type=float, default=0.0, metavar='N',
                        help='Sleep N seconds before play (each loop)')
    parser.add_argument('--clock', type=float, nargs='?', const=DEFAULT_CLOCK, metavar='HZ',
                        help='Publish to /clock at a frequency (default without a number: '
                        f'{DEFAULT_CLOCK:g}), to act as a ROS Time Source')
    parser.set_defaults(main=play)


def log(text: str) -> None:
    """Print a line as rosbag2's player does."""
    print(f'[INFO] [{time.time():.9f}] [rosbag2_player]: {text}')


def play(args: argparse.Namespace) -> None:
    """Play a bag to its end, or for ever with --loop."""
    if not args.rate > 0:
        raise CommandError(f'--rate {args.rate:g}: expected a rate above 0')
    if not args.delay >= 0:
        raise CommandError(f'--delay {args.delay:g}: expected seconds, 0 or more')
    if args.clock is not None and not args.clock > 0:
        raise CommandError(f'--clock {args.clock:g}: expected a frequency above 0 Hz')
    try:
        # A signal is an end like any other, and the only one of --loop.
        with Reader(args.bag_path) as reader, command_node('rosbag2_player') as node, \
                suppress(KeyboardInterrupt):
            Player(node, reader, args).run()
    except (OSError, ReaderError) as error:
        raise CommandError(f'cannot read bag {args.bag_path}: {error}') from error


class Player:
    """The publishers of one playback, and the bag's time that its `/clock` tells."""

    def __init__(self, node: Node, reader: Reader, args: argparse.Namespace) -> None:
        if reader.message_count == 0:
            raise CommandError(f'bag {args.bag_path} has no messages')
        if not 0 <= args.start_offset * 1e9 < max(reader.duration, 1):
            raise CommandError(f'--start-offset {args.start_offset:g}: expected 0 or more, and '
                               f'less than the {reader.duration * 1e-9:.3f} s of the bag')
        self._reader = reader
        self._args = args
        self._start = reader.start_time + round(args.start_offset * 1e9)  # bag time, ns
        chosen = _chosen(reader, args.topics)
        if args.clock is not None:  # a recorded clock would contradict ours
            chosen = [connection for connection in chosen if connection.topic != '/clock']
        self._publishers = _publishers(node, chosen, _remaps(args.remap))
        self._clock = None if args.clock is None else node.create_publisher(
            Clock, '/clock', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        self._node = node

    def run(self) -> None:
        """Play, once or for ever, and wait until what was sent has arrived."""
        wait_for_graph(self._node)  # subscribers that exist shall not miss the first messages
        log(f'Set rate to {self._args.rate:g}')
        self._play_once()
        while self._args.loop and rclpy.ok():
            self._play_once()
        for _, publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE))

    def _play_once(self) -> None:
        """Publish from the start to the end, after the delay."""
        _sleep_until(time.monotonic() + self._args.delay)
        self._began = self._next_tick = time.monotonic()
        chosen = [connection for connection, _ in self._publishers.values()]
        for connection, stamp, data in self._reader.messages(chosen, start=self._start):
            self._wait(self._began + (stamp - self._start) * 1e-9 / self._args.rate)
            if not rclpy.ok():
                return
            self._publishers[connection.id][1].publish(bytes(data))

    def _wait(self, due: float) -> None:
        """Sleep until a time (s, monotonic), and tell the bag's time meanwhile."""
        while self._clock is not None and self._next_tick <= due and rclpy.ok():
            _sleep_until(self._next_tick)
            if rclpy.ok():
                passed = (time.monotonic() - self._began) * self._args.rate  # s of the bag
                seconds, nanoseconds = divmod(self._start + round(passed * 1e9), 10**9)
                self._clock.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))
            # A tick that is missed is not made up for.
            self._next_tick = max(self._next_tick + 1 / self._args.clock, time.monotonic())
        _sleep_until(due)


def _sleep_until(due: float) -> None:
    """Sleep until a time (s, monotonic) or the end of the context."""
    while rclpy.ok() and (left := due - time.monotonic()) > 0:
        time.sleep(min(left, LONGEST_SLEEP))


def _chosen(reader: Reader, topics: list[str]) -> list[Connection]:
    known = {connection.topic for connection in reader.connections}
    for topic in map(absolute, topics):
        if topic not in known:
            raise CommandError(f"the bag has no topic '{topic}'" + did_you_mean(topic, known))
    wanted = set(map(absolute, topics)) or known
    return [connection for connection in reader.connections if connection.topic in wanted]


def _remaps(words: list[str]) -> dict[str, str]:
    remaps: dict[str, str] = {}
    for word in words:
        old, separator, new = word.partition(':=')
        if not (old and separator and new):
            raise CommandError(f"--remap '{word}': expected OLD:=NEW")
        remaps[absolute(old)] = absolute(new)
    return remaps


def _publishers(node: Node, connections: list[Connection],
                remaps: dict[str, str]) -> dict[int, tuple[Connection, Publisher]]:
    """Return a publisher for each connection; one whose type is unknown here is left out."""
    publishers: dict[int, tuple[Connection, Publisher]] = {}
    for connection in connections:
        topic = remaps.get(connection.topic, connection.topic)
        try:
            kind = message_class(connection.msgtype)
        except CommandError as error:
            log(f"Ignoring topic '{connection.topic}': {error}")
            continue
        publishers[connection.id] = (connection, node.create_publisher(
            kind, topic, _offered_qos(connection)))
    if not publishers:
        raise CommandError('no topic of the bag can be played')
    return publishers


def _offered_qos(connection: Connection) -> QoSProfile:
    """Return the QoS of the recorded publishers; reliable and volatile where they disagree."""
    offered = connection.ext.offered_qos_profiles
    best_effort = bool(offered) and all(
        qos.reliability == QosReliability.BEST_EFFORT for qos in offered)
    latched = bool(offered) and all(
        qos.durability == QosDurability.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        depth=max([DEFAULT_DEPTH, *(qos.depth for qos in offered)]),
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)
