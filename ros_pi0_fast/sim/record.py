"""Record expert episodes to rosbags, in the topics and messages that the policy node uses.

    python -m ros_pi0_fast.sim.record --episodes 100 --out data/expert

Each shard is a rosbag2 in MCAP. Besides what a robot publishes (pictures, joint states, the
instruction) it holds the targets that were executed (`joint_command`) and, at each picture, the
chunk that the expert would have executed from there (`expert/action_chunk`): the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from tqdm import tqdm

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.expert import expert_chunk
from ros_pi0_fast.sim.scene import CAMERAS
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import TASKS

EPISODE_GAP_NS = 10 * 10**9
"""Between the starts of what two episodes may take, in the bag's time."""
START_NS = 1_000 * 10**9
TOPICS = {
    **{f'/image/{camera}': 'sensor_msgs/msg/Image' for camera in CAMERAS.values()},
    '/joint_states': 'sensor_msgs/msg/JointState', '/instruction': 'std_msgs/msg/String',
    '/joint_command': 'sensor_msgs/msg/JointState',
    '/expert/action_chunk': 'ros_pi0_fast/msg/ActionChunk'}


class _Messages:
    """Builds messages of the bag's typestore."""

    def __init__(self) -> None:
        self.types = bag_types().types

    def time(self, stamp_ns: int):
        seconds, rest = divmod(stamp_ns, 10**9)
        return self.types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=rest)

    def header(self, stamp_ns: int, frame: str):
        return self.types['std_msgs/msg/Header'](stamp=self.time(stamp_ns), frame_id=frame)

    def image(self, stamp_ns: int, camera: str, picture: np.ndarray):
        height, width = picture.shape[:2]
        return self.types['sensor_msgs/msg/Image'](
            header=self.header(stamp_ns, f'{camera}_camera'), height=height, width=width,
            encoding='rgb8', is_bigendian=0, step=3 * width, data=picture.reshape(-1))

    def joints(self, stamp_ns: int, positions: np.ndarray):
        return self.types['sensor_msgs/msg/JointState'](
            header=self.header(stamp_ns, ''), name=list(arm.ACTION_NAMES),
            position=np.asarray(positions, np.float64), velocity=np.zeros(0), effort=np.zeros(0))

    def chunk(self, stamp_ns: int, sequence: int, actions: np.ndarray, instruction: str,
              period_ns: int):
        duration = self.types['builtin_interfaces/msg/Duration'](sec=0, nanosec=period_ns)
        times = {f'{stage}_ms': 0.0 for stage in
                 ('preprocess', 'vision', 'prefill', 'decode', 'total')}
        return self.types['ros_pi0_fast/msg/ActionChunk'](
            header=self.header(stamp_ns, 'tabletop'), sequence=sequence, horizon=len(actions),
            action_dim=actions.shape[1], names=list(arm.ACTION_NAMES),
            actions=actions.reshape(-1).astype(np.float32), control_period=duration,
            absolute=True, valid=True, reason='', late=False, clamped=False,
            instruction=instruction, variant='expert',
            **times)


def _episode(table: Tabletop, start_ns: int, messages: _Messages,
             ) -> Iterator[tuple[str, int, object]]:
    """Let the expert solve a scene; yield topic, time and message of all that is recorded."""
    period_ns = round(table.config.control_period * 1e9)
    text = messages.types['std_msgs/msg/String'](data=table.instruction)
    yield '/instruction', start_ns, text
    sequence = 0
    while not table.over():
        chunk = expert_chunk(table)
        for action in chunk[:5]:
            seen = table.observe()
            now = start_ns + seen.stamp_ns
            sequence += 1
            yield '/joint_states', now, messages.joints(now, seen.state)
            for key, camera in CAMERAS.items():
                yield f'/image/{camera}', now, messages.image(now, camera, seen.images[key])
            yield '/expert/action_chunk', now, messages.chunk(
                now, sequence, expert_chunk(table), table.instruction, period_ns)
            yield '/joint_command', now, messages.joints(now, action)
            table.step(action)


def record(folder: Path, seeds: Sequence[int], *, shard: int = 50) -> list[Path]:
    """Record the scenes of seeds, `shard` episodes a bag; return the bags.

    Raises:
        FileExistsError: a bag is there already.
    """
    types, messages, table = bag_types(), _Messages(), Tabletop()
    bags = []
    with tqdm(total=len(seeds), unit='episode') as bar:
        for first in range(0, len(seeds), shard):
            bags.append(folder / f'shard_{first // shard:04d}')
            if bags[-1].exists():
                raise FileExistsError(f'{bags[-1]} is there already: choose another --out')
            bags[-1].parent.mkdir(parents=True, exist_ok=True)
            with Writer(bags[-1], version=9, storage_plugin=StoragePlugin.MCAP) as writer:
                connections = {topic: writer.add_connection(topic, kind, typestore=types)
                               for topic, kind in TOPICS.items()}
                for i, seed in enumerate(seeds[first:first + shard]):
                    table.reset(seed, TASKS[(first + i) % len(TASKS)])
                    start = START_NS + i * EPISODE_GAP_NS
                    for topic, time_ns, message in _episode(table, start, messages):
                        writer.write(connections[topic], time_ns,
                                     types.serialize_cdr(message, TOPICS[topic]))
                    bar.update()
    return bags


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0, help='of the first episode')
    parser.add_argument('--out', type=Path, required=True, help='folder for the bags')
    parser.add_argument('--shard', type=int, default=50, help='episodes a bag')
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.episodes)
    try:
        bags = record(options.out, seeds, shard=options.shard)
    except FileExistsError as error:
        raise SystemExit(str(error)) from error
    print(f'{len(seeds)} episodes in {len(bags)} bags below {options.out}')


if __name__ == '__main__':
    main()
