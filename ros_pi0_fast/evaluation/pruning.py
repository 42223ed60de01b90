"""Success in simulation with pruned image tokens: ours against simple ways to choose them.

    python -m ros_pi0_fast.evaluation.pruning --methods ours uniform --keep 0.5 0.25 --episodes 100

Prints a line for each method and ratio: success by task with 95 % Wilson intervals, and the
fraction of image tokens that was really kept, as methods that go by history keep all of the first
picture. Scenes are those of evaluation.success.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner
from ros_pi0_fast.accel.pruning_baselines import AttentionScorer, RandomScorer, UniformScorer
from ros_pi0_fast.accel.pruning_file import FOLDER, load_decoder, load_pruner
from ros_pi0_fast.accel.pruning_scores import TrainingFreeScorer, Weights
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.evaluation.closed_loop import Episode, EpisodeResult, LoopSettings, Rollout
from ros_pi0_fast.evaluation.pruned_policy import PrunedPolicy
from ros_pi0_fast.evaluation.settings import override
from ros_pi0_fast.evaluation.statistics import rate_line
from ros_pi0_fast.evaluation.success import CHECKPOINT, PROFILE, evaluation_episodes, summarize
from ros_pi0_fast.model.config import Pi0FastConfig
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import TASKS
from ros_pi0_fast.weights.checkpoint import Checkpoint

METHODS = ('ours', 'free', 'uniform', 'random', 'attention')
"""free: ours without training."""


def pruner_of(method: str, config: Pi0FastConfig, folder: Path,
              ) -> tuple[AdaptiveVisualPruner, Weights]:
    """Return what a method keeps, and what it has learned. The simple ones do nothing but score.

    Args:
        method: one of METHODS.
        config: of the policy.
        folder: of the trained pruner, for 'ours'.

    Raises:
        PruningError: there is no such pruner.
    """
    if method == 'ours':
        scorer, weights = load_pruner(folder, tokens=config.num_image_tokens,
                                      width=config.gemma.width)
        return AdaptiveVisualPruner(scorer=scorer), jax.tree.map(jnp.asarray, weights)
    if method == 'free':
        return AdaptiveVisualPruner(scorer=TrainingFreeScorer()), {}
    scorer = {'uniform': UniformScorer(grid=config.siglip.grid), 'random': RandomScorer(),
              'attention': AttentionScorer()}[method]
    return AdaptiveVisualPruner(scorer=scorer, memory=0.0, duplicate=1.0), {}


def run_episodes(policy: PrunedPolicy, tables: Sequence[Tabletop], episodes: Sequence[Episode],
                 settings: LoopSettings) -> list[EpisodeResult]:
    """Run episodes, one a table at a time; each table is a robot of the policy."""
    waiting, results = list(reversed(episodes)), []
    robots: list[Rollout | None] = [None] * len(tables)
    while True:
        new = [robot is None for robot in robots]
        robots = [Rollout(table, waiting.pop(), settings) if robot is None and waiting else robot
                  for robot, table in zip(robots, tables, strict=True)]
        if not any(robots):
            return results
        seen = [None if robot is None else robot.observe() for robot in robots]
        for i, chunk in enumerate(policy.plan_all(seen, new)):
            if chunk is not None:
                robots[i].act(chunk, seen[i])
                if robots[i].over:
                    results.append(robots[i].result)
                    robots[i] = None


def _with_decoder(model: Pi0Fast, policy: Checkpoint, folder: Path) -> Params | None:
    """Return a policy's parameters, unrolled, with the decoder of a pruner; None without one."""
    decoder = load_decoder(folder, policy.params['PaliGemma']['llm'])
    if decoder is None:
        return None
    params = {'PaliGemma': {**policy.params['PaliGemma'], 'llm': decoder}}
    return jax.jit(model.unroll)(jax.tree.map(jnp.asarray, params))


def _line(method: str, pruner: AdaptiveVisualPruner, summary: dict[str, Any]) -> str:
    keep = 'adaptive' if pruner.adaptive else f'{100 * pruner.keep_ratio:g} %'
    rates = '; '.join(rate_line(task, rate['successes'], rate['episodes'])
                      for task, rate in summary['tasks'].items())
    return f'{method}, {keep} (kept {100 * summary["kept"]:.1f} %): {rates}'


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--keep', nargs='+', type=float, default=[1.0, 0.5, 0.375, 0.25],
                        help='fractions of the image tokens')
    parser.add_argument('--episodes', type=int, default=100, help='of each task')
    parser.add_argument('--seed', type=int, default=0, help='which scenes: 0, 1, 2, …')
    parser.add_argument('--checkpoint', type=Path, default=CHECKPOINT)
    parser.add_argument('--pruner', type=Path, help='folder; <checkpoint>/pruner by default')
    parser.add_argument('--own-decoder', action='store_true',
                        help="the policy's decoder as it is, not as it learned along")
    parser.add_argument('--profile', type=Path, default=PROFILE)
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--execute', type=int, default=5,
                        help='control steps from one plan to the next')
    parser.add_argument('--slots', type=int, default=16, help='episodes at once')
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                        help='change the pruner, such as adaptive=true or scorer.space=false')
    parser.add_argument('--json', type=Path, help='file for all numbers')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    loaded, codec = load_policy(options.checkpoint, RobotProfile.load(options.profile))
    model = Pi0Fast(loaded.config)
    folder = options.pruner or options.checkpoint / FOLDER
    own = jax.jit(model.unroll)(jax.tree.map(jnp.asarray, loaded.params))
    pruned = own if options.own_decoder else _with_decoder(model, loaded, folder) or own
    episodes = evaluation_episodes(options.episodes, options.seed, latency=0,
                                   tasks=options.tasks)
    tables = [Tabletop() for _ in range(options.slots)]
    found = []
    for method in options.methods:
        chosen, weights = pruner_of(method, loaded.config, folder)
        for keep in options.keep:
            began = time.monotonic()
            pruner = override(replace(chosen, keep_ratio=keep), options.set)
            policy = PrunedPolicy(model, pruned if keep < 1 else own, codec, pruner=pruner,
                                  weights=weights, batch=options.slots)
            results = run_episodes(policy, tables, episodes,
                                   LoopSettings(execute=options.execute))
            summary = {'method': method, 'keep': keep, 'set': options.set, 'seed': options.seed,
                       'own_decoder': options.own_decoder,
                       'kept': float(np.mean(policy.kept)) / loaded.config.num_image_tokens,
                       **summarize(results),
                       'wall_seconds': round(time.monotonic() - began, 1)}
            found.append(summary)
            print(_line(method, pruner, summary), flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(found, indent=2) + '\n', 'utf-8')


if __name__ == '__main__':
    main()
