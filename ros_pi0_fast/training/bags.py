"""Rosbags to shards: recorded episodes with the expert's labels become training data.

    python -m ros_pi0_fast.sim.record --episodes 1000 --out data/expert
    python -m ros_pi0_fast.training.bags data/expert/* --out runs/tabletop/shards

A bag holds what the robot published and, on the label topic, the chunk that should be executed
from the newest observation on. Observations are built by the node's own code (bag_reader),
so that what is trained on is what the policy will see.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.bag_reader import BagError, BagReader, Moment
from ros_pi0_fast.sim.episodes import EpisodeConfig, LabelledState
from ros_pi0_fast.training.data import Frames

LABELS = '/expert/action_chunk'
NO_SEED = -1


def read_states(path: Path, profile: RobotProfile, *, topic: str = LABELS,
                orders: int = 1) -> list[LabelledState]:
    """Return the labelled observations of a bag.

    Labels whose observation the node would have refused are left out.

    Args:
        path: Folder of the bag.
        profile: The robot.
        topic: Of the labels, ros_pi0_fast/msg/ActionChunk.
        orders: How often each order comes, so that shards of a simulation, which label a picture
            for several, can be mixed in.

    Raises:
        BagError: the bag cannot be read, or a label does not fit the robot or its observation.
    """
    with BagReader(path, profile) as reader:
        return [_state(path, moment, profile, orders)
                for moment in reader.moments(topic) if moment.observation is not None]


def _state(path: Path, moment: Moment, profile: RobotProfile, orders: int) -> LabelledState:
    label, observation = moment.message, moment.observation
    found = (int(label.horizon), int(label.action_dim))
    expected = (profile.horizon, profile.action_dim)
    if found != expected or not label.valid or not label.absolute:
        raise BagError(f'{path}: label {int(label.sequence)}: {found[0]} x {found[1]}, valid '
                       f'{label.valid}, absolute {label.absolute}; expected {expected[0]} x '
                       f'{expected[1]}, valid and absolute')
    if moment.stamp_ns != observation.stamp_ns:
        raise BagError(f'{path}: label {int(label.sequence)} is of {moment.stamp_ns} ns, expected '
                       f'{observation.stamp_ns}, the stamp of the newest observation')
    chunk = np.asarray(label.actions, np.float32).reshape(expected)
    return LabelledState(
        observation=observation, seed=NO_SEED, instructions=(observation.instruction,) * orders,
        chunks=np.repeat(chunk[None], orders, axis=0),
        places=np.full((orders, len(profile.cameras), 2), np.nan, np.float32))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='+', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='folder for the shards')
    parser.add_argument('--profile', type=Path, default=Path('config/robots/tabletop.yaml'))
    parser.add_argument('--topic', default=LABELS, help='of the labels')
    parser.add_argument('--orders', type=int, default=EpisodeConfig.orders,
                        help='as in the shards that these are mixed with')
    options = parser.parse_args(arguments)
    profile, states = RobotProfile.load(options.profile), 0
    try:
        for path in tqdm(options.bags, unit='bag'):
            found = read_states(path, profile, topic=options.topic, orders=options.orders)
            if not found:
                raise BagError(f'{path}: no label on {options.topic} has an observation')
            Frames.stack(found).save(options.out / f'expert_{path.name}.npz')
            states += len(found)
    except BagError as error:
        raise SystemExit(str(error)) from error
    print(f'{states} observations of {len(options.bags)} bags below {options.out}')


if __name__ == '__main__':
    main()
