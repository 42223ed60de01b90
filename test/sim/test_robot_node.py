"""The simulated robot over DDS, in real time; the expert stands in for the policy."""

import time

import numpy as np
import pytest
import rclpy
from PIL import Image as Picture
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from ros_pi0_fast.msg import ActionChunk
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.expert import expert_chunk
from ros_pi0_fast.sim.robot_node import TabletopRobot

DOMAIN = 61
WAIT_S = 60.0  # far above what is needed, for a busy machine


class Policy(Node):
    """Answers with the expert's chunks, or with what it is told to."""

    def __init__(self, robot: TabletopRobot, period_s: float = 0.3):
        super().__init__('stand_in_policy')
        self.change = lambda message: None
        self.seen = {'image/base': [], 'image/wrist': [], 'joint_states': []}
        self._table = robot._table  # the expert must see what the robot does not publish
        self._instruction = ''
        self._sequence = 0
        self._publisher = self.create_publisher(ActionChunk, 'action_chunk', 1)
        for topic, kind, qos in (('image/base', Image, qos_profile_sensor_data),
                                 ('image/wrist', Image, qos_profile_sensor_data),
                                 ('joint_states', JointState, 10)):
            self.create_subscription(kind, topic, self.seen[topic].append, qos)
        self.create_subscription(String, 'instruction', self._on_instruction, 10)
        self.create_timer(period_s, self._answer)

    def _on_instruction(self, message: String) -> None:
        self._instruction = message.data

    def _answer(self) -> None:
        if not self._instruction:
            return
        self._sequence += 1
        chunk = expert_chunk(self._table)
        message = ActionChunk(
            sequence=self._sequence, horizon=len(chunk), action_dim=chunk.shape[1],
            names=list(arm.ACTION_NAMES), actions=[float(x) for x in chunk.ravel()],
            absolute=True, valid=True, instruction=self._instruction, variant='expert',
            total_ms=2.0)
        message.header.stamp = self.get_clock().now().to_msg()
        message.control_period.nanosec = 100_000_000
        self.change(message)
        self._publisher.publish(message)


@pytest.fixture
def start():
    """Return a function that starts the robot with parameters, and the policy."""
    nodes = []

    def start(*parameters: str) -> tuple[TabletopRobot, Policy]:
        arguments = [word for text in parameters for word in ('-p', text)]
        rclpy.init(args=['--ros-args', *arguments], domain_id=DOMAIN)
        nodes.append(TabletopRobot())
        nodes.append(Policy(nodes[0]))
        return nodes[0], nodes[1]

    yield start
    for node in nodes:
        node.destroy_node()
    if rclpy.ok():
        rclpy.shutdown()


def run(*nodes: Node) -> int | None:
    """Spin until the robot, the first node, has ended; return its exit code."""
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)
    deadline = time.monotonic() + WAIT_S
    while nodes[0].exit_code is None and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    return nodes[0].exit_code


def test_chunks_of_the_expert_solve_every_task(start, tmp_path, capsys):
    video = tmp_path / 'run' / 'run.gif'
    robot, policy = start('episodes:=3', f'video:={video}')
    assert run(robot, policy) == 0
    robot.finish()
    printed = capsys.readouterr().out
    for task in ('reach', 'push', 'pick'):
        assert f'success: {task}' in printed
    assert sum(map(sum, robot._report.outcomes.values())) >= 2  # of 3, on a busy machine
    assert str(video) in printed
    with Picture.open(video) as film:
        assert film.n_frames > 20 and film.size == (320, 240)
    check_topics(policy)


def check_topics(policy: Policy) -> None:
    for topic in ('image/base', 'image/wrist'):
        images = policy.seen[topic]
        assert len(images) > 20
        last = images[-1]
        assert (last.height, last.width, last.encoding, last.step) == (64, 64, 'rgb8', 192)
        assert len(last.data) == 64 * 192 and np.std(last.data) > 10
    joints = policy.seen['joint_states']
    assert list(joints[-1].name) == list(arm.ACTION_NAMES)
    stamps = [message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
              for message in joints]
    assert len(stamps) > 40 and sorted(stamps) == stamps


def wrong(message: ActionChunk) -> None:
    if message.sequence > 1:
        message.valid, message.reason = False, 'ends early'
        message.horizon, message.actions = 0, []


def relative(message: ActionChunk) -> None:
    message.absolute = message.sequence == 1


def late(message: ActionChunk) -> None:
    message.header.stamp.sec -= 5


@pytest.mark.parametrize('change', [wrong, relative, late])
def test_the_robot_holds_still_rather_than_play_a_chunk_that_it_must_not(start, change, capsys):
    robot, policy = start('episodes:=1', 'tasks:=[pick]', 'episode_seconds:=1.0')
    policy.change = change
    before = robot._table.joints
    assert run(robot, policy) == 0
    robot.finish()
    np.testing.assert_allclose(robot._table.joints, before, atol=0.01)
    report = robot._report
    assert report.holds == report.controls == 10
    assert report.valid == (0 if change is wrong else report.received) and report.received > 0
    assert ('invalid: ends early' in capsys.readouterr().out) == (change is wrong)


def test_it_gives_up_when_no_chunk_comes(start):
    robot, _ = start('start_timeout_s:=0.3')
    assert run(robot) == 1


def test_an_unknown_task_is_refused(start):
    with pytest.raises(ValueError, match=r"tasks: found \['dance'\], expected some of reach"):
        start('tasks:=[dance]')
