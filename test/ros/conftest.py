"""The node as a process of its own over DDS, and a robot that says exactly what a test wants."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

rclpy = pytest.importorskip('rclpy', reason='neither ROS 2 nor embedded_ros is installed')


@pytest.fixture(scope='session', autouse=True)
def domain():
    """Give this test process a domain that parallel ones do not have."""
    before = os.environ.get('ROS_DOMAIN_ID')
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 99)
    yield
    if before is None:
        del os.environ['ROS_DOMAIN_ID']
    else:
        os.environ['ROS_DOMAIN_ID'] = before


class Process:
    """A process whose output can be waited for."""

    def __init__(self, log, *command):
        self.log = log
        with log.open('wb') as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self.log.read_text('utf-8', 'replace')

    def wait_for(self, text, timeout=120):
        end = time.monotonic() + timeout
        while text not in self.output:
            assert self._process.poll() is None, f'the process ended:\n{self.output}'
            assert time.monotonic() < end, f'no {text!r} in:\n{self.output}'
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout) -> int:
        return self._process.wait(timeout)

    def send(self, number):
        self._process.send_signal(number)

    def stop(self, number=signal.SIGINT, timeout=30) -> int:
        if self.running():
            self.send(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


@pytest.fixture(scope='module')
def begin(tmp_path_factory):
    """Return a function that starts a process; all are stopped with the file's last test."""
    started = []

    def start(*command):
        log = tmp_path_factory.mktemp('process') / 'log.txt'
        started.append(Process(log, *map(str, command)))
        return started[-1]

    yield start
    for process in started:
        process.stop(signal.SIGKILL)


@pytest.fixture(scope='module')
def start(begin):
    """Return a function that starts a policy node with these parameters.

    It finds the compiled code of other tests, unless it is given a folder of its own.
    """
    def start_node(*arguments, **values):
        values.setdefault('compilation_cache', "''")
        parameters = [word for name, value in values.items()
                      for word in ('-p', f'{name}:={value}')]
        return begin(sys.executable, '-u', '-m', 'ros_pi0_fast.node.policy_node', '--ros-args',
                     *arguments, *parameters)
    return start_node


@pytest.fixture(scope='session')
def ros2_program():
    """Return the `ros2` command's path."""
    return shutil.which('ros2') or Path(sys.executable).with_name('ros2')


@pytest.fixture(scope='session')
def ros2(ros2_program):
    """Return a function that runs the `ros2` command to its end."""
    def run(*words, timeout=30):
        return subprocess.run([ros2_program, *words], capture_output=True, text=True,
                              timeout=timeout)
    return run


@pytest.fixture(scope='session')
def profile_file(repository, tmp_path_factory):
    """Return the tabletop's profile with a wrist camera that sends compressed pictures."""
    text = (repository / 'config' / 'robots' / 'tabletop.yaml').read_text('utf-8')
    raw = 'topic: image/wrist, transport: raw'
    assert raw in text
    path = tmp_path_factory.mktemp('profile') / 'tabletop.yaml'
    path.write_text(text.replace(raw, raw.replace('raw', 'compressed')), 'utf-8')
    return path


@pytest.fixture(scope='module')
def context():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def robot(context):
    from robot import Robot
    node = Robot()
    yield node
    node.destroy_node()
