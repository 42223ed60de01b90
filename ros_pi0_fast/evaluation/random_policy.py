"""Policies of any preset with random weights, and observations for them: to measure speed."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np

from ros_pi0_fast.codec.build_tokenizers import build_text_model
from ros_pi0_fast.codec.contract import PolicyContract
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.codec.policy_codec import ObservationError, PolicyCodec
from ros_pi0_fast.codec.prompt import TextTokenizer
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.model.config import get_config
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.share import share_folder
from ros_pi0_fast.types import Observation
from ros_pi0_fast.weights.checkpoint import Checkpoint

FAST_IDS = {1024: 320}
"""FAST ids by the size of the model's vocabulary."""
MOST_FAST_IDS = 2048
TEXT_IDS = 540
"""Pieces of text that there are instructions enough for."""
SMALL = 96
"""Presets whose pictures are smaller than this are robots on the tabletop."""
WORDS = ('move', 'the', 'red', 'cup', 'to', 'left', 'of', 'plate', 'and', 'then', 'open', 'a')


def random_policy(preset: str, seed: int = 0) -> tuple[Checkpoint, PolicyCodec]:
    """Make a policy of a preset.

    The robot is the tabletop's for small pictures, else a Franka arm with two cameras and a third,
    black one. The text tokenizer knows fewer ids than the model, whose head is as large as ever.

    Raises:
        ValueError: there is no such preset.
    """
    config = get_config(preset)
    robot = 'tabletop' if config.siglip.image_size[0] < SMALL else 'droid'
    profile = RobotProfile.load(share_folder() / 'config' / 'robots' / f'{robot}.yaml')
    profile = dataclasses.replace(profile, max_token_len=config.max_token_len,
                                  image_size=config.siglip.image_size)
    offset = profile.first_token_offset
    config = dataclasses.replace(
        config, action_dim=profile.action_dim, action_horizon=profile.horizon,
        first_token_offset=config.first_token_offset if offset is None else offset)
    fast_ids = FAST_IDS.get(config.gemma.vocab_size, MOST_FAST_IDS)
    contract = PolicyContract.from_profile(
        profile, text_vocab_size=min(config.gemma.vocab_size, TEXT_IDS + fast_ids),
        first_token_offset=config.first_token_offset)
    checkpoint = Checkpoint(params=_weights(Pi0Fast(config), seed), config=config,
                            contract=contract, folder=Path(preset))
    return checkpoint, _codec(profile, contract, fast_ids)


def _weights(model: Pi0Fast, seed: int) -> dict:
    """Return random parameters in the dtype of the model."""
    def make(key: jax.Array) -> dict:
        return jax.tree.map(lambda x: x.astype(model.dtype), model.init(key))

    return jax.jit(make)(jax.random.key(seed))


def _codec(profile: RobotProfile, contract: PolicyContract, fast_ids: int) -> PolicyCodec:
    rng = np.random.default_rng(0)
    shape = (2000, profile.horizon, profile.action_dim)
    chunks = np.cumsum(rng.normal(scale=0.15, size=shape), axis=1).clip(-1.2, 1.2)
    with tempfile.NamedTemporaryFile(suffix='.model') as file:
        file.write(build_text_model(vocab_size=contract.text_vocab_size,
                                    fast_vocab_size=fast_ids))
        file.flush()
        text = TextTokenizer(Path(file.name))
    return PolicyCodec(
        profile=profile, contract=contract, text=text,
        norm_stats=NormStats.compute(state=rng.normal(size=(500, profile.state_dim)),
                                     actions=chunks),
        fast=FastTokenizer.fit(chunks, scale=10, vocab_size=fast_ids))


def random_observations(codec: PolicyCodec, count: int, *, prompt_tokens: int,
                        seed: int = 0) -> list[Observation]:
    """Make observations whose prompts have a given number of tokens.

    Raises:
        ValueError: no prompt of that length was found.
    """
    rng = np.random.default_rng(seed)
    return [_observation(codec, rng, prompt_tokens, stamp_ns=i) for i in range(count)]


def _observation(codec: PolicyCodec, rng: np.random.Generator, prompt_tokens: int,
                 stamp_ns: int) -> Observation:
    profile = codec.profile
    images = {key: rng.integers(0, 256, (*profile.image_size, 3), dtype=np.uint8)
              for key in profile.cameras}
    for _ in range(100):
        state = rng.normal(size=profile.state_dim).astype(np.float32)
        words: list[str] = []
        length = 0
        while length < prompt_tokens:
            words.append(str(rng.choice(WORDS)))
            observation = Observation(images=images, state=state, stamp_ns=stamp_ns,
                                      instruction=' '.join(words))
            try:
                length = len(codec.encode(observation).prompt_ids)
            except ObservationError:  # Too long for the model.
                break
            if length == prompt_tokens:
                return observation
    raise ValueError(f'prompt_tokens: {prompt_tokens}, expected a length between an empty '
                     f"instruction's and {profile.max_token_len} (max_token_len)")
