"""A scripted expert that knows the scene and can go on from any state.

Its phase is a function of where the tip, the gripper and the cubes are, never of what it did
before, so that it can label states that a learned policy got itself into (DAgger, Ross et al.,
arXiv:1011.0686). A chunk is the roll-out of that feedback law on a kinematic model of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.scene import CUBE_HALF
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import Layout

HORIZON = 10
SPEED = 0.03
"""Metres a control step, horizontally and vertically."""
HOVER = 0.085
"""Height at which the tip travels, m."""
LIFT = 0.11
CONE_SLOPE, CONE_DEAD = 2.0, 0.006
"""The tip comes down inside a cone over its goal: height per metre off the axis, and the
distance from the axis (m) that does not count."""
TOUCH_HEIGHT = 2 * CUBE_HALF - 0.004
PUSH_HEIGHT = 0.016
GRASP_HEIGHT = 0.013
CONTACT = 0.026
"""From the cube's centre to the closed fingers' centre when they push it, m."""
GRASPED_GAP = 0.0335
"""Fingers closer than this have a cube between them, m."""
GAP_SPEED = 0.03
"""How fast the fingers close, metres a control step."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the expert's decision depends on; lengths in metres."""

    task: str
    tip: np.ndarray
    """[3]"""
    gripper: float
    """Last commanded: 0 open, 1 closed."""
    gap: float
    """Between the fingers."""
    cube: np.ndarray
    """[3]: the cube that the instruction names."""
    mat: np.ndarray
    """[2]"""

    @classmethod
    def of(cls, table: Tabletop, layout: Layout) -> Situation:
        """Read the situation off a simulation, for the order that a layout gives."""
        command = float(table.data.ctrl[4] / arm.FINGER_TRAVEL)
        return cls(task=layout.task, tip=table.tip, gripper=command, gap=table.gap,
                   cube=table.cube(layout.target), mat=layout.mat)

    @property
    def held(self) -> bool:
        """The cube is between the fingertips."""
        return bool(np.hypot(*(self.cube - self.tip)[:2]) < 0.014
                    and abs(self.cube[2] - self.tip[2]) < 0.022)


def _toward(tip: np.ndarray, goal: np.ndarray, speed: float = SPEED) -> np.ndarray:
    """Move one control step in a straight line at most."""
    way = goal - tip
    scale = min(1.0, speed / max(np.hypot(way[0], way[1]), 1e-9))
    return tip + np.array([way[0] * scale, way[1] * scale, np.clip(way[2], -SPEED, SPEED)])


def _come_down(tip: np.ndarray, spot: np.ndarray, height: float) -> np.ndarray:
    """Travel at hover height to a spot [2] and come down inside the cone over it."""
    off_axis = np.hypot(*(spot - tip[:2]))
    cone = np.clip(height + CONE_SLOPE * max(0.0, off_axis - CONE_DEAD), height, HOVER)
    too_low = max(0.0, cone - tip[2])
    return _toward(tip, np.array([*spot, cone]), SPEED * np.clip(1 - too_low / 0.03, 0, 1))


def _reach(now: Situation) -> tuple[np.ndarray, float]:
    return _come_down(now.tip, now.cube[:2], TOUCH_HEIGHT), 1.0


def _push_frame(now: Situation) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """Return the way to the mat, its normal, its length, and the tip along and beside it."""
    way = now.mat - now.cube[:2]
    length = float(np.linalg.norm(way))
    way = way / max(length, 1e-9)
    normal = np.array([-way[1], way[0]])
    offset = now.tip[:2] - now.cube[:2]
    return way, normal, length, float(offset @ way), float(offset @ normal)


def _push(now: Situation) -> tuple[np.ndarray, float]:
    way, normal, length, along, beside = _push_frame(now)
    if length < 0.012:
        return _toward(now.tip, np.array([*now.tip[:2], HOVER])), 1.0
    if along < -0.015 and abs(beside) < 0.010 and now.tip[2] < 0.035:
        forward = min(0.018, max(0.0, length - along - CONTACT))
        spot = now.tip[:2] + forward * way - np.clip(beside, -0.008, 0.008) * normal
        return _toward(now.tip, np.array([*spot, PUSH_HEIGHT])), 1.0
    return _come_down(now.tip, now.cube[:2] - 0.040 * way, PUSH_HEIGHT), 1.0


def _pick(now: Situation) -> tuple[np.ndarray, float]:
    if now.held and (now.tip[2] < 0.022 or now.gripper > 0.5):
        if now.gap < GRASPED_GAP:
            return _toward(now.tip, np.array([*now.tip[:2], LIFT])), 1.0
        return now.tip, 1.0
    return _come_down(now.tip, now.cube[:2], GRASP_HEIGHT), 0.0


_LAWS = {'reach': _reach, 'push': _push, 'pick': _pick}


def _imagine(now: Situation, tip: np.ndarray, gripper: float) -> Situation:
    """Return the situation one control step after a command, without dynamics."""
    cube, gap = now.cube, now.gap
    if now.task == 'push':
        way, _, _, along, beside = _push_frame(replace(now, tip=tip))
        if -CONTACT < along < 0 and abs(beside) < 0.02 and tip[2] < 0.03:
            cube = cube + np.array([*(CONTACT + along) * way, 0.0])
    if now.task == 'pick':
        if gripper > 0.5 and now.gap < GRASPED_GAP and now.held:
            cube = cube + tip - now.tip
        closed = 2 * CUBE_HALF if now.held else 0.0
        goal = closed if gripper > 0.5 else arm.OPEN_GAP
        gap = gap + float(np.clip(goal - gap, -GAP_SPEED, GAP_SPEED))
    return replace(now, tip=tip, gripper=gripper, gap=gap, cube=cube)


def expert_chunk(table: Tabletop, layout: Layout | None = None) -> np.ndarray:
    """Return what the expert would do from now on: float32 [HORIZON, 5], absolute targets.

    Args:
        table: the scene as it is.
        layout: the scene with another order; None for the order that was given.
    """
    now = Situation.of(table, layout or table.layout)
    actions = []
    for _ in range(HORIZON):
        tip, gripper = _LAWS[now.task](now)
        tip = arm.within_reach(tip)
        actions.append([*arm.inverse_kinematics(tip), gripper])
        now = _imagine(now, tip, gripper)
    return np.asarray(actions, np.float32)


def solves(table: Tabletop, seed: int, task: str, execute: int) -> bool:
    """Run one episode, `execute` rows of each chunk; tell whether the task was done."""
    table.reset(seed, task)
    while not table.over():
        for action in expert_chunk(table)[:execute]:
            table.step(action)
    return table.success()
