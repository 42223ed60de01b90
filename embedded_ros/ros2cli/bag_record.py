"""`ros2 bag record`: write what arrives, as the bytes that arrived, into MCAP or SQLite."""

import argparse
import signal
import time
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from embedded_ros import distro
from ros2cli.errors import CommandError
from ros2cli.graph import POLL, absolute, command_node, is_hidden, topic_types
from ros2cli.interface import definition_of
from ros2cli.qos import matching_qos
from ros2cli.topic_echo import message_class

QUEUE_DEPTH = 1000         # messages; a burst must not be lost while the disk is busy
DISCOVERY_PERIOD = 0.1     # s
INFINITE = QosTime(9223372036, 854775807)  # what rosbag2 writes for `no limit`
# What the distribution's own rosbag2 reads: the version of metadata.yaml, the default storage.
FORMATS = {'jazzy': (Writer.VERSION_LATEST, 'mcap'), 'humble': (8, 'sqlite3')}
STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}


def add_verb(verbs: argparse._SubParsersAction) -> None:
    """Add `record` to the verbs of `ros2 bag`."""
    parser = verbs.add_parser('record', help='Record ROS data to a bag')
    parser.add_argument('positional', nargs='*', metavar='TOPIC', help='As --topics, as Humble')
    parser.add_argument('--topics', nargs='+', default=[], metavar='TOPIC',
                        help='Space-delimited list of topics to record')
    parser.add_argument('-a', '--all', '--all-topics', action='store_true',
                        help='Record all topics')
    parser.add_argument('-o', '--output', type=Path, help='Destination of the bag to create '
                        '(default: rosbag2_DATE-TIME)')
    parser.add_argument('-s', '--storage', choices=STORAGES, default=FORMATS[distro()][1],
                        help='Storage identifier to be used (default: %(default)s)')
    parser.set_defaults(main=record)


def log(text: str) -> None:
    """Print a line as rosbag2's recorder does."""
    print(f'[INFO] [{time.time():.9f}] [rosbag2_recorder]: {text}')


def record(args: argparse.Namespace) -> None:
    """Record until SIGINT or SIGTERM; the bag is complete then."""
    topics = {absolute(topic) for topic in (*args.topics, *args.positional)}
    if bool(topics) == args.all:
        raise CommandError('Invalid choice: Must specify topics or -a, and not both')
    path = args.output or Path(time.strftime('rosbag2_%Y_%m_%d-%H_%M_%S'))
    try:
        with Writer(path, version=FORMATS[distro()][0],
                    storage_plugin=STORAGES[args.storage]) as writer, \
                command_node('rosbag2_recorder') as node:
            Recorder(node, writer, topics or None).run()
    except (OSError, WriterError) as error:
        raise CommandError(f'cannot write bag {path}: {error}') from error


class Recorder:
    """Subscribes wanted topics as they appear and writes their messages."""

    def __init__(self, node: Node, writer: Writer, wanted: set[str] | None) -> None:
        self._node = node
        self._writer = writer
        self._wanted = wanted
        self._connections: dict[str, Connection | None] = {}  # None: its type is unknown here
        self._stopped = False

    def run(self) -> None:
        """Record until a signal."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        looked = time.monotonic()
        log('Listening for topics...')
        self._discover()
        log('Recording...')
        while not self._stopped and rclpy.ok():
            rclpy.spin_once(self._node, timeout_sec=POLL)
            now = time.monotonic()
            if now - looked >= DISCOVERY_PERIOD:
                self._discover()
                looked = now
        log('Recording stopped')
        for topic in sorted((self._wanted or set()) - set(self._connections)):
            log(f"Nothing was published on '{topic}'")

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = True

    def _discover(self) -> None:
        """Subscribe every wanted topic that has a publisher and is not subscribed yet."""
        if self._wanted is not None and self._wanted <= set(self._connections):
            return
        names = self._wanted if self._wanted is not None else {
            name for name, _ in self._node.get_topic_names_and_types() if not is_hidden(name)}
        for name in sorted(names - set(self._connections)):
            types = topic_types(self._node, name)
            if types and self._node.count_publishers(name):
                self._subscribe(name, types[0])

    def _subscribe(self, topic: str, message_type: str) -> None:
        try:
            kind = message_class(message_type)
            text, digest = definition_of(message_type)
        except CommandError as error:
            self._connections[topic] = None
            log(f"Ignoring topic '{topic}': {error}")
            return
        offered = self._node.get_publishers_info_by_topic(topic)
        connection = self._writer.add_connection(
            topic, message_type, msgdef=text, rihs01=digest,
            offered_qos_profiles=[_stored_qos(info.qos_profile) for info in offered])
        self._connections[topic] = connection
        self._node.create_subscription(
            kind, topic, lambda data: self._writer.write(connection, time.time_ns(), data),
            matching_qos(self._node, topic, depth=QUEUE_DEPTH), raw=True)
        log(f"Subscribed to topic '{topic}'")


def _stored_qos(qos: QoSProfile) -> Qos:
    """Return a publisher's QoS in the form that bags store."""
    return Qos(
        history=(QosHistory.KEEP_ALL if qos.history == HistoryPolicy.KEEP_ALL
                 else QosHistory.KEEP_LAST),
        depth=qos.depth,
        reliability=(QosReliability.RELIABLE if qos.reliability == ReliabilityPolicy.RELIABLE
                     else QosReliability.BEST_EFFORT),
        durability=(QosDurability.TRANSIENT_LOCAL
                    if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
                    else QosDurability.VOLATILE),
        deadline=INFINITE, lifespan=INFINITE, liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=INFINITE, avoid_ros_namespace_conventions=False)
