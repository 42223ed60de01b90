"""The graph, and what plain DDS sees of a node. Run as a script, this file is another process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from cyclonedds.builtin import (
    BuiltinDataReader,
    BuiltinTopicDcpsParticipant,
    BuiltinTopicDcpsPublication,
    BuiltinTopicDcpsSubscription,
)
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from embedded_ros.dds.payload import payload_type
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

DOMAIN = 1 + os.getpid() % 100
INFO = 'rmw_dds_common/msg/ParticipantEntitiesInfo'
LATCHED = QoSProfile(depth=7, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = Node('tester', namespace='/here', start_parameter_services=False)
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    started = []

    def run(*args: str, **environment: str) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, __file__, *args], env={
            **os.environ, 'ROS_DOMAIN_ID': str(DOMAIN), **environment}))
        return started[-1]

    yield run
    for process in started:
        process.terminate()
        assert process.wait(timeout=15) == 0


def wait(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        time.sleep(0.02)


def test_another_process_is_seen_in_full(node, start):
    process = start()
    assert node.wait_for_node('/there/other', 15)
    wait(lambda: node.count_publishers('/there/out') == 1)
    wait(lambda: '/there/do' in dict(node.get_service_names_and_types()))
    topics = dict(node.get_topic_names_and_types())
    assert topics['/there/out'] == ['std_msgs/msg/String']
    assert topics['/there/in'] == ['sensor_msgs/msg/Image']
    who = 'other', '/there'
    assert ('/there/out', ['std_msgs/msg/String']) in node.get_publisher_names_and_types_by_node(
        *who)
    assert node.get_subscriber_names_and_types_by_node(*who) == [
        ('/there/in', ['sensor_msgs/msg/Image'])]
    services = dict(node.get_service_names_and_types_by_node(*who))
    assert services['/there/do'] == ['std_srvs/srv/Trigger']
    assert len(services) == 7  # six of its parameters
    assert node.get_client_names_and_types_by_node(*who) == []
    [info] = node.get_publishers_info_by_topic('/there/out')
    assert (info.node_name, info.node_namespace) == who
    assert info.topic_type == 'std_msgs/msg/String'
    assert info.topic_type_hash.startswith('RIHS01_df668c740482')
    assert info.qos_profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
    [info] = node.get_subscriptions_info_by_topic('/there/in')
    assert info.qos_profile.reliability == qos_profile_sensor_data.reliability
    process.terminate()
    process.wait(timeout=15)
    wait(lambda: '/there/other' not in node.get_fully_qualified_node_names())
    wait(lambda: node.count_publishers('/there/out') == 0)


def test_own_entities_come_and_go(node):
    other = Node('second', start_parameter_services=False)
    assert sorted(node.get_fully_qualified_node_names()) == ['/here/tester', '/second']
    publisher = other.create_publisher(String, 'x', 10)
    wait(lambda: node.count_publishers('/x') == 1)
    assert other.destroy_publisher(publisher)
    assert not other.destroy_publisher(publisher)
    wait(lambda: node.count_publishers('/x') == 0)
    other.destroy_node()
    assert node.get_fully_qualified_node_names() == ['/here/tester']


def test_what_plain_dds_sees(node):
    publisher = node.create_publisher(Image, 'picture', qos_profile_sensor_data)
    node.create_client(Trigger, 'do')
    participant = DomainParticipant(DOMAIN)
    found = {kind: BuiltinDataReader(participant, topic) for kind, topic in (
        ('participants', BuiltinTopicDcpsParticipant), ('writers', BuiltinTopicDcpsPublication),
        ('readers', BuiltinTopicDcpsSubscription))}
    guid = node.context.participant.guid
    users = {p.key.bytes: p.qos[Policy.Userdata] for p in found['participants'].take(100)}
    assert users[guid].data == b'enclave=/;'
    writers = {e.topic_name: e for e in found['writers'].take(100)}
    picture = writers['rt/here/picture']
    assert picture.type_name == 'sensor_msgs::msg::dds_::Image_'
    assert picture.key.bytes == publisher.guids[1][0]
    assert picture.qos[Policy.Userdata].data.startswith(b'typehash=RIHS01_d31d41a9a4c4')
    assert picture.qos[Policy.DataRepresentation].use_cdrv0_representation
    request = writers['rq/here/doRequest']
    assert request.type_name == 'std_srvs::srv::dds_::Trigger_Request_'
    identity = request.qos[Policy.Userdata].data.split(b';')[0]
    assert identity.startswith(b'clientid=') and identity.count(b'.') == 15
    replies = {e.topic_name: e for e in found['readers'].take(100)}['rr/here/doReply']
    assert replies.qos[Policy.Userdata].data.split(b';')[0] == identity
    info = _discovery_info(participant, Stores.ROS2_JAZZY, guid)
    [here] = info.node_entities_info_seq
    assert (here.node_namespace, here.node_name) == ('/here', 'tester')
    assert publisher.guids[1][0] in {bytes(gid.data) for gid in here.writer_gid_seq}
    assert replies.key.bytes in {bytes(gid.data) for gid in here.reader_gid_seq}


def test_the_wire_of_humble(start):
    """Gids of 24 bytes, and no type hashes; an enclave that is asked for."""
    start('--ros-args', '--enclave', '/lab', ROS_DISTRO='humble')
    rclpy.init(args=[], domain_id=DOMAIN)
    try:
        participant = DomainParticipant(DOMAIN)
        writers: dict = {}
        reader = BuiltinDataReader(participant, BuiltinTopicDcpsPublication)

        def look() -> bool:
            writers.update({e.topic_name: e for e in reader.take(100)})
            return 'rt/there/out' in writers

        wait(look)
        out = writers['rt/there/out']
        assert out.qos[Policy.Userdata] is None or out.qos[Policy.Userdata].data == b''
        info = _discovery_info(participant, Stores.ROS2_HUMBLE, out.participant_key.bytes)
        users = {p.key.bytes: p.qos[Policy.Userdata] for p in BuiltinDataReader(
            participant, BuiltinTopicDcpsParticipant).take(100)}
        assert users[out.participant_key.bytes].data == b'enclave=/lab;'
        [node] = info.node_entities_info_seq
        gids = {bytes(gid.data) for gid in node.writer_gid_seq}
        assert out.key.bytes + bytes(8) in gids
        info = subprocess.run(
            [sys.executable, '-m', 'ros2cli.main', 'topic', 'info', '-v', '/there/out'],
            env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN), 'ROS_DISTRO': 'humble'},
            capture_output=True, text=True).stdout
        assert '\nNode name: other\nNode namespace: /there\n' in info and 'hash' not in info
        assert f'GID: {".".join(f"{byte:02x}" for byte in out.key.bytes)}{".00" * 8}\n' in info
    finally:
        rclpy.shutdown()


def _discovery_info(participant: DomainParticipant, distro: Stores, guid: bytes) -> object:
    """Read ros_discovery_info of one participant with rosbags' own classes."""
    topic = Topic(participant, 'ros_discovery_info',
                  payload_type('rmw_dds_common::msg::dds_::ParticipantEntitiesInfo_'))
    reader = DataReader(participant, topic, qos=Qos(
        Policy.Reliability.Reliable(0), Policy.Durability.TransientLocal, Policy.History.KeepAll))
    latest: dict[bytes, object] = {}
    store = get_typestore(distro)

    def look() -> bool:
        for sample in reader.take(100):
            # The participant's gid comes first; a process of another distribution is not parsed.
            if sample.sample_info.valid_data and sample.raw[4:20] == guid:
                latest[guid] = store.deserialize_cdr(sample.raw, INFO)
        return guid in latest

    wait(look)
    wait(lambda: look() and _complete(latest[guid]))
    return latest[guid]


def _complete(info: object) -> bool:
    """Tell whether the node has announced its endpoints, which come one by one."""
    return any(node.node_name == 'tester' or len(node.reader_gid_seq) >= 8
               for node in info.node_entities_info_seq)


def main() -> None:
    rclpy.init()
    node = Node('other', namespace='/there')
    node.create_publisher(String, 'out', LATCHED)
    node.create_subscription(Image, 'in', print, qos_profile_sensor_data)
    node.create_service(Trigger, 'do', lambda request, response: response)
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        node.destroy_node()


if __name__ == '__main__':
    main()
