"""Labelled episodes: someone drives, the expert says at each step what it would have done.

Who drives is the expert with its targets disturbed (DART, Laskey et al., arXiv:1703.09327), or a
learned policy (DAgger, Ross et al., arXiv:1011.0686). Each picture is labelled for several orders,
only one of which is being carried out: were it labelled for that one alone, the arm's pose would
give the order away in most frames, and nothing would make a policy read the words. This module
imports no jax, so that worker processes that simulate never touch the accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from ros_pi0_fast.sim.expert import expert_chunk
from ros_pi0_fast.sim.scene import CAMERAS
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS, TASKS, asked_otherwise
from ros_pi0_fast.types import Observation


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    """How the expert drives while it is recorded."""

    execute: int = 5
    """Rows of a chunk executed between decisions."""
    observe_every: int = 2
    """Control steps between two labelled observations."""
    noise: float = 0.05
    """Standard deviation of the disturbance of the joint targets, rad, in noisy stretches."""
    noisy: float = 0.4
    """Fraction of the decisions whose chunk is disturbed."""
    linger_steps: int = 4
    """Control steps that go on after success, so that the policy learns to stay."""
    orders: int = 4
    """For how many orders each observation is labelled: the one that is carried out and others."""
    first_look_only: float = 0.0
    """Fraction of the scenes of which only the first look is kept. That look decides the most and
    has the fewest frames, and such a scene costs one picture."""


@dataclass(frozen=True, kw_only=True)
class LabelledState:
    """A state that was visited and what the expert would have done there; k orders."""

    observation: Observation
    """With the order that was being carried out."""
    seed: int
    instructions: tuple[str, ...]
    """k orders, the observation's own first. Where a scene allows for fewer, some come again."""
    chunks: np.ndarray
    """float32 [k, horizon, 5]: the expert's chunk for each order, absolute targets."""
    places: np.ndarray
    """float32 [k, cameras, 2]: where the named cube is in each picture, cameras sorted; see
    Tabletop.place_in_picture."""


def label_state(table: Tabletop, observation: Observation, seed: int,
                orders: int) -> LabelledState:
    """Label the state that a simulation is in.

    Args:
        table: the simulation.
        observation: of this state.
        seed: of the scene.
        orders: how many.
    """
    rng = np.random.default_rng([seed, 3, table.steps])
    layouts = [table.layout, *asked_otherwise(table.layout, rng, orders - 1)]
    layouts = [layouts[i % len(layouts)] for i in range(orders)]
    return LabelledState(
        observation=observation, seed=seed,
        instructions=tuple(layout.instruction for layout in layouts),
        chunks=np.stack([expert_chunk(table, layout) for layout in layouts]),
        places=np.stack([[table.place_in_picture(table.cube(layout.target), CAMERAS[key])
                          for key in sorted(CAMERAS)] for layout in layouts]))


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode's labelled states."""

    seed: int
    task: str
    states: list[LabelledState]
    success: bool
    """Whether it was done; True of an episode of which only the first look is kept."""


def _disturbance(rng: np.random.Generator, config: EpisodeConfig) -> np.ndarray:
    """Return what is added to a chunk's targets [5]: nothing, or a constant push of the arm."""
    offset = np.zeros(5)
    if rng.random() < config.noisy:
        offset[:4] = rng.normal(0, config.noise, 4)
        if rng.random() < 0.2:
            offset[4] = rng.choice([-1.0, 1.0])
    return offset


def generate_episode(seed: int, task: str | None = None, *, config: EpisodeConfig | None = None,
                     table: Tabletop | None = None) -> Episode:
    """Let the disturbed expert solve the scene of a seed and label what it saw.

    Raises:
        ValueError: the seed is one of evaluation's.
    """
    if seed >= EVALUATION_SEEDS:
        raise ValueError(f'seed: {seed} is for evaluation, expected one below {EVALUATION_SEEDS}')
    config = config or EpisodeConfig()
    table = table or Tabletop()
    table.reset(seed, task)
    rng = np.random.default_rng([seed, 2])
    if rng.random() < config.first_look_only:
        return Episode(seed=seed, task=table.layout.task, success=True,
                       states=[label_state(table, table.observe(), seed, config.orders)])
    states, linger = [], config.linger_steps
    while linger > 0:
        offset = _disturbance(rng, config)
        chunk = expert_chunk(table)
        for row in range(config.execute):
            if row % config.observe_every == 0:
                states.append(label_state(table, table.observe(), seed, config.orders))
            table.step(chunk[row] + offset)
            linger -= table.over()
    return Episode(seed=seed, task=table.layout.task, states=states, success=table.success())


_table: Tabletop | None = None


def _generate(job: tuple[int, str | None, EpisodeConfig]) -> Episode:
    """Run one job in a worker process, which keeps its simulation between jobs."""
    global _table
    _table = _table or Tabletop()
    seed, task, config = job
    return generate_episode(seed, task, config=config, table=_table)


def generate_dataset(seeds: Sequence[int], *, workers: int, config: EpisodeConfig | None = None,
                     tasks: Sequence[str] = TASKS,
                     progress: Callable[[int], None] = lambda done: None) -> Iterator[Episode]:
    """Yield an episode for each seed, in order; tasks take turns.

    Args:
        seeds: below EVALUATION_SEEDS.
        workers: processes; 0 simulates in this one.
        config: how the expert drives.
        tasks: that take turns.
        progress: called with the number of episodes done.
    """
    config = config or EpisodeConfig()
    jobs = [(seed, tasks[i % len(tasks)], config) for i, seed in enumerate(seeds)]
    if workers == 0:
        for done, job in enumerate(jobs, 1):
            yield _generate(job)
            progress(done)
        return
    # Spawned, not forked: a forked child would inherit the parent's OpenGL and JAX threads.
    with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
        for done, episode in enumerate(pool.map(_generate, jobs, chunksize=4), 1):
            yield episode
            progress(done)
