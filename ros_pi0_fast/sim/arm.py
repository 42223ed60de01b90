"""Geometry of the tabletop's arm: link lengths, joint names, and its inverse kinematics.

The arm has four revolute joints (yaw, then three parallel pitches) and a two-finger gripper that
is kept pointing down, so that the inverse kinematics is the textbook planar two-link solution
(Craig, Introduction to Robotics, section 4.4) behind a yaw.
"""

from __future__ import annotations

import numpy as np

JOINTS = ('base_yaw', 'shoulder', 'elbow', 'wrist_pitch')
FINGERS = ('left_finger', 'right_finger')
ACTION_NAMES = (*JOINTS, 'gripper')

SHOULDER_HEIGHT = 0.12
UPPER_ARM = 0.17
FOREARM = 0.17
HAND = 0.11
"""Wrist axis to the point between the fingertips, metres; so are all lengths here."""
FINGER_TRAVEL = 0.036
"""How far each finger moves from open (gripper 0) to closed (gripper 1)."""
OPEN_GAP = 0.064
"""Between the fingers' inner faces when open."""
MIN_RADIUS, MAX_RADIUS = 0.09, 0.32
"""Horizontal distances from the yaw axis at which the tip may be commanded. Wider than where
things are put, so that the tip gets behind a cube that was pushed too far."""
HOME = (0.18, 0.0, 0.12)
"""Tip position at the start of an episode, before jitter."""


def inverse_kinematics(tip: np.ndarray) -> np.ndarray:
    """Return the joint angles [4] (rad) that hold the tip at a position [3] (m), gripper down.

    Positions beyond reach give the arm stretched toward them.
    """
    x, y, z = tip
    radius = np.hypot(x, y)
    height = z + HAND - SHOULDER_HEIGHT
    cosine = ((radius**2 + height**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM))
    elbow = np.arccos(np.clip(cosine, -1.0, 1.0))
    shoulder = np.arctan2(radius, height) - np.arctan2(
        FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow))
    return np.array([np.arctan2(y, x), shoulder, elbow, np.pi - shoulder - elbow])


def forward_kinematics(joints: np.ndarray) -> np.ndarray:
    """Return the tip's position [3] (m) for joint angles [4] (rad)."""
    yaw, shoulder, elbow, wrist = joints
    pitches = np.cumsum([shoulder, elbow, wrist])
    lengths = np.array([UPPER_ARM, FOREARM, HAND])
    radius = lengths @ np.sin(pitches)
    return np.array([radius * np.cos(yaw), radius * np.sin(yaw),
                     SHOULDER_HEIGHT + lengths @ np.cos(pitches)])


def within_reach(tip: np.ndarray) -> np.ndarray:
    """Return the position [3] moved radially into the ring that the arm may be sent to."""
    radius = max(np.hypot(tip[0], tip[1]), 1e-6)
    scale = np.clip(radius, MIN_RADIUS, MAX_RADIUS) / radius
    return np.array([tip[0] * scale, tip[1] * scale, tip[2]])
