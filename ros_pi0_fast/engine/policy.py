"""A checkpoint and the codec that goes with it, checked against each other and the robot."""

from __future__ import annotations

from pathlib import Path

from ros_pi0_fast.codec.contract import check_contract
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.weights.checkpoint import Checkpoint, load_checkpoint


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
        CheckpointError: the weights cannot be read.
    """
    codec = PolicyCodec.from_checkpoint(folder, profile, text_tokenizer=text_tokenizer,
                                        fast_tokenizer=fast_tokenizer)
    checkpoint = load_checkpoint(folder, profile)
    check_contract(checkpoint.contract, profile, codec.norm_stats, codec.text, codec.fast,
                   checkpoint.config)
    return checkpoint, codec
