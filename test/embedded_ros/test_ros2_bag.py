"""`ros2 bag` and `ros2 interface`: recorded bytes are the sent ones, and come out again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ros2cli.main import main
from rosbags.interfaces import QosReliability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

WAIT = 20.0  # s
PUBLISHER = """
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import String

rclpy.init()
node = Node('source')
text = node.create_publisher(String, '/text', 10)
state = node.create_publisher(JointState, '/state', qos_profile_sensor_data)
count = 0


def tick():
    global count
    count += 1
    text.publish(String(data=f'{count}'))
    state.publish(JointState(name=['a'], position=[float(count)]))


node.create_timer(0.02, tick)
rclpy.spin(node)
"""


@pytest.fixture(scope='module', autouse=True)
def domain() -> None:
    before = os.environ.get('ROS_DOMAIN_ID')
    os.environ['ROS_DOMAIN_ID'] = str(10 + os.getpid() % 40)
    yield
    os.environ.pop('ROS_DOMAIN_ID')
    if before is not None:
        os.environ['ROS_DOMAIN_ID'] = before


def command(*arguments: str) -> list[str]:
    return [sys.executable, '-m', 'ros2cli.main', *arguments]


def record(folder: Path, name: str, *options: str) -> Path:
    """Record the publisher for a while, end it by SIGINT, and return the bag."""
    source = subprocess.Popen([sys.executable, '-c', PUBLISHER])
    log = folder / f'{name}.log'
    with log.open('wb') as output:
        recorder = subprocess.Popen(command('bag', 'record', '-o', str(folder / name), *options),
                                    stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + WAIT
        while not all(f"Subscribed to topic '{topic}'" in log.read_text()
                      for topic in ('/text', '/state')):
            assert time.monotonic() < deadline and recorder.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(0.5)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(WAIT) == 0, log.read_text()
    finally:
        for process in (source, recorder):
            process.kill()
            process.wait()
    return folder / name


def messages(bag: Path) -> dict[str, list[object]]:
    """Decode a bag with rosbags' own types, as any other tool would."""
    store = get_typestore(Stores.ROS2_JAZZY)
    found: dict[str, list[object]] = {}
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(
                store.deserialize_cdr(data, connection.msgtype))
    return found


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp('bags'), 'mcap_bag', '/text', 'state')


def test_recorded_bag_is_a_plain_rosbag2(bag: Path) -> None:
    found = messages(bag)
    assert set(found) == {'/text', '/state'}
    numbers = [int(message.data) for message in found['/text']]
    assert len(numbers) >= 10
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert found['/state'][0].name == ['a']
    with Reader(bag) as reader:
        by_topic = {connection.topic: connection for connection in reader.connections}
        ours = by_topic['/state']
        store = get_typestore(Stores.ROS2_JAZZY)
        assert ours.digest == store.hash_rihs01('sensor_msgs/msg/JointState')
        assert 'MSG: std_msgs/Header' in ours.msgdef.data
        assert ours.ext.offered_qos_profiles[0].reliability == QosReliability.BEST_EFFORT
        assert by_topic['/text'].ext.offered_qos_profiles[0].reliability == (
            QosReliability.RELIABLE)
        assert 0.3e9 < reader.duration < 15e9


def test_record_all_to_sqlite(tmp_path: Path) -> None:
    found = messages(record(tmp_path, 'all', '-a', '-s', 'sqlite3'))
    assert {'/text', '/state'} <= set(found)
    assert (tmp_path / 'all/metadata.yaml').is_file()
    assert list((tmp_path / 'all').glob('*.db3'))


def test_info(bag: Path, capsys: pytest.CaptureFixture) -> None:
    count = len(messages(bag)['/text'])
    assert main(['bag', 'info', str(bag)]) == 0
    out = capsys.readouterr().out
    assert out.startswith('Files:             mcap_bag.mcap\nBag size:          ')
    assert '\nStorage id:        mcap\n' in out
    assert re.search(r'\nDuration:          \d+\.\d{9}s\nStart:             \w{3} [ \d]\d \d{4} '
                     r'\d\d:\d\d:\d\d\.\d{9} \(\d+\.\d{9}\)\n', out)
    assert ('Topic information: Topic: /state | Type: sensor_msgs/msg/JointState | Count: '
            in out)
    assert (f'\n                   Topic: /text | Type: std_msgs/msg/String | Count: {count} | '
            'Serialization Format: cdr\n') in out


def test_play_gives_the_recorded_bytes(bag: Path, tmp_path: Path) -> None:
    again = tmp_path / 'again'
    log = tmp_path / 'log'
    with log.open('wb') as output:
        recorder = subprocess.Popen(command('bag', 'record', '-o', str(again), '/replayed'),
                                    stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + WAIT
        while 'Recording...' not in log.read_text():
            assert time.monotonic() < deadline and recorder.poll() is None, log.read_text()
            time.sleep(0.05)
        played = subprocess.run(
            command('bag', 'play', str(bag), '--topics', 'text', '--rate', '2',
                    '--remap', 'text:=replayed'), capture_output=True, text=True, timeout=WAIT)
        assert played.returncode == 0, played.stderr
        assert '[rosbag2_player]: Set rate to 2' in played.stdout
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(WAIT) == 0, log.read_text()
    finally:
        recorder.kill()
        recorder.wait()
    sent = messages(bag)['/text']
    assert [m.data for m in messages(again)['/replayed']] == [m.data for m in sent]
    with Reader(bag) as first, Reader(again) as second:
        span = [max(stamps) - min(stamps) for stamps in (
            [s for c, s, _ in reader.messages() if c.topic in ('/text', '/replayed')]
            for reader in (first, second))]
    assert 0.3 < span[1] / span[0] < 0.8  # twice as fast, on a machine that may be busy


@pytest.mark.parametrize(('arguments', 'message'), [
    (('record',), 'Must specify topics or -a'),
    (('info', '/nowhere'), 'cannot read bag /nowhere'),
    (('play', 'BAG', '--rate', '0'), '--rate 0: expected'),
    (('play', 'BAG', '--topics', 'txt'), "no topic '/txt'\nDid you mean: /text?"),
    (('play', 'BAG', '--remap', 'x'), "--remap 'x': expected OLD:=NEW"),
    (('record', '-o', 'BAG', '/text'), 'exists already'),
])
def test_errors(bag: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...],
                message: str) -> None:
    assert main(['bag', *(str(bag) if word == 'BAG' else word for word in arguments)]) == 1
    assert message in capsys.readouterr().err


def test_interface_show(capsys: pytest.CaptureFixture) -> None:
    assert main(['interface', 'show', 'sensor_msgs/msg/JointState']) == 0
    assert capsys.readouterr().out.splitlines()[:6] == [
        'std_msgs/Header header', '\tbuiltin_interfaces/Time stamp', '\t\tint32 sec',
        '\t\tuint32 nanosec', '\tstring frame_id', 'string[] name']
    assert main(['interface', 'show', 'std_srvs/srv/SetBool', '--no-comments']) == 0
    assert capsys.readouterr().out == 'bool data\n---\nbool success\nstring message\n'
    assert main(['interface', 'show', 'std_srvs/srv/SetBol']) == 1
    assert 'Did you mean: std_srvs/srv/SetBool' in capsys.readouterr().err


def test_interface_list(capsys: pytest.CaptureFixture) -> None:
    assert main(['interface', 'list']) == 0
    out = capsys.readouterr().out
    assert out.startswith('Messages:\n    ')
    assert '\n    sensor_msgs/msg/Image\n' in out
    assert '\nServices:\n' in out
    assert '\n    std_srvs/srv/Trigger\n' in out
    assert '_Request' not in out
