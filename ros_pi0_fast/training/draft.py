"""Train drafters for a policy's speculative decoding.

    python -m ros_pi0_fast.training.draft --drafters head ngram

The policy decodes the frames of scenes that the expert solved, once for all drafters; a drafter
learns to continue those ids. It is written into the checkpoint's folder `drafters`, and
`speculative.drafter` of the node and the engine names it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.training.workers import worker_pool

DRAFTERS = ('head', 'model', 'ngram')


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--drafters', nargs='+', default=['head', 'ngram'], choices=DRAFTERS)
    parser.add_argument('--checkpoint', type=Path, default=Path('checkpoints/tabletop'),
                        help="the policy's")
    parser.add_argument('--out', type=Path, help='<checkpoint>/drafters by default')
    parser.add_argument('--from', dest='start', type=Path, metavar='FOLDER',
                        help='of drafters, whose head the training of the head goes on from')
    parser.add_argument('--work', type=Path, default=Path('runs/draft'),
                        help='scenes, and the state of training')
    parser.add_argument('--profile', type=Path, default=Path('config/robots/tabletop.yaml'))
    parser.add_argument('--workers', type=int, default=os.cpu_count(),
                        help='processes that simulate and encode')
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                        help='change the run, such as loop.steps=500')
    options = parser.parse_args(arguments)
    # Worker processes import this module; only this one is to import jax.
    from ros_pi0_fast.accel.draft_file import FOLDER, save_drafter
    from ros_pi0_fast.engine.policy import load_policy
    from ros_pi0_fast.evaluation.settings import override
    from ros_pi0_fast.training.draft_training import DraftRun, record, train

    try:
        run = override(DraftRun(checkpoint=options.checkpoint, start=options.start), options.set)
        policy, codec = load_policy(run.checkpoint, RobotProfile.load(options.profile))
    except ValueError as error:
        parser.error(str(error))
    with worker_pool(options.workers) as pool:
        answers = record(run, options.work, options.profile, policy, codec, pool)
    out = options.out or run.checkpoint / FOLDER
    for name in options.drafters:
        arrays, sizes, made = train(name, run, options.work, policy, codec, answers)
        save_drafter(out, name, arrays, sizes, made)
        print(f'{out / name}.npz: {made}', flush=True)


if __name__ == '__main__':
    main()
