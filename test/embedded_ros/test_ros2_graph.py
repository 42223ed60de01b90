"""The graph verbs of `ros2` against a node in another process, over DDS."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ros2cli.main import main

WAIT = 20.0  # s
NODE = """
import rclpy
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool


class Robot(Node):
    def __init__(self):
        super().__init__('robot', namespace='/demo')
        rate = ParameterDescriptor(description='how often', floating_point_range=[
            FloatingPointRange(from_value=0.5, to_value=10.0)])
        self.declare_parameter('rate_hz', 5.0, rate)
        self.declare_parameter('mode.name', 'fast')
        self.declare_parameter('mode.gains', [1.0, 2.5])
        self.declare_parameter('id', 7, ParameterDescriptor(read_only=True))
        self.add_on_set_parameters_callback(self.check)
        self.text = self.create_publisher(String, '/chatter', 10)
        self.state = self.create_publisher(JointState, 'joints', qos_profile_sensor_data)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.latched = self.create_publisher(String, 'latched', latched)
        self.latched.publish(String(data='once and for all'))
        self.create_subscription(String, 'heard', self.hear, 10)
        self.create_service(SetBool, 'switch', self.switch)
        self.count = 0
        self.create_timer(0.02, self.tick)

    def check(self, parameters):
        refused = [p for p in parameters if p.name == 'mode.name' and p.value == 'slow']
        return SetParametersResult(successful=not refused, reason='too slow' if refused else '')

    def tick(self):
        self.count += 1
        self.text.publish(String(data=f'hello {self.count}'))
        message = JointState(name=['a', 'b'], position=[float(i) for i in range(200)])
        message.header.frame_id = 'base'
        self.state.publish(message)

    def hear(self, message):
        print('heard', message.data, flush=True)

    def switch(self, request, response):
        response.success = request.data
        response.message = 'now ' + ('on' if request.data else 'off')
        return response


rclpy.init()
node = Robot()
print('ready', flush=True)
rclpy.spin(node)
"""


@pytest.fixture(scope='module')
def domain() -> int:
    """A ROS domain for this process; the command runs in it and the robot inherits it."""
    number = 60 + os.getpid() % 40
    before = os.environ.get('ROS_DOMAIN_ID')
    os.environ['ROS_DOMAIN_ID'] = str(number)
    yield number
    os.environ.pop('ROS_DOMAIN_ID')
    if before is not None:
        os.environ['ROS_DOMAIN_ID'] = before


@pytest.fixture(scope='module')
def robot(domain: int, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    output = tmp_path_factory.mktemp('robot') / 'output'
    with output.open('wb') as file:
        process = subprocess.Popen([sys.executable, '-c', NODE], stdout=file,
                                   stderr=subprocess.STDOUT)
    deadline = time.monotonic() + WAIT
    while 'ready' not in output.read_text():
        assert time.monotonic() < deadline and process.poll() is None, output.read_text()
        time.sleep(0.02)
    yield SimpleNamespace(output=output, process=process)
    process.terminate()
    process.wait()


@pytest.fixture
def ros2(robot: SimpleNamespace, capsys: pytest.CaptureFixture):
    """Run a command in this process; returns exit code, stdout and stderr."""
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err
    return run


def test_help_and_wrong_settings(capsys, monkeypatch) -> None:
    for words in ([], ['topic']):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith('usage: ros2')
    monkeypatch.setenv('ROS_DOMAIN_ID', '300')
    assert main(['topic', 'list']) == 1
    assert capsys.readouterr().err == (
        "ROS_DOMAIN_ID is '300'; expected a whole number from 0 to 232\n")
    done = subprocess.run([sys.executable, '-m', 'ros2cli.main', 'topic', 'list'], text=True,
                          env={**os.environ, 'ROS_DISTRO': 'foxy'}, capture_output=True)
    assert (done.returncode, done.stderr) == (
        1, "ROS_DISTRO is 'foxy'; expected one of humble, jazzy, kilted, lyrical, rolling, or "
        'unset\n')


def test_topic_list(ros2) -> None:
    code, out, _ = ros2('topic', 'list', '-t')
    assert code == 0
    assert out.splitlines() == sorted(out.splitlines())
    assert '/chatter [std_msgs/msg/String]\n' in out
    assert '/demo/joints [sensor_msgs/msg/JointState]\n' in out
    assert 'ros_discovery_info' not in out


def test_topic_list_verbose(ros2) -> None:
    _, out, _ = ros2('topic', 'list', '-v')
    published, subscribed = out.split('Subscribed topics:\n')
    assert published.startswith('Published topics:\n')
    assert ' * /chatter [std_msgs/msg/String] 1 publisher\n' in published
    assert ' * /demo/heard [std_msgs/msg/String] 1 subscriber\n' in subscribed


def test_topic_info_verbose(ros2) -> None:
    code, out, _ = ros2('topic', 'info', '-v', '/demo/joints')
    assert code == 0
    assert out.startswith('Type: sensor_msgs/msg/JointState\n\nPublisher count: 1\n\n'
                          'Node name: robot\nNode namespace: /demo\n'
                          'Topic type: sensor_msgs/msg/JointState\nTopic type hash: RIHS01_')
    assert re.search(r'\nEndpoint type: PUBLISHER\nGID: ([0-9a-f]{2}\.){15}[0-9a-f]{2}\n', out)
    assert ('QoS profile:\n  Reliability: BEST_EFFORT\n  History (Depth): ' in out)
    assert '  Durability: VOLATILE\n  Lifespan: Infinite\n  Deadline: Infinite\n' in out
    assert out.endswith('Subscription count: 0\n\n')


def test_topic_type_and_missing_topic(ros2) -> None:
    assert ros2('topic', 'type', '/chatter')[:2] == (0, 'std_msgs/msg/String\n')
    code, out, err = ros2('topic', 'type', 'chater', '--spin-time', '0.8')
    assert (code, out) == (1, '')
    assert err == "Unknown topic '/chater'\nDid you mean: /chatter?\n"
    assert ros2('topic', 'echo', 'joints', '--spin-time', '0.8') == (
        1, '', 'WARNING: topic [/joints] does not appear to be published yet\n'
        'Could not determine the type for the passed topic\nDid you mean: /demo/joints?\n')


def test_echo_once_by_relative_name(ros2) -> None:
    code, out, _ = ros2('topic', 'echo', '--once', 'chatter')
    assert code == 0
    assert re.fullmatch(r'data: hello \d+\n---\n', out)


def test_echo_truncates_and_matches_best_effort(ros2) -> None:
    _, out, _ = ros2('topic', 'echo', '--once', '/demo/joints', '-l', '2')
    message = yaml.safe_load(out.removesuffix('---\n'))
    assert message['position'] == [0.0, 1.0, '...']
    assert message['header']['frame_id'] == 'ba...'
    _, out, _ = ros2('topic', 'echo', '--once', '/demo/joints', '--no-arr', '--flow-style')
    assert "'<sequence type: double, length: 200>'" in out
    _, out, _ = ros2('topic', 'echo', '--once', '/demo/joints')
    position = yaml.safe_load(out.removesuffix('---\n'))['position']
    assert len(position) == 129 and position[-1] == '...'


def test_echo_fields_and_latched_messages(ros2) -> None:
    assert ros2('topic', 'echo', '--once', '/demo/latched')[1] == 'data: once and for all\n---\n'
    assert ros2('topic', 'echo', '--once', '--field', 'header.frame_id', '/demo/joints')[1] == (
        'base\n---\n')
    assert ros2('topic', 'echo', '--once', '--field', 'name[1]', '/demo/joints')[1] == 'b\n---\n'
    code, _, err = ros2('topic', 'echo', '--once', '--field', 'header.nothing', '/demo/joints')
    assert code == 1
    assert "Invalid field 'header.nothing'" in err


def test_hz_waits_for_the_topic_and_prints_its_rate(ros2) -> None:
    # As a process in a pipe, ended by a signal: what was measured must have been printed.
    process = subprocess.Popen([sys.executable, '-m', 'ros2cli.main', 'topic', 'hz', 'pulse',
                                '--spin-time', '0.1'], stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline()]
    assert ros2('topic', 'pub', '-r', '50', '-t', '70', '-w', '1', 'pulse', 'std_msgs/msg/String',
                '--print', '0')[0] == 0
    lines += [process.stdout.readline(), process.stdout.readline()]
    process.terminate()
    process.wait(WAIT)
    process.stdout.close()
    assert lines[0] == 'WARNING: topic [/pulse] does not appear to be published yet\n'
    assert 20 < float(re.fullmatch(r'average rate: (\d+\.\d{3})\n', lines[1])[1]) < 100
    assert re.fullmatch(r'\tmin: \d+\.\d{3}s max: \d+\.\d{3}s std dev: \d+\.\d{5}s '
                        r'window: \d+\n', lines[2])


def test_pub_is_heard(ros2, robot) -> None:
    code, out, _ = ros2('topic', 'pub', '--once', '/demo/heard', 'std_msgs/msg/String',
                        'data: good morning')
    assert code == 0
    assert out.endswith("publisher: beginning loop\npublishing #1: "
                        "std_msgs.msg.String(data='good morning')\n\n")
    deadline = time.monotonic() + WAIT
    while 'heard good morning' not in robot.output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize('header', ['auto', '{stamp: now, frame_id: base}'])
def test_pub_stamps(ros2, header) -> None:
    _, out, _ = ros2('topic', 'pub', '--times', '2', '-r', '50', '-w', '0', '/stamped',
                     'sensor_msgs/msg/JointState', f'{{header: {header}, position: [1]}}')
    stamps = [int(sec) + int(nanosec) * 1e-9
              for sec, nanosec in re.findall(r'Time\(sec=(\d+), nanosec=(\d+)\)', out)]
    assert len(stamps) == 2 and stamps[0] < stamps[1]
    assert abs(stamps[1] - time.time()) < 10
    assert 'position=[1.0]' in out and ("frame_id='base'" in out) == (header != 'auto')


@pytest.mark.parametrize(('message_type', 'values', 'reason'), [
    ('std_msgs/msg/Strng', '{}', "The message type 'std_msgs/msg/Strng' is invalid"),
    ('std_msgs/msg/String', '{dat: x}', 'Failed to populate field'),
    ('std_msgs/msg/String', 'x', 'needs to be a dictionary'),
    ('std_msgs/msg/String', '{', 'is not YAML'),
])
def test_pub_refuses(ros2, message_type, values, reason) -> None:
    code, _, err = ros2('topic', 'pub', '--once', '/x', message_type, values)
    assert code == 1
    assert reason in err


def test_node_list_and_info(ros2) -> None:
    assert ros2('node', 'list')[:2] == (0, '/demo/robot\n')
    assert '/_ros2cli_' in ros2('node', 'list', '--all')[1]
    code, out, _ = ros2('node', 'info', '/demo/robot')
    assert code == 0
    assert out.startswith('/demo/robot\n  Subscribers:\n')
    for line in ('  Subscribers:\n    /demo/heard: std_msgs/msg/String\n',
                 '    /chatter: std_msgs/msg/String\n',
                 '    /demo/switch: std_srvs/srv/SetBool\n',
                 '    /demo/robot/get_parameters: rcl_interfaces/srv/GetParameters\n',
                 '  Action Servers:\n\n  Action Clients:\n\n'):
        assert line in out
    code, _, err = ros2('node', 'info', '/robot', '--spin-time', '0.8')
    assert (code, err) == (1, "Unable to find node '/robot'\nDid you mean: /demo/robot?\n")


def test_services(ros2) -> None:
    _, out, _ = ros2('service', 'list', '-t')
    assert '/demo/switch [std_srvs/srv/SetBool]\n' in out
    assert ros2('service', 'type', '/demo/switch')[1] == 'std_srvs/srv/SetBool\n'
    code, out, _ = ros2('service', 'call', '/demo/switch', 'std_srvs/srv/SetBool', 'data: true')
    assert code == 0
    assert out.endswith(
        'requester: making request: std_srvs.srv.SetBool_Request(data=True)\n\nresponse:\n'
        "std_srvs.srv.SetBool_Response(success=True, message='now on')\n\n")
    code, _, err = ros2('service', 'type', '/demo/swich', '--spin-time', '0.8')
    assert (code, err) == (1, "Unknown service '/demo/swich'\nDid you mean: /demo/switch?\n")


def test_param_list_get_describe(ros2) -> None:
    _, out, _ = ros2('param', 'list', '/demo/robot', '--param-type')
    assert '  mode.gains (type: double array)\n' in out
    assert '  rate_hz (type: double)\n' in out
    assert ros2('param', 'get', '/demo/robot', 'id')[1] == 'Integer value is: 7\n'
    assert ros2('param', 'get', '/demo/robot', 'mode.name', '--hide-type')[1] == 'fast\n'
    assert ros2('param', 'get', '/demo/robot', 'mode.gains')[1] == (
        'Double values are: [1.0, 2.5]\n')
    _, out, _ = ros2('param', 'describe', '/demo/robot', 'rate_hz', 'id')
    assert out == ('Parameter name: rate_hz\n  Type: double\n  Description: how often\n'
                   '  Constraints:\n    Min value: 0.5\n    Max value: 10.0\n'
                   'Parameter name: id\n  Type: integer\n  Constraints:\n    Read only: true\n')
    code, _, err = ros2('param', 'get', '/demo/robot', 'rate')
    assert code == 1
    assert "has no parameter 'rate'\nDid you mean: rate_hz?" in err


def test_param_set(ros2) -> None:
    assert ros2('param', 'set', '/demo/robot', 'rate_hz', '2.5')[:2] == (
        0, 'Set parameter successful\n')
    assert ros2('param', 'get', '/demo/robot', 'rate_hz')[1] == 'Double value is: 2.5\n'
    code, _, err = ros2('param', 'set', '/demo/robot', 'mode.name', 'slow')
    assert (code, err) == (1, 'Setting parameter failed: too slow\n')
    for name, value in (('rate_hz', '99.0'), ('rate_hz', 'text'), ('id', '8')):
        code, _, err = ros2('param', 'set', '/demo/robot', name, value)
        assert code == 1
        assert re.match('Setting parameter failed: .+', err)


def test_param_dump_and_load(ros2, tmp_path: Path) -> None:
    _, out, _ = ros2('param', 'dump', '/demo/robot')
    values = yaml.safe_load(out)['/demo/robot']['ros__parameters']
    assert values['mode'] == {'name': 'fast', 'gains': [1.0, 2.5]}
    path = tmp_path / 'p.yaml'
    path.write_text("/**: {ros__parameters: {rate_hz: 1.0, mode: {name: 'other'}}}\n"
                    '/demo/robot: {ros__parameters: {rate_hz: 3.0}}\n'
                    '/else: {ros__parameters: {rate_hz: 4.0}}\n')
    code, out, _ = ros2('param', 'load', '/demo/robot', str(path))
    assert code == 0
    assert sorted(out.splitlines()) == ['Set parameter mode.name successful',
                                        'Set parameter rate_hz successful']
    assert ros2('param', 'get', '/demo/robot', 'rate_hz')[1] == 'Double value is: 3.0\n'
    path.write_text('/demo/robot: {ros__parameters: {id: 8, mode: {name: fast}}}')
    code, out, err = ros2('param', 'load', '/demo/robot', str(path))
    assert code == 1
    assert out == 'Set parameter mode.name successful\n'
    assert err.startswith('Set parameter id failed: ')
