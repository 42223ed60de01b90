"""What may leave the node of a chunk: whole, finite, and within the robot's limits. No rclpy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ros_pi0_fast.codec.robot_profile import Limits, RobotProfile
from ros_pi0_fast.types import ActionChunk

ACTION_LIMITS = ('clamp', 'refuse')


@dataclass(frozen=True, kw_only=True)
class Released:
    """A chunk as it may be published."""

    chunk: ActionChunk
    over_limits: bool = False
    """It had actions beyond the limits of the profile."""

    @property
    def clamped(self) -> bool:
        """Whether these were set to the limits; else the chunk is not valid because of them."""
        return self.over_limits and self.chunk.valid


def release(chunk: ActionChunk, profile: RobotProfile, action_limits: str) -> Released:
    """Check a chunk a last time.

    Args:
        chunk: Of the engine.
        profile: The robot.
        action_limits: What to do with actions beyond the limits: 'clamp' or 'refuse'.

    Returns:
        The chunk with float32 actions in the limits; or, not valid and without actions, why not.
    """
    if not chunk.valid:
        return Released(chunk=_refused(chunk, profile, chunk.reason))
    expected = (profile.horizon, profile.action_dim)
    if chunk.actions.shape != expected:
        return Released(chunk=_refused(chunk, profile, f'wrong shape: found {chunk.actions.shape} '
                                                       f'actions, expected {expected}'))
    with np.errstate(over='ignore'):  # What a float32 cannot hold is told of below.
        actions = chunk.actions.astype(np.float32)
    if not np.isfinite(actions).all():
        return Released(chunk=_refused(
            chunk, profile, 'not finite: the actions have NaN or infinity in them'))
    limits = profile.actions.limits
    if limits is None:
        return Released(chunk=replace(chunk, actions=actions))
    within = np.clip(actions, np.float32(limits.lower), np.float32(limits.upper))
    if np.array_equal(within, actions):
        return Released(chunk=replace(chunk, actions=actions))
    if action_limits == 'clamp':
        return Released(chunk=replace(chunk, actions=within), over_limits=True)
    return Released(chunk=_refused(chunk, profile, _excess(actions, within, profile, limits)),
                    over_limits=True)


def _refused(chunk: ActionChunk, profile: RobotProfile, reason: str) -> ActionChunk:
    return replace(chunk, actions=np.zeros((0, profile.action_dim), np.float32), valid=False,
                   reason=reason)


def _excess(actions: np.ndarray, within: np.ndarray, profile: RobotProfile, limits: Limits) -> str:
    """Name the action that is the furthest beyond its limits, measured by their range."""
    over = np.abs(actions - within) / (np.asarray(limits.upper) - limits.lower)
    step, index = np.unravel_index(np.argmax(over), over.shape)
    return (f'over limits: {profile.actions.names[index]} is {actions[step, index]:g} in step '
            f'{step}, expected {limits.lower[index]:g} to {limits.upper[index]:g} (action_limits)')
