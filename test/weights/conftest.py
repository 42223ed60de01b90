"""A tiny parameter tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast


def shapes(kv_heads: int = 1):
    """Return the abstract parameters of a tiny network, all of whose sizes differ."""
    config = Pi0FastConfig(
        siglip=SiglipConfig(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=(4, 8),
                            image_size=(16, 16)),
        gemma=GemmaConfig(width=32, depth=3, mlp_dim=48, num_heads=4, num_kv_heads=kv_heads,
                          head_dim=10, vocab_size=60),
        action_dim=3, action_horizon=5, max_token_len=12)
    return jax.eval_shape(Pi0Fast(config).init, jax.random.key(0))


def random_tree(kv_heads: int = 1, dtype: str = 'float32', seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(jnp.asarray(rng.standard_normal(leaf.shape), dtype)),
        shapes(kv_heads))


@pytest.fixture
def params():
    return random_tree()


@pytest.fixture
def make_params():
    return random_tree
