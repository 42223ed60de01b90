"""What leaves the node: limits, deadlines, trajectories, health; and what it forgets on demand."""

import itertools
import math

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

NARROW = 'lower: [-0.01, -0.01, -0.01, -0.01, 0.0]\n    upper: [0.01, 0.01, 0.01, 0.01, 0.01]'


@pytest.fixture(scope='module')
def narrow_file(profile_file, tmp_path_factory):
    """A robot whose limits are narrower than what a policy with random weights says."""
    head, _, tail = profile_file.read_text('utf-8').partition('lower: [')
    path = tmp_path_factory.mktemp('narrow') / 'narrow.yaml'
    path.write_text(head + NARROW + '\n' + tail.partition(']\n')[2].partition(']\n')[2], 'utf-8')
    return path


@pytest.fixture(scope='module')
def node(start, random_checkpoint, narrow_file):
    process = start(checkpoint=random_checkpoint, robot_profile=narrow_file, rate_hz=20.0)
    process.wait_for('active: ')
    return process


@pytest.fixture(scope='module')
def heard(robot):
    """What the robot hears beside chunks and statistics."""
    heard = {'joint_trajectory': [], 'policy_node/heartbeat': [], '/diagnostics': []}
    for (topic, messages), kind in zip(
            heard.items(), (JointTrajectory, String, DiagnosticArray), strict=True):
        robot.create_subscription(kind, topic, messages.append, 10)
    return heard


@pytest.fixture(autouse=True)
def fresh(node, robot, heard):
    robot.until(lambda: robot.chunks)
    robot.forget()
    for messages in heard.values():
        messages.clear()


def call(robot, service):
    client = robot.create_client(Trigger, service)
    assert client.wait_for_service(timeout_sec=15)
    answer = client.call_async(Trigger.Request())
    robot.until(answer.done)
    return answer.result()


def test_actions_beyond_the_limits_are_clamped_and_flagged_or_refused(robot):
    robot.until(lambda: len(robot.chunks) > 2)
    for chunk in robot.chunks:
        actions = np.reshape(chunk.actions, (10, 5))
        assert chunk.valid and chunk.clamped and not chunk.reason
        assert (np.abs(actions) <= np.float32(0.01)).all() and actions[:, 4].min() >= 0
        assert (np.abs(actions[:, :4]) == np.float32(0.01)).any()
    assert robot.of_state('inference')[-1].over_limits > 0
    assert not robot.set_parameter('action_limits', 'refuse')
    robot.forget()
    robot.until(lambda: len(robot.chunks) > 2)
    for chunk in robot.chunks:
        assert not chunk.valid and not chunk.clamped and not len(chunk.actions)
        assert chunk.reason.startswith('over limits: ')
        assert chunk.reason.endswith(' to 0.01 (action_limits)')
    assert not robot.set_parameter('action_limits', 'clamp')


def test_late_chunks_are_flagged_or_dropped(robot):
    assert not robot.chunks
    assert not robot.set_parameter('deadline_ms', 0.01)
    robot.until(lambda: any(chunk.late for chunk in robot.chunks))
    assert robot.chunks[-1].late and robot.chunks[-1].valid
    misses = robot.of_state('inference')[-1].deadline_misses
    assert misses > 0
    assert not robot.set_parameter('late_chunks', 'drop')
    robot.forget()
    robot.until(lambda: len(robot.of_state('dropped')) > 2)
    assert not robot.chunks
    dropped = robot.of_state('dropped')[-1]
    assert 'ms after its observation, expected at most 0.01 ms' in dropped.reason
    assert dropped.deadline_misses > misses
    assert not robot.set_parameter('deadline_ms', 10_000.0)
    robot.until(lambda: robot.chunks)
    assert not robot.chunks[-1].late
    assert not robot.set_together({'deadline_ms': 0.0, 'late_chunks': 'publish'})


def test_the_trajectory_says_what_the_chunk_says(robot, heard):
    trajectories = heard['joint_trajectory']
    robot.until(lambda: len(robot.chunks) > 2)
    assert not trajectories  # Off by default.
    assert not robot.set_parameter('joint_trajectory.enabled', True)
    robot.until(lambda: len(trajectories) > 2)
    chunks = {(chunk.header.stamp.sec, chunk.header.stamp.nanosec): chunk
              for chunk in robot.chunks}
    for trajectory in trajectories[:-1]:
        chunk = chunks[trajectory.header.stamp.sec, trajectory.header.stamp.nanosec]
        np.testing.assert_array_equal(
            np.float32([point.positions for point in trajectory.points]).ravel(), chunk.actions)
        assert list(trajectory.joint_names) == list(chunk.names)
    assert not robot.set_parameter('action_limits', 'refuse')
    robot.forget()
    trajectories.clear()
    robot.until(lambda: len(robot.chunks) > 2)
    assert not trajectories  # What is not valid is no motion.
    assert not robot.set_together({'joint_trajectory.enabled': False, 'action_limits': 'clamp'})


def test_a_dry_run_counts_and_moves_nothing(robot, heard):
    assert not robot.set_together({'dry_run': True, 'joint_trajectory.enabled': True})
    robot.forget()
    heard['joint_trajectory'].clear()
    robot.until(lambda: len(robot.of_state('inference')) > 3)
    assert not robot.chunks and not heard['joint_trajectory']
    first, *_, last = robot.of_state('inference')
    assert last.dry_run and last.chunks_valid > first.chunks_valid and last.total_ms > 0
    assert not robot.set_together({'dry_run': False, 'joint_trajectory.enabled': False})


def test_it_tells_how_it_is(robot, heard):
    def well():  # A test before had chunks that were late.
        return heard['/diagnostics'] and (
            heard['/diagnostics'][-1].status[0].level == DiagnosticStatus.OK)

    robot.until(lambda: well() and len(heard['policy_node/heartbeat']) > 3)
    status, = heard['/diagnostics'][-1].status
    values = {pair.key: pair.value for pair in status.values}
    assert status.name == '/policy_node: policy' and status.hardware_id == 'tabletop'
    assert status.message == 'active'
    assert values['state'] == 'active' and values['variant'] == 'default'
    assert 0 < float(values['latency_p50_ms']) <= float(values['latency_p99_ms'])
    assert float(values['rate_hz']) > 0 and float(values['device_memory_mb']) > 100
    assert {'deadline_misses', 'dropped_observations', 'malformed', 'compilations',
            'refused'} <= values.keys()
    assert {message.data for message in heard['policy_node/heartbeat']} == {'active'}


@pytest.mark.timeout(120)
def test_it_tells_that_nothing_comes_in(robot, heard):
    def wrong():
        return any(status.level == DiagnosticStatus.WARN and status.message.startswith(
            'stale camera: ') for message in heard['/diagnostics'] for status in message.status)

    said = itertools.count()
    while not wrong():
        assert next(said) < 300
        rclpy.spin_once(robot, timeout_sec=0.1)


def test_reset_and_a_new_instruction_clear_what_was_remembered(robot):
    """The chunk before is what is guessed from: what knows of none guesses nothing."""
    def guessed():
        return [stats.drafted_tokens > 0 for stats in robot.of_state('inference')]

    assert not robot.set_together({'speculative.enabled': True, 'speculative.draft_length': 1,
                                   'speculative.drafter': 'previous_chunk'})
    robot.until(lambda: any(guessed()), timeout=60)
    robot.forget()
    robot.until(lambda: len(guessed()) > 3)
    assert all(guessed()[1:])  # A pause may have been longer than the chunk before.
    answer = call(robot, 'policy_node/reset')
    assert answer.success and 'knows nothing' in answer.message
    robot.until(lambda: not all(guessed()[1:]) and guessed()[-1], timeout=10)
    assert guessed()[1:].count(False) == 1
    robot.stats.clear()
    robot.until(lambda: robot.chunks[-1].instruction == 'push it', instruction='push it')
    robot.until(lambda: guessed()[-1], instruction='push it', timeout=10)
    assert guessed().count(False) == 1
    assert not robot.set_together({'speculative.enabled': False, 'speculative.draft_length': 0,
                                   'speculative.drafter': 'head'})


def test_a_budget_has_variants_measured_and_loses_no_chunk(robot):
    from robot import stamp_of
    assert not robot.set_together({'latency_budget_ms': 0.001, 'rate_hz': 10.0,
                                   'speculative.draft_length': 1})
    said = robot.until(lambda: robot.stats and sum(map(
        math.isfinite, robot.stats[-1].budget_latencies_ms)) > 1, timeout=120, every=0.05)
    stats = robot.stats[-1]
    assert stats.latency_budget_ms == np.float32(0.001)
    assert 'do not fit 0.001 ms' in stats.budget_decision
    assert stats.budget_variants[0] == stats.variant and len(stats.budget_variants) > 5
    assert [chunk.sequence for chunk in robot.chunks] == list(range(
        robot.chunks[0].sequence, robot.chunks[0].sequence + len(robot.chunks)))
    assert all(chunk.valid for chunk in robot.chunks)
    answered = sorted(said.index(stamp_of(chunk)) for chunk in robot.chunks
                      if stamp_of(chunk) in said)
    assert max(np.diff(answered)) < 10  # At 20 a second every other one is answered.
    assert not robot.set_parameter('latency_budget_ms', 60_000.0)
    robot.until(lambda: 'the least lossy that fits' in robot.stats[-1].budget_decision)
    assert not robot.set_together({'latency_budget_ms': 0.0, 'rate_hz': 20.0,
                                   'speculative.draft_length': 0})
    robot.until(lambda: robot.stats[-1].variant == 'default')
    assert not robot.stats[-1].budget_variants
