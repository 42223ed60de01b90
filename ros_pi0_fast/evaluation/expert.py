"""How often the scripted expert solves each task.

    python -m ros_pi0_fast.evaluation.expert --episodes 200
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ros_pi0_fast.evaluation.statistics import rate_line
from ros_pi0_fast.sim.expert import solves
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS, TASKS


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how often the expert solves each task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=200)
    parser.add_argument('--seed', type=int, default=EVALUATION_SEEDS, help='of the first episode')
    parser.add_argument('--execute', type=int, default=5, help='rows of a chunk between decisions')
    options = parser.parse_args(arguments)
    table = Tabletop()
    for task in TASKS:
        done = sum(solves(table, options.seed + i, task, options.execute)
                   for i in range(options.episodes))
        print(rate_line(task, done, options.episodes), flush=True)


if __name__ == '__main__':
    main()
