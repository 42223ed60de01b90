"""Fill shards with labelled states: the disturbed expert's, and those the policy got itself into.

Nothing here imports jax: simulation runs in worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ros_pi0_fast.sim.episodes import EpisodeConfig, LabelledState, generate_dataset
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS
from ros_pi0_fast.training.data import Frames
from ros_pi0_fast.training.workers import Run

SHARD_EPISODES = 250


def check_training_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are evaluation's.

    Raises:
        ValueError: if a seed is EVALUATION_SEEDS or more.
    """
    if len(seeds) and max(seeds) >= EVALUATION_SEEDS:
        raise ValueError(f'seed {max(seeds)} is for evaluation; training seeds are below '
                         f'{EVALUATION_SEEDS}')


def save_states(path: Path, states: Sequence[LabelledState]) -> None:
    """Write labelled states as a shard."""
    Frames.stack(states).save(path)


def collect_expert(seeds: Sequence[int], folder: Path, *, config: EpisodeConfig,
                   tasks: Sequence[str], run: Run = map,
                   progress: Callable[[int], None] = lambda episodes: None) -> list[Path]:
    """Let the disturbed expert solve scenes; return the shards, one for SHARD_EPISODES seeds.

    Shards that are there already are kept, so that a run that was killed goes on.

    Args:
        seeds: of the scenes; tasks take turns among them.
        folder: for the shards.
        config: how the expert drives.
        tasks: that take turns; name one twice to have it twice as often.
        run: where: see workers.worker_pool.
        progress: called with the number of episodes of each shard that is done.

    Raises:
        ValueError: if a seed is evaluation's.
    """
    check_training_seeds(seeds)
    jobs = [(seeds[start:start + SHARD_EPISODES], folder / f'expert_{start:07d}.npz', config,
             tuple(tasks)) for start in range(0, len(seeds), SHARD_EPISODES)]
    waiting = [job for job in jobs if not job[1].exists()]
    for episodes in run(_collect, waiting):
        progress(episodes)
    return [job[1] for job in jobs]


def _collect(job: tuple[Sequence[int], Path, EpisodeConfig, Sequence[str]]) -> int:
    seeds, path, config, tasks = job
    save_states(path, [state for episode in generate_dataset(
        seeds, workers=0, config=config, tasks=tasks) for state in episode.states])
    return len(seeds)
