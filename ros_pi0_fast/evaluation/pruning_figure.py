"""A picture of what pruning keeps of one scene, for each of several instructions.

    python -m ros_pi0_fast.evaluation.pruning_figure --out docs/kept_tokens.png

The scene is one of evaluation's, at its first look; each instruction names another of its cubes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ros_pi0_fast.accel.pruning_overlay import draw_kept
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.evaluation.success import CHECKPOINT, PROFILE
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS
from ros_pi0_fast.types import Observation


def draw(engine: Engine, observations: Sequence[Observation]) -> Figure:
    """Return a row of pictures for each observation, under its instruction.

    Args:
        engine: Of a variant that prunes.
        observations: At the size of the model's pictures.
    """
    figure = Figure(figsize=(6, 3.4 * len(observations)), layout='constrained')
    for axes, seen in zip(figure.subplots(len(observations), squeeze=False)[:, 0], observations,
                          strict=True):
        kept = engine.infer(seen).stats.kept
        keys = sorted(kept)
        masks = np.stack([kept[key] for key in keys])
        axes.imshow(draw_kept(np.stack([seen.images[key] for key in keys]), masks.ravel(),
                              masks.shape[1:]))
        axes.set_title(f'“{seen.instruction}”: {masks.sum()} of {masks.size} tokens')
        axes.set_axis_off()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='PNG file')
    parser.add_argument('--checkpoint', type=Path, default=CHECKPOINT)
    parser.add_argument('--profile', type=Path, default=PROFILE)
    parser.add_argument('--seed', type=int, default=0, help='which scene: 0, 1, 2, …')
    parser.add_argument('--keep', type=float, default=0.25, help='fraction of the image tokens')
    parser.add_argument('--instructions', type=int, default=2)
    options = parser.parse_args(arguments)
    table = Tabletop(EVALUATION_SEEDS + options.seed, 'pick')
    seen = table.observe()
    colours = table.layout.colours[:options.instructions]
    engine = Engine(*load_policy(options.checkpoint, RobotProfile.load(options.profile)),
                    variant=Variant(pruning=True, keep_ratio=options.keep))
    figure = draw(engine, [dataclasses.replace(seen, instruction=f'pick up the {colour} cube')
                           for colour in colours])
    figure.savefig(options.out, dpi=80)


if __name__ == '__main__':
    main()
