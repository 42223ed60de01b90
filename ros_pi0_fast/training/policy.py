"""Train the tabletop policy from nothing: expert data, tokenizers, training, DAgger, checkpoint.

    python -m ros_pi0_fast.training.policy --config tabletop

With --start it goes on from a checkpoint instead, whose tokenizers and statistics are kept. Shards
that lie in the work folder (training.bags writes them from rosbags) are trained on as well.

The run's state is in --work: kill it at any time, or stop it by --minutes, and the same command
goes on. The checkpoint in --out is written whenever the command ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ros_pi0_fast.evaluation.settings import override


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='tabletop', help='name of the run')
    parser.add_argument('--out', type=Path, help='checkpoint; checkpoints/<config> by default')
    parser.add_argument('--work', type=Path, help="the run's state; runs/<config> by default")
    parser.add_argument('--profile', type=Path, default=Path('config/robots/tabletop.yaml'))
    parser.add_argument('--start', type=Path, metavar='CHECKPOINT',
                        help='fine-tune this checkpoint, of openpi or of this package')
    parser.add_argument('--text-tokenizer', type=Path, help="instead of the checkpoint's")
    parser.add_argument('--fast-tokenizer', type=Path, help="instead of the checkpoint's")
    parser.add_argument('--workers', type=int, default=os.cpu_count(),
                        help='processes that simulate and encode')
    parser.add_argument('--minutes', type=float, help='stop cleanly after so many')
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                        help='change the run, such as loop.batch_size=256')
    options = parser.parse_args(arguments)
    began = time.monotonic()
    # Worker processes import this module; only this one is to import jax.
    from ros_pi0_fast.training.config import Start, get_run
    from ros_pi0_fast.training.policy_training import PolicyTraining

    try:
        run = override(get_run(options.config), options.set)
        if options.start is not None:
            run = dataclasses.replace(run, start=Start(
                checkpoint=options.start, text_tokenizer=options.text_tokenizer,
                fast_tokenizer=options.fast_tokenizer))
    except ValueError as error:
        parser.error(str(error))
    out = options.out or Path('checkpoints') / run.name
    training = PolicyTraining(
        run, options.work or Path('runs') / run.name, profile=options.profile,
        workers=options.workers,
        deadline=None if options.minutes is None else began + 60 * options.minutes)
    state = training.train()
    training.export(state, out)
    word = 'finished' if training.finished(state) else 'stopped; the same command goes on'
    print(f'{word}: {int(state.step):,} of {training.total_steps:,} steps, '
          f'{training.summary(state)["wall_minutes"]} minutes, checkpoint {out}', flush=True)
    training.loop.close()


if __name__ == '__main__':
    main()
