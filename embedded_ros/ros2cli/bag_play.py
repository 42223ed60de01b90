"""`ros2 bag play`: publish a bag's messages, as the bytes that were recorded, in their rhythm."""

import argparse
import time
from pathlib import Path

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Connection, QosDurability, QosReliability
from rosbags.rosbag2 import Reader, ReaderError

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.graph import absolute, command_node, wait_for_graph
from ros2cli.topic_echo import message_class

DEFAULT_DEPTH = 10
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
    parser.set_defaults(main=play)


def log(text: str) -> None:
    """Print a line as rosbag2's player does."""
    print(f'[INFO] [{time.time():.9f}] [rosbag2_player]: {text}')


def play(args: argparse.Namespace) -> None:
    """Play a bag to its end, or for ever with --loop."""
    if not args.rate > 0:
        raise CommandError(f'--rate {args.rate:g}: expected a rate above 0')
    try:
        with Reader(args.bag_path) as reader, command_node('rosbag2_player') as node:
            if reader.message_count == 0:
                raise CommandError(f'bag {args.bag_path} has no messages')
            publishers = _publishers(node, _chosen(reader, args.topics), _remaps(args.remap))
            wait_for_graph(node)  # subscribers that exist shall not miss the first messages
            log(f'Set rate to {args.rate:g}')
            start = reader.start_time + round(args.start_offset * 1e9)
            _play_once(reader, publishers, start, args.rate)
            while args.loop and rclpy.ok():
                _play_once(reader, publishers, start, args.rate)
            for _, publisher in publishers.values():
                publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE))
    except (OSError, ReaderError) as error:
        raise CommandError(f'cannot read bag {args.bag_path}: {error}') from error


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


def _play_once(reader: Reader, publishers: dict[int, tuple[Connection, Publisher]], start: int,
               rate: float) -> None:
    """Publish from a bag time (ns) to the end."""
    began = time.monotonic()
    chosen = [connection for connection, _ in publishers.values()]
    for connection, stamp, data in reader.messages(chosen, start=start):
        due = began + (stamp - start) * 1e-9 / rate
        while rclpy.ok() and (left := due - time.monotonic()) > 0:
            time.sleep(min(left, LONGEST_SLEEP))
        if not rclpy.ok():
            return
        publishers[connection.id][1].publish(bytes(data))
