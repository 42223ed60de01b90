"""A chunk as the message that ros2_control's joint_trajectory_controller takes."""

from __future__ import annotations

from builtin_interfaces.msg import Duration
from rclpy.time import Time
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.types import ActionChunk

POSITION_UNITS = ('rad', 'm', '1')
SECOND_NS = 10**9


class TrajectoryError(ValueError):
    """A robot's actions are no positions of joints; the message names the action."""


def check_positions(profile: RobotProfile) -> None:
    """Check that a robot's actions are positions of its joints, as a trajectory needs them.

    Raises:
        TrajectoryError: they are not.
    """
    for name, unit in zip(profile.actions.names, profile.actions.units, strict=True):
        if name not in profile.state.joints:
            raise TrajectoryError(f'joint_trajectory.enabled: true, expected false: action {name} '
                                  f'of {profile.source} is none of its state.joints')
        if unit not in POSITION_UNITS:
            raise TrajectoryError(f'joint_trajectory.enabled: true, expected false: action {name} '
                                  f'of {profile.source} is in {unit}, which is no position '
                                  f'({", ".join(POSITION_UNITS)})')


def trajectory_message(chunk: ActionChunk, profile: RobotProfile) -> JointTrajectory:
    """Build the trajectory of a valid chunk: stamped as its observation, from which time counts.

    So a controller leaves out what was due before the chunk was ready.
    """
    period_ns = round(SECOND_NS / profile.control_rate_hz)
    message = JointTrajectory(joint_names=list(profile.actions.names), points=[
        JointTrajectoryPoint(positions=row.astype(float).tolist(),
                             time_from_start=duration(index * period_ns))
        for index, row in enumerate(chunk.actions)])
    message.header.stamp = Time(nanoseconds=chunk.stamp_ns).to_msg()
    return message


def duration(nanoseconds: int) -> Duration:
    """Return a time span as a message."""
    return Duration(sec=nanoseconds // SECOND_NS, nanosec=nanoseconds % SECOND_NS)
