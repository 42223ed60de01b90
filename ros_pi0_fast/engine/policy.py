"""A checkpoint and the codec that goes with it, checked against each other and the robot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ros_pi0_fast.accel.pruning_file import FOLDER, load_decoder
from ros_pi0_fast.accel.quantization import WEIGHTS
from ros_pi0_fast.accel.quantized_checkpoint import is_quantized, load_quantized
from ros_pi0_fast.codec.contract import check_contract
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.weights.checkpoint import Checkpoint, CheckpointError, load_checkpoint


def load_weights(folder: str | Path, profile: RobotProfile) -> Checkpoint:
    """Read a checkpoint's weights: plain, quantized, or plain with quantized ones below.

    Weights in `int8/` and `int4/` below a plain checkpoint are those of its quantized variants;
    where there are none, these are made by rounding. A decoder in `pruner/` is that of variants
    that prune.

    Raises:
        CheckpointError, QuantizationError, PruningError: the weights cannot be read.
    """
    folder = Path(folder)
    if is_quantized(folder):
        return load_quantized(folder)[0]
    checkpoint = load_checkpoint(folder, profile)
    below = {name: load_quantized(folder / name)[0] for name in WEIGHTS
             if is_quantized(folder / name)}
    for name, stored in below.items():
        if stored.config != checkpoint.config or name not in stored.quantized:
            raise CheckpointError(f'{folder / name}: {" ".join(stored.quantized)} weights of '
                                  f'{stored.config}, expected {name} weights of '
                                  f'{checkpoint.config}')
    return replace(
        checkpoint,
        quantized={name: stored.quantized[name] for name, stored in below.items()},
        pruned_decoder=load_decoder(folder / FOLDER, checkpoint.params['PaliGemma']['llm']))


def load_policy(folder: str | Path, profile: RobotProfile, *,
                text_tokenizer: str | Path | None = None,
                fast_tokenizer: str | Path | None = None) -> tuple[Checkpoint, PolicyCodec]:
    """Load a checkpoint for a robot.

    Args:
        folder: Checkpoint of this package or of openpi.
        profile: The robot.
        text_tokenizer, fast_tokenizer: Instead of those in the checkpoint's assets.

    Raises:
        ContractError: robot and checkpoint do not fit; each mismatch names both sides.
        CheckpointError, QuantizationError, PruningError: the weights cannot be read.
    """
    codec = PolicyCodec.from_checkpoint(folder, profile, text_tokenizer=text_tokenizer,
                                        fast_tokenizer=fast_tokenizer)
    checkpoint = load_weights(folder, profile)
    check_contract(checkpoint.contract, profile, codec.norm_stats, codec.text, codec.fast,
                   checkpoint.config)
    return checkpoint, codec
