"""Quantize a checkpoint to int4 by what its weights are multiplied with on recorded observations.

    python -m ros_pi0_fast.training.calibrate CHECKPOINT OUT --bags data/expert/*

writes a quantized checkpoint (GPTQ, see accel.calibration) and prints what rounding costs each
kind of weight, beside what rounding to the nearest would. Without bags, the observations are those
of expert episodes in simulation.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.calibration import (
    Calibrated,
    WeightError,
    record_moments,
    sensitive,
    weight_errors,
)
from ros_pi0_fast.accel.matrices import to_matrices
from ros_pi0_fast.accel.quantization import Scheme, quantize_params
from ros_pi0_fast.accel.quantized import QuantizationError
from ros_pi0_fast.accel.quantized_checkpoint import save_quantized
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.evaluation.bag_reader import BagError
from ros_pi0_fast.model.pi0_fast import Batch, Pi0Fast
from ros_pi0_fast.training.bags import read_states
from ros_pi0_fast.training.data import Frames, encode_frames
from ros_pi0_fast.training.objective import model_batch
from ros_pi0_fast.weights.checkpoint import save_assets
from ros_pi0_fast.weights.errors import CheckpointError

BATCH = 16


def simulated_frames(episodes: int) -> Frames:
    """Return every other state of the disturbed expert's first episodes."""
    from ros_pi0_fast.sim.episodes import generate_episode

    return Frames.stack([state for seed in range(episodes)
                         for state in generate_episode(seed).states[::2]])


def batches_of(model: Pi0Fast, frames: Frames, codec: PolicyCodec, count: int) -> Iterator[Batch]:
    """Yield what Pi0Fast.loss takes: `count` batches of frames from all over the recording."""
    arrays = encode_frames(frames, codec)
    rows = np.random.default_rng(0).permutation(len(arrays['tokens']))
    for start in range(0, min(count * BATCH, len(rows)), BATCH):
        some = {name: jnp.asarray(array[rows[start:start + BATCH]])
                for name, array in arrays.items()}
        yield model_batch(model, some, jax.random.key(0), None)


def kind_of(name: str) -> str:
    """Return the class of a weight: its name without the number of its layer."""
    return '/'.join(part for part in name.removeprefix('PaliGemma/').split('/')
                    if not part.isdigit())


def error_table(nearest: Sequence[WeightError], calibrated: Sequence[WeightError]) -> str:
    """Return mean and largest errors of each kind of weight, rounded in two ways."""
    lines = [f'{"relative error of":<62}{"weights":>8}{"outputs":>9}{"worst":>7}{"GPTQ":>8}'
             f'{"worst":>7}']
    kinds: dict[str, list[tuple[WeightError, WeightError]]] = defaultdict(list)
    for plain, better in zip(nearest, calibrated, strict=True):
        kinds[kind_of(plain.name)].append((plain, better))
    for kind, pairs in kinds.items():
        plain, better = zip(*pairs, strict=True)
        before, after = ([each.output for each in errors] for errors in (plain, better))
        lines.append(f'{kind:<62}{np.mean([each.relative for each in plain]):8.3f}'
                     f'{np.mean(before):9.3f}{max(before):7.3f}{np.mean(after):8.3f}'
                     f'{max(after):7.3f}')
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--profile', type=Path, default=Path('config/robots/tabletop.yaml'))
    parser.add_argument('--bags', type=Path, nargs='+', help='recorded with labels')
    parser.add_argument('--episodes', type=int, default=30, help='simulated, without bags')
    parser.add_argument('--batches', type=int, default=8, help=f'of {BATCH} frames')
    parser.add_argument('--group-size', type=int)
    parser.add_argument('--max-error', type=float, default=1.0, metavar='RATIO',
                        help='weights whose outputs change by more stay at int8')
    options = parser.parse_args(arguments)
    try:
        calibrate(options)
    except (QuantizationError, CheckpointError, BagError) as error:
        sys.exit(f'error: {error}')


def calibrate(options: argparse.Namespace) -> None:
    """Quantize as the command line says, and print the table."""
    profile = RobotProfile.load(options.profile)
    loaded, codec = load_policy(options.checkpoint, profile)
    if loaded.params is None:
        raise QuantizationError(f'{options.checkpoint}: quantized already, expected plain weights')
    frames = (simulated_frames(options.episodes) if options.bags is None else
              Frames.concatenate([Frames.stack(read_states(bag, profile))
                                  for bag in options.bags]))
    model = Pi0Fast(loaded.config)
    plain = model.unroll(jax.tree.map(jnp.asarray, loaded.params))
    moments = record_moments(model, plain, batches_of(model, frames, codec, options.batches))
    matrices = to_matrices(model, plain)
    scheme = Scheme(weights='int4', group_size=options.group_size)
    nearest = weight_errors(matrices, quantize_params(model, loaded.params, scheme), moments)
    quantized = quantize_params(model, loaded.params, scheme, Calibrated(moments=moments))
    errors = weight_errors(matrices, quantized, moments)
    print(error_table(nearest, errors))
    kept = sensitive(errors, options.max_error)
    if kept:
        print(f'at int8, since outputs change by more than {options.max_error:g}: '
              f'{", ".join(kept)}')
        scheme = Scheme(weights='int4', group_size=options.group_size, keep_int8=kept)
        quantized = quantize_params(model, loaded.params, scheme, Calibrated(moments=moments))
    save_quantized(options.out, quantized, scheme, loaded.params)
    save_assets(options.out.resolve(), codec)


if __name__ == '__main__':
    main()
