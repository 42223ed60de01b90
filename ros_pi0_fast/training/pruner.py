"""Train a pruner for a policy: which image tokens its actions need.

    python -m ros_pi0_fast.training.pruner --config tabletop --shards runs/tabletop/shards

The policy is run once over the frames, for its image tokens and its attention, which are kept
beside the shards; after that a step costs one pass through its decoder and back. The number of
tokens kept falls from all of them to the target in a few stages. A run that was stopped
(`--minutes`) or killed goes on when it is called again. The pruner is written into the
checkpoint's folder `pruner`, and with it the policy's decoder as it learned along, which is used
where image tokens are pruned and nowhere else (`--set finetune=false`: it is left alone).

    python -m ros_pi0_fast.training.pruner --config tabletop_dagger --start FOLDER --out FOLDER

goes on from a pruner: the policy that it prunes drives, the expert labels the states that it got
into (DAgger), and both learn from these, too. `--set seed=1` takes other scenes for another round,
`--earlier` names the state of the rounds before, whose states are learned from again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ros_pi0_fast.evaluation.settings import override
from ros_pi0_fast.training.workers import worker_pool


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='tabletop', help='name of the run')
    parser.add_argument('--checkpoint', type=Path, help="the policy's; the run's by default")
    parser.add_argument('--start', type=Path, help="pruner to go on from; the run's by default")
    parser.add_argument('--out', type=Path, help='<checkpoint>/pruner by default')
    parser.add_argument('--work', type=Path, help='state; runs/pruner_<config> by default')
    parser.add_argument('--shards', type=Path, help='labelled frames; <work>/shards by default')
    parser.add_argument('--earlier', type=Path, nargs='+', default=[], metavar='WORK',
                        help='state of the rounds before (DAgger)')
    parser.add_argument('--profile', type=Path, default=Path('config/robots/tabletop.yaml'))
    parser.add_argument('--workers', type=int, default=os.cpu_count(),
                        help='processes that simulate and encode')
    parser.add_argument('--minutes', type=float, help='stop cleanly after so many')
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                        help='change the run, such as terms.distillation=0')
    options = parser.parse_args(arguments)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    # Worker processes import this module; only this one is to import jax.
    from ros_pi0_fast.accel.pruning_file import FOLDER
    from ros_pi0_fast.codec.robot_profile import RobotProfile
    from ros_pi0_fast.training.pruner_training import (
        VISITED,
        PrunerTraining,
        get_pruner_run,
        load_all,
    )
    from ros_pi0_fast.weights.checkpoint import load_checkpoint

    for folder in options.earlier:
        if not (folder / VISITED).is_file():
            parser.error(f'--earlier: {folder} has no {VISITED}, expected the state of a round')
    try:
        run = override(get_pruner_run(options.config), options.set)
        if options.checkpoint is not None:
            run = dataclasses.replace(run, checkpoint=options.checkpoint)
        if options.start is not None:
            run = dataclasses.replace(run, start=options.start)
        if options.earlier and run.dagger is None:
            raise ValueError(f'--earlier: {run.name} visits no states, expected a run that does, '
                             'such as tabletop_dagger')
        work = options.work or Path('runs') / f'pruner_{run.name}'
        shards = options.shards or work / 'shards'
        policy = load_checkpoint(run.checkpoint, RobotProfile.load(options.profile),
                                 dtype='float32')
        training = PrunerTraining(run, work, policy)
    except ValueError as error:
        parser.error(str(error))
    with worker_pool(options.workers) as pool:
        taught = load_all(training, shards, options.profile, options.workers,
                          earlier=options.earlier, run=pool)
    state = training.train(taught, deadline=deadline, report=_say)
    out = options.out or run.checkpoint / FOLDER
    training.export(state, out)
    print(f'{int(state.step):,} of {run.loop.steps:,} steps, pruner {out}', flush=True)
    training.loop.close()


def _say(record: dict[str, float]) -> None:
    names = ('loss', 'task', 'distillation', 'kept', 'wanted', 'attention_kept')
    print(f'step {record["step"]:,}: ' + ', '.join(f'{name} {record[name]:.3f}' for name in names)
          + f', {record["examples_per_second"]:.1f} frames/s', flush=True)


if __name__ == '__main__':
    main()
