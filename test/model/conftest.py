"""A network so small that it compiles in a moment, and inputs for it."""

import dataclasses
import functools

import jax
import pytest

from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@functools.lru_cache
def initialized(model: Pi0Fast) -> dict:
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion('strict'):
        yield


@pytest.fixture(autouse=True, scope='module')
def compiled_quickly(quick_compilation):
    """All tests of this room are of networks that small."""


@pytest.fixture(scope='session')
def config() -> Pi0FastConfig:
    return Pi0FastConfig(
        siglip=SiglipConfig(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=(4, 8),
                            image_size=(13, 16)),
        gemma=GemmaConfig(width=32, depth=2, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=8,
                          vocab_size=60),
        action_dim=3, action_horizon=4, max_token_len=12,
        camera_keys=('base_0_rgb', 'wrist_0_rgb'))


@pytest.fixture(scope='session')
def make(config):
    """Return a function that builds a network of this config, changed, with its parameters."""
    def build(*, gemma: dict | None = None, unroll: bool = True, **changes):
        sizes = dataclasses.replace(config.gemma, **(gemma or {}))
        model = Pi0Fast(dataclasses.replace(config, gemma=sizes, **changes))
        params = initialized(model)
        return model, jax.tree.map(lambda x: x, model.unroll(params) if unroll else params)
    return build
