"""A chunk as a trajectory: the same targets at the same times."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='neither ROS 2 nor embedded_ros is installed')

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.node.trajectory import TrajectoryError, check_positions, trajectory_message
from ros_pi0_fast.types import ActionChunk


def test_time_counts_from_the_observation(tabletop_profile):
    actions = np.arange(50, dtype=np.float32).reshape(10, 5)
    message = trajectory_message(
        ActionChunk(actions=actions, valid=True, stamp_ns=3_200_000_000), tabletop_profile)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 200_000_000)
    assert list(message.joint_names) == list(tabletop_profile.actions.names)
    np.testing.assert_array_equal([point.positions for point in message.points], actions)
    times = [point.time_from_start.sec * 10**9 + point.time_from_start.nanosec
             for point in message.points]
    assert times == [step * 100_000_000 for step in range(10)]  # 10 Hz, the first row at once.


@pytest.mark.parametrize(('robot', 'words'), [
    ('droid', 'panda_joint1 of .*droid.yaml is in velocity, which is no position'),
    ('libero', 'action gripper of .*libero.yaml is none of its state.joints')])
def test_what_is_no_position_of_a_joint_is_refused(repository, robot, words):
    profile = RobotProfile.load(repository / 'config' / 'robots' / f'{robot}.yaml')
    with pytest.raises(TrajectoryError, match=words):
        check_positions(profile)
