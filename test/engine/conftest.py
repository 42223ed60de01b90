"""A whole checkpoint with random weights, on disk as the engine finds it."""

import jax
import numpy as np
import pytest

from ros_pi0_fast.codec.build_tokenizers import build_text_model
from ros_pi0_fast.codec.contract import PolicyContract
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.prompt import TextTokenizer
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import Observation
from ros_pi0_fast.weights.checkpoint import save_checkpoint


@pytest.fixture(scope='session')
def profile(repository):
    return RobotProfile.load(repository / 'config' / 'robots' / 'tabletop.yaml')


@pytest.fixture(scope='session')
def folder(profile, tmp_path_factory):
    root = tmp_path_factory.mktemp('policy')
    rng = np.random.default_rng(0)
    chunks = np.cumsum(rng.normal(scale=0.15, size=(500, 10, 5)), axis=1).clip(-1.2, 1.2)
    text = root / 'text.model'
    text.write_bytes(build_text_model())
    codec = PolicyCodec(
        profile=profile, text=TextTokenizer(text),
        norm_stats=NormStats.compute(state=rng.normal(size=(500, 5)), actions=chunks),
        contract=PolicyContract.from_profile(profile, text_vocab_size=1024, first_token_offset=0),
        fast=FastTokenizer.fit(chunks, scale=10, vocab_size=256))
    config = Pi0FastConfig(
        siglip=SiglipConfig(width=32, depth=1, mlp_dim=48, num_heads=2, patch_size=(16, 16),
                            image_size=(64, 64)),
        gemma=GemmaConfig(width=48, depth=2, mlp_dim=64, num_heads=4, num_kv_heads=1, head_dim=16,
                          vocab_size=1024),
        action_dim=5, action_horizon=10, max_token_len=80, first_token_offset=0,
        camera_keys=('base_0_rgb', 'wrist_0_rgb'))
    params = jax.jit(Pi0Fast(config).init)(jax.random.key(0))
    return save_checkpoint(root / 'checkpoint', params, codec)


@pytest.fixture(scope='session')
def policy(folder, profile):
    return load_policy(folder, profile)


@pytest.fixture(scope='session')
def observations():
    """Return a function that makes so many random observations."""
    def make(count, seed=0, size=(64, 64)):
        rng = np.random.default_rng(seed)
        words = ('touch', 'push', 'the', 'red', 'blue', 'cube', 'onto', 'green', 'mat', 'now')
        return [Observation(
            images={key: rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                    for key in ('base_0_rgb', 'wrist_0_rgb')},
            state=rng.normal(size=5).astype(np.float32), stamp_ns=i,
            instruction=' '.join(rng.choice(words, rng.integers(1, 30)))) for i in range(count)]
    return make
