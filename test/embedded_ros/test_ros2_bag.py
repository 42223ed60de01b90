"""`ros2 bag` and `ros2 interface`: recorded bytes are the sent ones, and come out again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rclpy
import yaml
from ros2cli.main import main
from rosbags.interfaces import QosReliability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import String

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


def record(folder: Path, **recorders: tuple[str, ...]) -> None:
    """Record the publisher for a while, by all recorders at once, and end them by SIGINT."""
    source = subprocess.Popen([sys.executable, '-c', PUBLISHER])
    started = {name: start_recorder(folder / name, *words) for name, words in recorders.items()}
    try:
        for log, recorder in started.values():
            for topic in ('/text', '/state'):
                wait_for(f"Subscribed to topic '{topic}'", log, recorder)
        time.sleep(0.5)
        for log, recorder in started.values():
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(WAIT) == 0, log.read_text()
    finally:
        for process in (source, *(recorder for _, recorder in started.values())):
            process.terminate()
            process.wait(WAIT)


def start_recorder(bag: Path, *words: str) -> tuple[Path, subprocess.Popen]:
    """Start a recorder, `NAME=VALUE` words into its environment; returns its log, too."""
    environment = dict(word.split('=') for word in words if '=' in word)
    log = bag.with_suffix('.log')
    with log.open('wb') as output:
        return log, subprocess.Popen(
            command('bag', 'record', '-o', str(bag), *(w for w in words if '=' not in w)),
            env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT)


def wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT
    while text not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.02)


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
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two bags of the same messages."""
    folder = tmp_path_factory.mktemp('bags')
    record(folder, mcap_bag=('/text', 'state'), all_bag=('-a', 'ROS_DISTRO=humble'))
    return folder


@pytest.fixture(scope='module')
def bag(bags: Path) -> Path:
    return bags / 'mcap_bag'


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


def test_record_all_as_humble_does(bags: Path) -> None:
    bag = bags / 'all_bag'
    found = messages(bag)
    assert {'/text', '/state'} <= set(found)
    assert [path.suffix for path in sorted(bag.iterdir())] == ['.db3', '.yaml']
    assert yaml.safe_load((bag / 'metadata.yaml').read_text())[
        'rosbag2_bagfile_information']['version'] == 8


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


def test_play_gives_the_recorded_bytes_and_time(bag: Path, tmp_path: Path) -> None:
    again = tmp_path / 'again'
    log, recorder = start_recorder(again, '-s', 'sqlite3', '--topics', '/replayed', '/clock')
    try:
        wait_for('Recording...', log, recorder)
        played = subprocess.run(
            command('bag', 'play', str(bag), '--topics', 'text', '--rate', '2',
                    '--remap', 'text:=replayed', '--clock', '100'),
            capture_output=True, text=True, timeout=WAIT)
        assert played.returncode == 0, played.stderr
        assert '[rosbag2_player]: Set rate to 2' in played.stdout
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(WAIT) == 0, log.read_text()
    finally:
        recorder.terminate()
        recorder.wait(WAIT)
    assert list(again.glob('*.db3'))
    sent = messages(bag)['/text']
    assert [m.data for m in messages(again)['/replayed']] == [m.data for m in sent]
    arrived = {'/text': [], '/replayed': [], '/clock': []}  # ns
    for path in (bag, again):
        with Reader(path) as reader:
            for connection, stamp, _ in reader.messages():
                arrived.setdefault(connection.topic, []).append(stamp)
    once, twice = (max(arrived[topic]) - min(arrived[topic]) for topic in ('/text', '/replayed'))
    assert 0.3 < twice / once < 0.8  # twice as fast, on a machine that may be busy
    told = [m.clock.sec * 10**9 + m.clock.nanosec for m in messages(again)['/clock']]
    assert len(told) >= 5 and told == sorted(told)
    with Reader(bag) as reader:
        assert reader.start_time <= told[0] and told[-1] <= reader.end_time + 10**9
    span = arrived['/clock'][-1] - arrived['/clock'][0]
    assert 1.3 < (told[-1] - told[0]) / span < 4  # 2 on a machine that is not busy


def test_play_from_an_offset_again_and_again(bag: Path) -> None:
    with Reader(bag) as reader:
        store, start = get_typestore(Stores.ROS2_JAZZY), reader.start_time + 200_000_000
        expected = [int(store.deserialize_cdr(data, connection.msgtype).data)
                    for connection, _, data in reader.messages(start=start)
                    if connection.topic == '/text']
    runs: list[list[int]] = [[]]

    def hear(message: String) -> None:
        if runs[-1] and int(message.data) < runs[-1][-1]:
            runs.append([])
        runs[-1].append(int(message.data))

    player = subprocess.Popen(command('bag', 'play', str(bag), '--start-offset', '0.2', '-l',
                                      '--topics', '/text', '-m', '/text:=/looped', '-d', '0.1'))
    rclpy.init(args=[])
    node = rclpy.create_node('listener')
    node.create_subscription(String, '/looped', hear, 100)
    try:
        deadline = time.monotonic() + WAIT
        while len(runs) < 3:
            assert time.monotonic() < deadline and player.poll() is None, runs
            rclpy.spin_once(node, timeout_sec=0.1)
        player.send_signal(signal.SIGINT)
        assert player.wait(WAIT) == 0
    finally:
        player.terminate()
        player.wait(WAIT)
        node.destroy_node()
        rclpy.shutdown()
    assert runs[1] == expected


@pytest.mark.parametrize(('arguments', 'message'), [
    (('record',), 'Must specify topics or -a'),
    (('info', '/nowhere'), 'cannot read bag /nowhere'),
    (('play', 'BAG', '--rate', '0'), '--rate 0: expected'),
    (('play', 'BAG', '--clock', '0'), '--clock 0: expected'),
    (('play', 'BAG', '--delay', '-1'), '--delay -1: expected'),
    (('play', 'BAG', '--start-offset', '99'), '--start-offset 99: expected 0 or more, and less '),
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
