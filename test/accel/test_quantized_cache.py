"""The int8 cache: what is written is what attention reads, block by block and as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.flash_attention import flash
from ros_pi0_fast.accel.quantized_cache import QuantizedLayerCache, QuantizedSlots
from ros_pi0_fast.model.attention import folded, slots_between, widen
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast

RELATIVE = 0.5 / 127  # of the largest of a token and head


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion('strict'):
        yield


def test_each_token_and_head_has_its_own_scale():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3, 16)) * jnp.exp(
        jax.random.normal(jax.random.key(1), (2, 6, 3, 1)))
    found = QuantizedSlots.of(x)
    assert found.values.dtype == jnp.int8 and found.scale.shape == (2, 6, 3, 1)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    assert bool(jnp.all(jnp.abs(widen(found) - x) <= largest * RELATIVE * 1.001))
    np.testing.assert_array_equal(slots_between(found, jnp.asarray(2), 3), widen(found)[:, 2:5])
    nothing = QuantizedSlots.of(jnp.zeros((1, 2, 1, 4)))
    np.testing.assert_array_equal(widen(nothing), 0)


def test_slots_are_written_where_they_belong():
    cache = QuantizedLayerCache.empty((1, 8, 2, 4), jnp.float32)
    k, v = (jax.random.normal(jax.random.key(i), (1, 3, 2, 4)) for i in (0, 1))
    written = cache.append(k, v, jnp.asarray([2])).append(k[:, :1], v[:, :1], jnp.asarray([7]))
    for slots, new in zip(written.read(), (k, v), strict=True):
        wide = widen(slots)
        np.testing.assert_allclose(wide[:, 2:5], new, atol=0.03)
        np.testing.assert_allclose(wide[:, 7:], new[:, :1], atol=0.03)
        np.testing.assert_array_equal(wide[:, :2], 0)


@pytest.mark.parametrize('attend', [folded, flash])
def test_decoding_on_it_is_close_to_that_on_a_plain_one(attend):
    config = Pi0FastConfig(
        siglip=SiglipConfig(width=32, depth=1, mlp_dim=48, num_heads=2, patch_size=(8, 8),
                            image_size=(16, 16)),
        gemma=GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1,
                          head_dim=32, vocab_size=256), action_dim=5, action_horizon=10,
        max_token_len=40)
    plain = Pi0Fast(config, attend=attend)
    params = plain.unroll(jax.jit(plain.init)(jax.random.key(0)))
    prefix = jax.random.normal(jax.random.key(1), (1, 300, config.gemma.width))
    ids = jax.random.randint(jax.random.key(2), (1, 4), 0, config.gemma.vocab_size)
    found = []
    for model in (plain, dataclasses.replace(plain, layer_cache=QuantizedLayerCache)):
        cache = model.init_cache(params, 1, 1024)
        _, cache = jax.jit(model.prefill)(params, prefix, jnp.asarray([300]), cache)
        step = jax.jit(model.decode_step)
        hidden, cache = step(params, ids, cache)
        hidden, cache = step(params, ids[:, :1], cache)
        found.append(hidden)
        assert int(cache.length[0]) == 305 and cache.capacity == 1024
    exact, rounded = map(np.asarray, found)
    assert 0 < np.linalg.norm(exact - rounded) < 0.05 * np.linalg.norm(exact)


def test_it_takes_a_quarter_of_float32():
    """Head dimensions of openpi: 256."""
    plain = 2 * 4 * 1000 * 256
    cache = QuantizedLayerCache.empty((1, 1000, 1, 256), jnp.float32)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) < 0.26 * plain
