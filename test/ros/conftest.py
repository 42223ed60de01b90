"""The node as a process of its own over DDS, and a robot that says exactly what a test wants."""

import os
import signal
import subprocess
import sys
import time

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
    """A node process whose output can be waited for."""

    def __init__(self, log, *arguments):
        self.log = log
        with log.open('wb') as file:
            self._process = subprocess.Popen(
                [sys.executable, '-u', '-m', 'ros_pi0_fast.node.policy_node', '--ros-args',
                 *arguments], stdout=file, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self.log.read_text('utf-8', 'replace')

    def wait_for(self, text, timeout=120):
        end = time.monotonic() + timeout
        while text not in self.output:
            assert self._process.poll() is None, f'the node ended:\n{self.output}'
            assert time.monotonic() < end, f'no {text!r} in:\n{self.output}'
            time.sleep(0.05)

    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, number=signal.SIGINT, timeout=30) -> int:
        if self.running():
            self._process.send_signal(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


def parameters(**values):
    """Return `-p` arguments."""
    return [word for name, value in values.items() for word in ('-p', f'{name}:={value}')]


@pytest.fixture(scope='session')
def start(tmp_path_factory):
    """Return a function that starts a policy node; all are stopped in the end."""
    started = []

    def begin(*arguments, **values):
        log = tmp_path_factory.mktemp('node') / 'log.txt'
        started.append(Process(log, *arguments, *parameters(**values)))
        return started[-1]

    yield begin
    for process in started:
        process.stop(signal.SIGKILL)


@pytest.fixture(scope='module')
def robot():
    from robot import Robot
    rclpy.init()
    node = Robot()
    yield node
    node.destroy_node()
    rclpy.try_shutdown()
