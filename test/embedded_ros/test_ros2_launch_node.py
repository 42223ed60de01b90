"""A launched node over DDS: its name, parameters and remappings arrive, and it ends in order."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ros2cli.main import main

WAIT = 20.0  # s
NODE = f"""#!{sys.executable}
import rclpy
from rclpy.node import Node
from std_msgs.msg import String


class Robot(Node):
    def __init__(self):
        super().__init__('plain_name')
        for name in ('rate', 'speed.max', 'file', 'both', 'everywhere'):
            self.declare_parameter(name, 'not set', rclpy_descriptor())
        text = self.create_publisher(String, 'text', 10)
        self.create_timer(0.05, lambda: text.publish(String(data='from the launched node')))
        self.get_logger().info('ready')


def rclpy_descriptor():
    from rcl_interfaces.msg import ParameterDescriptor
    return ParameterDescriptor(dynamic_typing=True)


rclpy.init()
node = Robot()
try:
    rclpy.spin(node)
except KeyboardInterrupt:
    print('closed in order')
"""
LAUNCH = """<launch>
  <arg name="rate" default="1.5"/>
  <push_ros_namespace namespace="lab"/>
  <set_parameter name="everywhere" value="yes it is"/>
  <node pkg="demo_pkg" exec="robot" name="renamed" namespace="one" output="screen">
    <param name="rate" value="$(var rate)"/>
    <param name="speed"><param name="max" value="3"/></param>
    <param name="both" value="inline"/>
    <param from="$(dirname)/values.yaml"/>
    <remap from="text" to="/loud/text"/>
  </node>
</launch>"""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[subprocess.Popen, Path]:
    prefix = tmp_path / 'prefix'
    index = prefix / 'share/ament_index/resource_index/packages'
    executable = prefix / 'lib/demo_pkg/robot'
    share = prefix / 'share/demo_pkg/launch'
    for folder in (index, executable.parent, share):
        folder.mkdir(parents=True)
    (index / 'demo_pkg').touch()
    executable.write_text(NODE)
    executable.chmod(0o755)
    (share / 'robot.launch.xml').write_text(LAUNCH)
    (share / 'values.yaml').write_text(
        '/**:\n  ros__parameters: {file: from the file, both: file}\n'
        '/lab/one/other:\n  ros__parameters: {file: for another node}\n')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix))
    monkeypatch.setenv('ROS_DOMAIN_ID', str(100 + os.getpid() % 100))
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    output = tmp_path / 'output'
    with output.open('wb') as file:
        process = subprocess.Popen(
            [sys.executable, '-m', 'ros2cli.main', 'launch', 'demo_pkg', 'robot.launch.xml',
             'rate:=2.5'], stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + WAIT
    while 'ready' not in output.read_text():
        assert time.monotonic() < deadline and process.poll() is None, output.read_text()
        time.sleep(0.02)
    yield process, output
    if process.poll() is None:
        process.terminate()
        process.wait(WAIT)


def test_a_launched_node_is_what_the_file_says(launched, capsys) -> None:
    process, output = launched

    def ros2(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    assert ros2('node', 'list') == '/lab/one/renamed\n'
    for name, value in (('rate', 'Double value is: 2.5'), ('speed.max', 'Integer value is: 3'),
                        ('file', 'String value is: from the file'),
                        ('both', 'String value is: file'),
                        ('everywhere', 'String value is: yes it is')):
        assert ros2('param', 'get', '/lab/one/renamed', name) == f'{value}\n'
    assert ros2('topic', 'echo', '--once', 'loud/text') == 'data: from the launched node\n---\n'
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT) == 0
    text = output.read_text()
    assert '[robot-1] closed in order\n' in text
    assert '[INFO] [robot-1]: process has finished cleanly' in text
    assert '[lab.one.renamed]: ready' in text


def test_run_passes_arguments_and_exit_code(tmp_path: Path, monkeypatch) -> None:
    prefix = tmp_path / 'prefix'
    index = prefix / 'share/ament_index/resource_index/packages'
    executable = prefix / 'lib/demo_pkg/say'
    for folder in (index, executable.parent):
        folder.mkdir(parents=True)
    (index / 'demo_pkg').touch()
    executable.write_text('#!/bin/sh\necho "$2"\nexit 4\n')
    executable.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix))
    command = [sys.executable, '-m', 'ros2cli.main', 'run', 'demo_pkg']
    done = subprocess.run([*command, 'say', '--ros-args', 'a b'], capture_output=True, text=True,
                          timeout=WAIT)
    assert (done.returncode, done.stdout) == (4, 'a b\n')
    missing = subprocess.run([*command, 'sya'], capture_output=True, text=True, timeout=WAIT)
    assert missing.returncode == 1
    assert "no executable 'sya'\n" in missing.stderr
    python = subprocess.run([*command[:-1], 'pytest', 'pytest', '--version'],
                            capture_output=True, text=True, timeout=WAIT)
    assert (python.returncode, python.stdout[:7]) == (0, 'pytest ')
