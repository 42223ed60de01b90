"""What may be asked of the arm, in which words, and scenes in which it can be done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ros_pi0_fast.sim.scene import MAX_CUBES

TASKS = ('reach', 'push', 'pick')
COLOURS = {
    'red': (0.90, 0.08, 0.08), 'green': (0.10, 0.70, 0.15), 'blue': (0.10, 0.20, 0.95),
    'yellow': (0.95, 0.85, 0.10), 'purple': (0.60, 0.10, 0.75), 'orange': (1.00, 0.50, 0.05)}
MAT_COLOURS = ('red', 'green', 'blue')
PHRASES = {
    'reach': ('touch the {cube} cube', 'reach for the {cube} cube', 'go to the {cube} cube',
              'tap the {cube} block'),
    'push': ('push the {cube} cube onto the {mat} mat', 'push the {cube} cube to the {mat} mat',
             'slide the {cube} block onto the {mat} mat'),
    'pick': ('pick up the {cube} cube', 'lift the {cube} cube', 'grasp the {cube} block',
             'pick the {cube} cube up')}
HARDEST_ANGLE = 0.75
"""Cubes lie within this yaw of straight ahead, rad."""
RADII = (0.15, 0.27)
SPACING = 0.062
"""Between the centres of any two things, m."""
PUSH_DISTANCES = (0.07, 0.16)
PUSH_RUN_UP = 0.05
"""The pusher starts this far behind the cube, m."""
PUSH_START_RADII = (0.12, 0.31)
"""Horizontal distances from the arm between which that start must lie, m."""
PUSH_CLEARANCE = 0.052
EVALUATION_SEEDS = 1_000_000_000
"""Seeds from here on are for evaluation; training uses smaller ones."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A scene: where things lie, their colours, and what is asked. Lengths in metres."""

    task: str
    phrase: str
    """With {cube} and {mat} to be filled in."""
    target: int
    """Index of the cube that the instruction names."""
    colours: tuple[str, ...]
    """Of each cube; all different."""
    cubes: np.ndarray
    """[n, 2] positions."""
    yaws: np.ndarray
    """[n] orientations, rad."""
    mat: np.ndarray
    """[2] position."""
    mat_colour: str

    @property
    def instruction(self) -> str:
        """The instruction in words."""
        return self.phrase.format(cube=self.colours[self.target], mat=self.mat_colour)


def _somewhere(rng: np.random.Generator) -> np.ndarray:
    radius, angle = rng.uniform(*RADII), rng.uniform(-HARDEST_ANGLE, HARDEST_ANGLE)
    return radius * np.array([np.cos(angle), np.sin(angle)])


def _can_push(points: np.ndarray) -> bool:
    """Tell whether the first point can be pushed to the last one clear of those between."""
    way = points[-1] - points[0]
    length = np.linalg.norm(way)
    if not PUSH_DISTANCES[0] < length < PUSH_DISTANCES[1]:
        return False
    way = way / length
    start = points[0] - PUSH_RUN_UP * way
    if not PUSH_START_RADII[0] < np.linalg.norm(start) < PUSH_START_RADII[1]:
        return False
    along = np.clip((points[1:-1] - start) @ way, 0.0, length + PUSH_RUN_UP + 0.02)
    away = np.linalg.norm(points[1:-1] - start - along[:, None] * way, axis=1)
    return bool(np.all(away > PUSH_CLEARANCE))


def asked_otherwise(layout: Layout, rng: np.random.Generator, count: int) -> list[Layout]:
    """Return the same scene with up to `count` other orders, drawn from all that make sense in it.

    Each asks for another task or another cube than the layout does, in words of its own.
    """
    orders = [(task, cube) for task in TASKS for cube in range(len(layout.cubes))
              if (task, cube) != (layout.task, layout.target)
              and (task != 'push' or _can_push(np.stack([
                  layout.cubes[cube], *np.delete(layout.cubes, cube, axis=0), layout.mat])))]
    drawn = rng.permutation(len(orders))[:count]
    return [replace(layout, task=task, target=cube, phrase=str(rng.choice(PHRASES[task])))
            for task, cube in (orders[i] for i in drawn)]


def sample_layout(seed: int, task: str | None = None) -> Layout:
    """Return the scene of a seed; without a task, the seed chooses that too.

    Raises:
        ValueError: there is no task of that name.
    """
    rng = np.random.default_rng(seed)
    drawn = TASKS[rng.integers(len(TASKS))]
    task = drawn if task is None else task
    if task not in TASKS:
        raise ValueError(f'task: {task!r}, expected one of {", ".join(TASKS)}')
    count = int(rng.integers(3, MAX_CUBES + 1))
    while True:
        points = np.stack([_somewhere(rng) for _ in range(count + 1)])
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
        apart[np.diag_indices(len(points))] = np.inf
        if apart.min() > SPACING and (task != 'push' or _can_push(points)):
            break
    order = rng.permutation(count)
    cubes = points[:-1][order]
    yaws = np.arctan2(cubes[:, 1], cubes[:, 0]) + rng.uniform(-0.25, 0.25, count)
    return Layout(
        task=task, phrase=str(rng.choice(PHRASES[task])), target=int(np.argmin(order)),
        colours=tuple(str(c) for c in rng.permutation(list(COLOURS))[:count]), cubes=cubes,
        yaws=yaws, mat=points[-1], mat_colour=str(rng.choice(MAT_COLOURS)))
