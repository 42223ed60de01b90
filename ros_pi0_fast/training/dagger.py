"""One round of DAgger: the policy drives many simulations at once, the expert labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ros_pi0_fast.evaluation.closed_loop import (
    Episode,
    EpisodeResult,
    LoopSettings,
    Plan,
    Simulations,
)
from ros_pi0_fast.training.collect import check_training_seeds, save_states
from ros_pi0_fast.training.config import RoundConfig

SEEDS_A_ROUND = 10_000_000
"""Round r takes its seeds from r times this on; round 0 are the expert's episodes."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round brought."""

    shards: list[Path]
    states: int
    success: dict[str, float]
    """Task -> fraction of the episodes that succeeded."""


def rollout_round(index: int, plan: Plan, simulations: Simulations, folder: Path, *,
                  config: RoundConfig, tasks: Sequence[str], orders: int) -> Round:
    """Drive with the policy and save what the expert would have done in every state visited.

    Args:
        index: of the round, from 1.
        plan: the policy.
        simulations: that run the episodes.
        folder: for the shards.
        config: how many episodes, and how.
        tasks: that take turns.
        orders: for how many each state is labelled.
    """
    rng = np.random.default_rng(index)
    first = index * SEEDS_A_ROUND
    episodes = [Episode(task=tasks[i % len(tasks)], seed=first + i,
                        latency=int(rng.integers(config.max_latency + 1)))
                for i in range(config.episodes)]
    check_training_seeds([episode.seed for episode in episodes])
    settings = LoopSettings(execute=config.execute, slots=config.slots,
                            label_every=config.label_every, linger_steps=config.linger_steps,
                            orders=orders)
    start = folder / f'round{index:02d}'
    for stale in folder.glob(f'{start.name}_*.npz'):  # of a round that was killed
        stale.unlink()
    results, states = simulations.run(episodes, settings, plan, shards=start, save=save_states)
    return Round(shards=sorted(folder.glob(f'{start.name}_*.npz')), states=states,
                 success=success_by_task(results))


def success_by_task(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Return task -> fraction of its episodes that succeeded."""
    tasks = sorted({result.episode.task for result in results})
    return {task: float(np.mean([result.success for result in results
                                 if result.episode.task == task])) for task in tasks}
