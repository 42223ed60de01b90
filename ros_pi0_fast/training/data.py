"""Labelled frames on disk, and the arrays that the train loop eats.

A shard is one .npz of frames in robot units: what the policy sees, and for each of k orders that
could be given there the chunk that the expert would execute. Frames become tokens through
`PolicyCodec.encode_example` and nothing else, so that training and deployment build their inputs
by the same code. Nothing here imports jax: tokens are made in worker processes that must not touch
the accelerator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ros_pi0_fast.codec.fast import UnencodableChunkError
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.sim.episodes import LabelledState
from ros_pi0_fast.training.workers import Run
from ros_pi0_fast.types import Observation

TOKEN_ARRAYS = ('tokens', 'token_mask', 'ar_mask', 'loss_mask')
IMAGE = 'image/'
"""Prefix of the arrays that are pictures."""
MAX_LOST = 0.02
"""Fraction of orders that may be unencodable before that is an error of the tokenizer's fit."""


class DatasetError(ValueError):
    """A shard cannot be used; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Labelled observations, in robot units, with one leading axis n; k orders to each."""

    images: Mapping[str, np.ndarray]
    """Model image key -> uint8 RGB [n, h, w, 3]."""
    states: np.ndarray
    """float32 [n, state_dim]."""
    chunks: np.ndarray
    """float32 [n, k, horizon, action_dim]: absolute actions from the frame's instant on."""
    instructions: np.ndarray
    """str [n, k]: the orders, that of the episode first."""
    places: np.ndarray
    """float32 [n, k, cameras, 2]: where in each picture (keys sorted) is what an order names, 0 to
    1 to the right and down; NaN where it is not seen, or nobody knows."""
    seeds: np.ndarray
    """int64 [n]: seed of the episode that the frame is from."""

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in (
            *self.images.items(), ('states', self.states), ('chunks', self.chunks),
            ('instructions', self.instructions), ('places', self.places), ('seeds', self.seeds))}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'frames have arrays of different lengths: {lengths}')
        orders = self.chunks.shape[:2]
        if self.instructions.shape != orders:
            raise ValueError(f'instructions have shape {self.instructions.shape}, expected '
                             f'{orders} as of the chunks')
        if self.places.shape != (*orders, len(self.images), 2):
            raise ValueError(f'places have shape {self.places.shape}, expected '
                             f'{(*orders, len(self.images), 2)}')

    def __len__(self) -> int:
        return len(self.states)

    def observation(self, index: int, order: int = 0) -> Observation:
        """Return one frame as the observation that a node would have assembled."""
        return Observation(images={key: array[index] for key, array in self.images.items()},
                           state=self.states[index],
                           instruction=str(self.instructions[index, order]))

    @classmethod
    def stack(cls, states: Sequence[LabelledState]) -> Frames:
        """Make frames of labelled states, all of equally many orders."""
        seen = [state.observation for state in states]
        return cls(
            images={key: np.stack([o.images[key] for o in seen])
                    for key in sorted(seen[0].images)},
            states=np.stack([o.state for o in seen]).astype(np.float32),
            chunks=np.stack([state.chunks for state in states]).astype(np.float32),
            instructions=np.asarray([state.instructions for state in states]),
            places=np.stack([state.places for state in states]).astype(np.float32),
            seeds=np.asarray([state.seed for state in states], np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence[Frames]) -> Frames:
        """Join frames of the same cameras and dimensions."""
        return cls(images={key: np.concatenate([part.images[key] for part in parts])
                           for key in parts[0].images},
                   **{name: np.concatenate([getattr(part, name) for part in parts])
                      for name in ('states', 'chunks', 'instructions', 'places', 'seeds')})

    def save(self, path: Path) -> None:
        """Write a shard; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix('.tmp')
        with temporary.open('wb') as file:
            np.savez(file, states=self.states, chunks=self.chunks, seeds=self.seeds,
                     instructions=self.instructions, places=self.places,
                     **{IMAGE + key: array for key, array in self.images.items()})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Frames:
        """Read a shard.

        Raises:
            DatasetError: if the file is no shard.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            images = {name.removeprefix(IMAGE): arrays.pop(name)
                      for name in list(arrays) if name.startswith(IMAGE)}
            return cls(images=images, **arrays)
        except (OSError, ValueError, TypeError) as error:
            raise DatasetError(f'{path}: is no shard of frames: {error}') from error


def encode_frames(frames: Frames, codec: PolicyCodec, *,
                  max_lost: float = MAX_LOST) -> dict[str, np.ndarray]:
    """Encode frames for the model.

    Orders whose chunk the FAST tokenizer cannot represent are left out, since there is nothing
    right to be learned from them: others of the frame come again in their place, and a frame that
    has none is left out itself.

    Returns:
        `tokens` int32 and `token_mask`, `ar_mask`, `loss_mask` bool [m, k, max_token_len],
        `places` float32 [m, k, cameras, 2] as in Frames, and `image/<key>` uint8 [m, h, w, 3] at
        the model's size; m is at most len(frames).

    Raises:
        DatasetError: if more than the fraction `max_lost` of the orders would be left out.
    """
    rows, lost = [], []
    orders = frames.instructions.shape[1]
    for index in range(len(frames)):
        examples = []
        for order in range(orders):
            try:
                examples.append((codec.encode_example(frames.observation(index, order),
                                                      frames.chunks[index, order]),
                                 frames.places[index, order]))
            except UnencodableChunkError as error:
                lost.append(error)
        if examples:
            rows.append([examples[i % len(examples)] for i in range(orders)])
    if len(lost) > max_lost * frames.instructions.size:
        raise DatasetError(f'{len(lost)} of {frames.instructions.size} orders cannot be encoded, '
                           f'expected at most {max_lost:.0%}; the first: {lost[0]}')
    result = {name: np.array([[getattr(example, name) for example, _ in row] for row in rows])
              .astype(np.int32 if name == 'tokens' else bool) for name in TOKEN_ARRAYS}
    result['places'] = np.array([[places for _, places in row] for row in rows])
    for key in sorted(frames.images):
        result[IMAGE + key] = np.stack([row[0][0].images[key] for row in rows])
    return result


def encode_shards(paths: Iterable[Path], checkpoint: Path, profile: Path, *,
                  run: Run = map, max_lost: float = MAX_LOST) -> Iterator[dict[str, np.ndarray]]:
    """Encode shards.

    Args:
        paths: shards, in the order of the result.
        checkpoint: folder whose assets and policy.json make the codec.
        profile: YAML of the robot.
        run: where: see workers.worker_pool.
        max_lost: see encode_frames.

    Returns:
        What `encode_frames` returns, for each shard.
    """
    return run(_encode_shard, [(Path(path), Path(checkpoint), Path(profile), max_lost)
                               for path in paths])


def _encode_shard(job: tuple[Path, Path, Path, float]) -> dict[str, np.ndarray]:
    path, checkpoint, profile, max_lost = job
    codec = PolicyCodec.from_checkpoint(checkpoint, RobotProfile.load(profile))
    return encode_frames(Frames.load(path), codec, max_lost=max_lost)
