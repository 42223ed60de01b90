"""Fit what a checkpoint holds besides weights: statistics, both tokenizers, policy.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ros_pi0_fast.codec.build_tokenizers import build_text_model
from ros_pi0_fast.codec.contract import PolicyContract
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.codec.policy_codec import (
    FAST_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FILE,
    PolicyCodec,
)
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.codec.transforms import to_delta
from ros_pi0_fast.training.data import Frames

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
    deltas = np.stack([to_delta(chunk, state, profile.actions.delta_mask)
                       for chunk, state in zip(frames.chunks, frames.states, strict=True)])
    stats = NormStats.compute(state=frames.states, actions=deltas)
    stats.save(assets / profile.asset_id)
    text = assets / TEXT_TOKENIZER_FILE
    text.write_bytes(build_text_model(vocab_size=vocab_size, fast_vocab_size=fast_vocab_size))
    normalized = stats.actions.normalize(deltas, profile.normalization)
    FastTokenizer.fit(normalized, scale=fast_scale, vocab_size=fast_vocab_size,
                      margin=fast_margin).save(assets / FAST_TOKENIZER_FOLDER)
    PolicyContract.from_profile(profile, text_vocab_size=vocab_size,
                                first_token_offset=TRAINED_OFFSET).save(folder)
    return PolicyCodec.from_checkpoint(folder, profile)
