"""`ros2 lifecycle` against a lifecycle node in another process, over DDS."""

import os
import subprocess
import sys
import time

import pytest
from ros2cli.main import main

WAIT = 20.0  # s
NODE = """
import rclpy
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn


class Managed(LifecycleNode):
    def on_configure(self, state):
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state):
        return TransitionCallbackReturn.FAILURE


rclpy.init()
node = Managed('managed')
print('ready', flush=True)
rclpy.spin(node)
"""


@pytest.fixture(scope='module')
def managed(tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp('managed') / 'output'
    with pytest.MonkeyPatch.context() as patch, output.open('wb') as file:
        patch.setenv('ROS_DOMAIN_ID', str(20 + os.getpid() % 40))
        process = subprocess.Popen([sys.executable, '-c', NODE], stdout=file,
                                   stderr=subprocess.STDOUT)
        deadline = time.monotonic() + WAIT
        while 'ready' not in output.read_text():
            assert time.monotonic() < deadline and process.poll() is None, output.read_text()
            time.sleep(0.02)
        yield
        process.terminate()
        process.wait()


@pytest.fixture
def ros2(managed: None, capsys: pytest.CaptureFixture):
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(['lifecycle', *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err
    return run


def test_a_lifecycle(ros2) -> None:
    assert ros2('nodes') == (0, '/managed\n', '')
    assert ros2('get', '/managed') == (0, 'unconfigured [1]\n', '')
    code, out, _ = ros2('list', 'managed')
    assert code == 0
    assert out.startswith('- configure [1]\n\tStart: unconfigured\n\tGoal: configuring\n')
    assert '- activate' not in out
    assert '- activate [3]\n' in ros2('list', '/managed', '--all')[1]
    assert ros2('set', '/managed', 'configure') == (0, 'Transitioning successful\n', '')
    assert ros2('get') == (0, '/managed: inactive [2]\n', '')
    assert ros2('set', '/managed', 'activate') == (1, '', 'Transitioning failed\n')
    code, _, err = ros2('set', '/managed', 'fly')
    assert code == 1
    assert err.startswith('Unknown transition requested, available ones are:\n- ')
    assert '- cleanup [2]' in err


def test_unknown_nodes(ros2) -> None:
    code, _, err = ros2('get', '/manage', '--spin-time', '0.8')
    assert (code, err) == (1, "Node not found: '/manage'\nDid you mean: /managed?\n")
