"""How often the policy succeeds: closed loop, in simulation, on scenes never trained on.

    python -m ros_pi0_fast.evaluation.success --episodes 100 --seed 0 --swap-instruction \
        --json success.json

Prints a line a task: rate, 95 % Wilson interval, count. Variants of the engine are compared by
running the same seeds with `--set`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.evaluation.closed_loop import (
    Episode,
    EpisodeResult,
    LoopSettings,
    Plan,
    Simulations,
)
from ros_pi0_fast.evaluation.statistics import rate_line, wilson_interval
from ros_pi0_fast.sim.arm import ACTION_NAMES
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS, TASKS

CHECKPOINT = Path('checkpoints/tabletop')
PROFILE = Path('config/robots/tabletop.yaml')
SEEDS_A_RUN = 1_000_000
"""`--seed` s takes the scenes from EVALUATION_SEEDS + s times this on."""


def evaluation_episodes(count: int, seed: int, *, latency: int, tasks: Sequence[str] = TASKS,
                        swap_instruction: bool = False) -> list[Episode]:
    """Return the episodes of a run: `count` a task, and as many reaches with another cube named.

    Raises:
        ValueError: if seeds of another run, or of training, would be touched.
    """
    if seed < 0 or not 1 <= count <= SEEDS_A_RUN:
        raise ValueError(f'seed {seed} and {count} episodes: expected a seed of 0 or more and 1 '
                         f'to {SEEDS_A_RUN} episodes')
    first = EVALUATION_SEEDS + seed * SEEDS_A_RUN
    episodes = [Episode(task=task, seed=first + i, latency=latency)
                for i in range(count) for task in tasks]
    if swap_instruction:
        episodes += [Episode(task='reach', seed=first + i, latency=latency, swap=True)
                     for i in range(count)]
    return episodes


def _count(successes: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(successes), len(successes))
    return {'successes': int(sum(successes)), 'episodes': len(successes),
            'rate': sum(successes) / len(successes), 'low': low, 'high': high}


def summarize(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return rates a task, the swapped reaches, the action error and the malformed chunks."""
    plain = [result for result in results if not result.episode.swap]
    tasks = {}
    for task in dict.fromkeys(result.episode.task for result in plain):
        of_task = [result for result in plain if result.episode.task == task]
        tasks[task] = {**_count([result.success for result in of_task]),
                       'mean_steps': float(np.mean([result.steps for result in of_task])),
                       'action_error': _action_error(of_task)}
    summary: dict[str, Any] = {
        'tasks': tasks, 'action_error': _action_error(plain),
        'chunks': sum(result.plans for result in results),
        'malformed': sum(result.malformed for result in results)}
    swapped = [result.touched_target_first for result in results if result.episode.swap]
    if swapped:
        summary['swapped_reach'] = _count(swapped)
    return summary


def _action_error(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Return joint -> mean over chunks of |executed rows − the expert's|, rad or gripper range."""
    errors = np.concatenate([result.error for result in results])
    if not len(errors):
        return {}
    return {name: float(value) for name, value in zip(ACTION_NAMES, errors.mean(axis=0),
                                                      strict=True)}


def report_lines(summary: dict[str, Any]) -> list[str]:
    """Write a summary for people."""
    rates = dict(summary['tasks'])
    if 'swapped_reach' in summary:
        rates['reach, instruction swapped: newly named cube touched first'] = (
            summary['swapped_reach'])
    lines = [rate_line(name, rate['successes'], rate['episodes']) for name, rate in rates.items()]
    if summary['action_error']:
        lines.append('mean action error against the expert: ' + ', '.join(
            f'{name} {value:.4f}' for name, value in summary['action_error'].items()))
    lines.append(f'malformed chunks: {summary["malformed"]} of {summary["chunks"]}')
    return lines


def evaluate(plan: Plan, episodes: Sequence[Episode], *, execute: int, workers: int,
             slots: int) -> dict[str, Any]:
    """Run episodes and return their summary, with the wall time."""
    began = time.monotonic()
    with Simulations(workers) as simulations:
        results, _ = simulations.run(episodes, LoopSettings(execute=execute, slots=slots), plan)
    return {**summarize(results), 'wall_seconds': round(time.monotonic() - began, 2)}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=100, help='of each task')
    parser.add_argument('--seed', type=int, default=0, help='which scenes: 0, 1, 2, …')
    parser.add_argument('--checkpoint', type=Path, default=CHECKPOINT)
    parser.add_argument('--profile', type=Path, default=PROFILE)
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--execute', type=int, default=5,
                        help='control steps from one plan to the next')
    parser.add_argument('--latency-steps', type=int, default=0,
                        help='control steps from an observation to the first executed row')
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                        help='switch of the engine, such as pruning.enabled=true')
    parser.add_argument('--swap-instruction', action='store_true',
                        help='also run the reach scenes with another cube named')
    parser.add_argument('--workers', type=int, default=0,
                        help='simulation processes; 0 simulates in this one')
    parser.add_argument('--slots', type=int, default=16, help='episodes at once in each')
    parser.add_argument('--json', type=Path, help='file for all numbers')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    # Simulation processes import this module; only this one is to import jax.
    import jax

    from ros_pi0_fast.evaluation.policies import make_policy

    try:
        episodes = evaluation_episodes(
            options.episodes, options.seed, latency=options.latency_steps, tasks=options.tasks,
            swap_instruction=options.swap_instruction)
        plan, name = make_policy(options.checkpoint, options.profile, options.set,
                                 batch=max(1, options.workers) * options.slots)
        summary = evaluate(plan, episodes, execute=options.execute, workers=options.workers,
                           slots=options.slots)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    summary = {'checkpoint': str(options.checkpoint), 'variant': name, 'seed': options.seed,
               'execute': options.execute, 'latency_steps': options.latency_steps,
               'device': jax.devices()[0].device_kind, **summary}
    print('\n'.join(report_lines(summary)))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(summary, indent=2) + '\n', 'utf-8')


if __name__ == '__main__':
    main()
