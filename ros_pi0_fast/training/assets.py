"""What a checkpoint holds besides weights (statistics, both tokenizers, policy.json): fitted, or
kept from the checkpoint that is fine-tuned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ros_pi0_fast.codec.build_tokenizers import build_text_model
from ros_pi0_fast.codec.contract import CONTRACT_FILE, PolicyContract
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.codec.policy_codec import (
    FAST_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FILE,
    PolicyCodec,
)
from ros_pi0_fast.codec.prompt import TextTokenizer
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.codec.transforms import to_delta
from ros_pi0_fast.training.config import Start
from ros_pi0_fast.training.data import Frames
from ros_pi0_fast.weights.checkpoint import Checkpoint, load_checkpoint, save_assets

TRAINED_OFFSET = 0
"""A checkpoint made here decodes at the positions that it was trained at."""


def fit_assets(folder: Path, profile: RobotProfile, frames: Frames, *, vocab_size: int,
               fast_vocab_size: int, fast_scale: float,
               fast_margin: int | None = None) -> PolicyCodec:
    """Fit statistics and tokenizers on frames and write them into a checkpoint folder.

    Args:
        folder: receives `assets/` and `policy.json`.
        profile: the robot.
        frames: a sample of the training data; should hold its extremes.
        vocab_size: pieces of the text tokenizer, FAST ids included: the model's vocabulary.
        fast_vocab_size: ids of the FAST tokenizer.
        fast_scale: factor on DCT coefficients before rounding: higher is finer and longer.
        fast_margin: coefficient values beyond those of the frames, on each side, that can be
            encoded, too; see FastTokenizer.fit.

    Returns:
        The codec, as read back from the folder.

    Raises:
        ValueError: if the vocabulary is too small for the data.
    """
    assets = Path(folder) / 'assets'
    stats, deltas = fit_statistics(profile, frames)
    stats.save(assets / profile.asset_id)
    text = assets / TEXT_TOKENIZER_FILE
    text.write_bytes(build_text_model(vocab_size=vocab_size, fast_vocab_size=fast_vocab_size))
    normalized = stats.actions.normalize(deltas, profile.normalization)
    FastTokenizer.fit(normalized, scale=fast_scale, vocab_size=fast_vocab_size,
                      margin=fast_margin).save(assets / FAST_TOKENIZER_FOLDER)
    PolicyContract.from_profile(profile, text_vocab_size=vocab_size,
                                first_token_offset=TRAINED_OFFSET).save(folder)
    return PolicyCodec.from_checkpoint(folder, profile)


def fit_statistics(profile: RobotProfile, frames: Frames) -> tuple[NormStats, np.ndarray]:
    """Return statistics of frames, and their actions as the model predicts them, [n·k, h, d]."""
    deltas = np.concatenate([to_delta(chunks, state, profile.actions.delta_mask)
                             for chunks, state in zip(frames.chunks, frames.states, strict=True)])
    return NormStats.compute(state=frames.states, actions=deltas), deltas


def load_start(start: Start, profile: RobotProfile) -> Checkpoint:
    """Load the checkpoint to be fine-tuned, in float32.

    Raises:
        CheckpointError: it cannot be read.
        ValueError: a tokenizer that was named is not there.
    """
    for path in (start.text_tokenizer, start.fast_tokenizer):
        if path is not None and not path.exists():
            raise ValueError(f'{path}: is not there, expected a tokenizer')
    return load_checkpoint(start.checkpoint, profile, dtype='float32')


def keep_assets(folder: Path, profile: RobotProfile, frames: Frames, start: Start) -> PolicyCodec:
    """Copy the assets of the checkpoint to be fine-tuned into a checkpoint folder.

    Its statistics are kept if it has some for this robot, since its weights know them; otherwise
    they are fitted on the frames.

    Raises:
        ContractError: the checkpoint is not for such a robot.
    """
    source = start.checkpoint / 'assets' / profile.asset_id
    if (source / 'norm_stats.json').is_file():
        stats = NormStats.load(source / 'norm_stats.json')
    else:
        stats, _ = fit_statistics(profile, frames)
    has_contract = (start.checkpoint / CONTRACT_FILE).is_file()
    text = start.text_tokenizer or start.checkpoint / 'assets' / TEXT_TOKENIZER_FILE
    fast = start.fast_tokenizer or start.checkpoint / 'assets' / FAST_TOKENIZER_FOLDER
    codec = PolicyCodec(
        profile=profile, contract=PolicyContract.load(start.checkpoint) if has_contract else None,
        norm_stats=stats, text=TextTokenizer(text), fast=FastTokenizer.from_folder(fast))
    save_assets(Path(folder), codec)
    return PolicyCodec.from_checkpoint(folder, profile)
