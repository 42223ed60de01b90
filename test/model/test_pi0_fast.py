"""The ways through the network agree: packed and aligned, scanned and unrolled, one or several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.model import masks
from ros_pi0_fast.model.pi0_fast import Pi0Fast

# Float32 logits of order 1 to 3 after three layers; reordered sums differ by some 1e-6.
LOGITS = 2e-5
LENGTHS = (5, 9)


@pytest.fixture(scope='module')
def embeddings(config):
    return jax.random.normal(jax.random.key(1), (2, 9, config.gemma.width))


@pytest.fixture(scope='module')
def images(config):
    shape = (2, *config.siglip.image_size, 3)
    return {key: jax.random.randint(jax.random.key(i), shape, 0, 256).astype(jnp.uint8)
            for i, key in enumerate(config.camera_keys)}


@functools.partial(jax.jit, static_argnames='model')
def decoded(model, params, hidden, cache, ids):
    """Feed ids one at a time; return the logits after each, those of the prefill first."""
    logits = [model.logits(params, hidden)]
    for i in range(ids.shape[1]):
        hidden, cache = model.decode_step(params, ids[:, i:i + 1], cache)
        logits.append(model.logits(params, hidden[:, -1]))
    return jnp.stack(logits, axis=1), cache


@functools.partial(jax.jit, static_argnames=('model', 'capacity', 'last_only'))
def packed(model, params, embeddings, capacity=16, last_only=False):
    lengths = jnp.array(LENGTHS[:len(embeddings)])
    cache = model.init_cache(params, len(embeddings), capacity)
    hidden, cache = model.prefill(params, embeddings, lengths, cache, last_only=last_only)
    if not last_only:
        hidden = hidden[jnp.arange(len(lengths)), lengths - 1][:, None]
    return hidden, cache


loss_of = jax.jit(Pi0Fast.loss, static_argnums=0)
aligned_of = jax.jit(Pi0Fast.prefill_aligned, static_argnums=0)
prefill_of = jax.jit(Pi0Fast.prefill, static_argnums=0)
embed_of = jax.jit(Pi0Fast.embed_images, static_argnums=0)
step_of = jax.jit(Pi0Fast.decode_step, static_argnums=0)


IDS = np.array([[3, 14, 15], [9, 26, 5]], np.int32)


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_packed_and_aligned_prefixes_give_the_same_logits(make, embeddings, kv_heads):
    model, params = make(gemma={'num_kv_heads': kv_heads})
    hidden, cache = packed(model, params, embeddings)
    expected, cache = decoded(model, params, hidden[:, 0], cache, IDS)
    mask = jnp.arange(9) < jnp.array(LENGTHS)[:, None]
    x, mask, ar_mask = masks.right_align(embeddings, mask, jnp.zeros((2, 9), jnp.int32))
    hidden, aligned = aligned_of(model, params, x, mask, ar_mask, model.init_cache(params, 2, 12))
    actual, aligned = decoded(model, params, hidden[:, -1], aligned, IDS)
    np.testing.assert_allclose(actual, expected, atol=LOGITS)
    np.testing.assert_array_equal(aligned.length, cache.length)
    np.testing.assert_array_equal(aligned.end, [12, 12])


def test_padding_of_the_bucket_does_not_count(make, embeddings):
    model, params = make()
    expected, _ = decoded(model, params, *_last(packed(model, params, embeddings)), IDS)
    noise = jnp.full((2, 4, embeddings.shape[-1]), 100.0)
    wider = jnp.concatenate([embeddings.at[0, 5:].set(-50), noise], axis=1)
    actual, _ = decoded(model, params, *_last(packed(model, params, wider)), IDS)
    np.testing.assert_allclose(actual, expected, atol=LOGITS)


def _last(filled):
    hidden, cache = filled
    return hidden[:, 0], cache


@pytest.mark.parametrize('unroll', [True, False])
def test_only_the_last_output_is_the_last_of_all_outputs(make, embeddings, unroll):
    for kv_heads in (2, 4):
        model, params = make(gemma={'num_kv_heads': kv_heads}, unroll=unroll)
        every, cache = packed(model, params, embeddings)
        only, other = packed(model, params, embeddings, last_only=True)
        assert only.shape == (2, 1, 32)
        np.testing.assert_allclose(only, every, atol=LOGITS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=LOGITS), cache, other)


def test_scanned_layers_are_unrolled_layers(make, embeddings):
    model, stacked = make(unroll=False)
    split = model.unroll(stacked)
    jax.tree.map(np.testing.assert_array_equal, model.stack(split), stacked)
    expected, _ = decoded(model, stacked, *_last(packed(model, stacked, embeddings)), IDS)
    actual, _ = decoded(model, split, *_last(packed(model, split, embeddings)), IDS)
    np.testing.assert_allclose(actual, expected, atol=LOGITS)
    with pytest.raises(ValueError, match='layers: stacked, expected a tuple of layers'):
        model.decode_step(stacked, IDS, model.init_cache(split, 2, 8))


def test_a_stacked_cache_serves_unrolled_layers(make):
    model, params = make()
    apart = model.init_cache(params, 2, 8)
    together = model.init_cache(params, 2, 8, stacked=True)
    assert together.stacked and not apart.stacked
    for _ in range(2):
        expected, apart = model.decode_step(params, IDS, apart)
        actual, together = model.decode_step(params, IDS, together)
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(together.layers.k, np.stack([x.k for x in apart.layers]))


@pytest.mark.parametrize('batch', [1, 2])
def test_several_tokens_at_once_are_one_after_another(make, embeddings, batch):
    model, params = make()
    hidden, cache = packed(model, params, embeddings[:batch])
    expected, after = decoded(model, params, hidden[:, 0], cache, IDS[:batch])
    hidden, cache = step_of(model, params, IDS[:batch], cache)
    np.testing.assert_allclose(model.logits(params, hidden), expected[:, 1:], atol=LOGITS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=LOGITS), cache, after)


def test_tokens_taken_back_leave_no_trace(make, embeddings):
    model, params = make()
    hidden, cache = packed(model, params, embeddings)
    expected, _ = decoded(model, params, hidden[:, 0], cache, IDS)
    _, tried = step_of(model, params, IDS[:, ::-1], cache)
    actual, _ = decoded(model, params, hidden[:, 0], tried.rollback(jnp.array([3, 3])), IDS)
    np.testing.assert_array_equal(actual, expected)


def test_generated_tokens_are_one_position_further_than_in_training(make, embeddings):
    ahead, params = make()
    there, _ = make(first_token_offset=0)
    prefix = embeddings[1:]
    whole, _ = aligned_of(
        there, params, jnp.concatenate([prefix, there.embed_tokens(params, IDS[1:])], axis=1),
        jnp.ones((1, 12), bool), (jnp.arange(12) >= 9)[None].astype(jnp.int32),
        there.init_cache(params, 1, 12))
    for model, same in ((there, True), (ahead, False)):
        cache = model.init_cache(params, 1, 12)
        _, cache = prefill_of(model, params, prefix, jnp.array([9]), cache)
        hidden, _ = step_of(model, params, IDS[1:], cache)
        assert np.allclose(hidden, whole[:, 9:], atol=LOGITS) is same


def test_a_full_cache_is_refused(make, embeddings):
    model, params = make()
    with pytest.raises(ValueError, match='cache: capacity 8, expected at least 9'):
        packed(model, params, embeddings, capacity=8)


def test_logits_of_some_ids_are_those_of_all(make, embeddings):
    model, params = make()
    some = jnp.array([59, 0, 7])
    every = model.logits(params, embeddings)
    np.testing.assert_allclose(model.logits(params, embeddings, some), every[..., some],
                               atol=LOGITS)


def test_cameras_are_checked_and_ordered(make, images):
    model, params = make()
    tokens = embed_of(model, params, dict(reversed(images.items())))
    assert tokens.shape == (2, 12, 32)
    swapped = embed_of(model, params, dict(zip(images, reversed(images.values()), strict=True)))
    np.testing.assert_allclose(swapped, jnp.roll(tokens, 6, axis=1), atol=LOGITS)
    scaled = {key: image.astype(jnp.float32) / 255 * 2 - 1 for key, image in images.items()}
    np.testing.assert_allclose(embed_of(model, params, scaled), tokens, atol=LOGITS)
    with pytest.raises(ValueError, match=r"cameras \['base_0_rgb'\], expected \['base_0_rgb', 'w"):
        model.embed_images(params, {'base_0_rgb': images['base_0_rgb']})
    with pytest.raises(ValueError, match=r'images: shape \(2, 12, 16, 3\), expected \(batch, 13'):
        model.embed_image(params, images['base_0_rgb'][:, 1:])


@pytest.fixture
def batch(images):
    length = jnp.array([[7], [10]])
    at, prefix = jnp.arange(12), jnp.array([[4], [6]])
    return {'images': images, 'tokens': jax.random.randint(jax.random.key(4), (2, 12), 0, 60),
            'token_mask': at < length, 'ar_mask': ((at >= prefix) & (at < length)).astype(int),
            'loss_mask': (at >= prefix) & (at < length)}


def test_loss_with_ranges_is_loss_with_the_dense_mask(make, batch):
    model, params = make()
    all_there = {key: jnp.ones(2, bool) for key in batch['images']}
    expected = loss_of(model, params, {**batch, 'image_masks': all_there})
    np.testing.assert_allclose(loss_of(model, params, batch), expected, atol=LOGITS)
    hidden = {**all_there, 'base_0_rgb': jnp.array([True, False])}
    masked = loss_of(model, params, {**batch, 'image_masks': hidden})
    assert abs(masked - expected)[0] < LOGITS < abs(masked - expected)[1]


def test_loss_counts_marked_tokens_only(make, batch):
    model, params = make()
    none = loss_of(model, params, {**batch, 'loss_mask': jnp.zeros((2, 12), bool)})
    np.testing.assert_array_equal(none, [0, 0])
    beyond = jnp.where(batch['token_mask'], batch['tokens'], 59)
    np.testing.assert_array_equal(loss_of(model, params, {**batch, 'tokens': beyond}),
                                  loss_of(model, params, batch))


@pytest.mark.parametrize('unroll', [True, False])
def test_gradient_checkpointing_changes_no_gradient(make, batch, unroll):
    plain, params = make(unroll=unroll)
    thrifty = dataclasses.replace(plain, remat='nothing_saveable')
    expected, actual = (jax.jit(jax.grad(lambda p, m=m: m.loss(p, batch).mean()))(params)
                        for m in (plain, thrifty))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=LOGITS), expected, actual)
    with pytest.raises(ValueError, match="remat: 'some', expected the name of a policy"):
        dataclasses.replace(plain, remat='some').loss(params, batch)


def test_bfloat16_keeps_to_its_dtypes(make, embeddings):
    model, params = make(dtype='bfloat16')
    hidden, cache = packed(model, params, embeddings)
    assert hidden.dtype == cache.layers[0].k.dtype == jnp.bfloat16
    assert model.logits(params, hidden).dtype == jnp.float32
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    hidden, _ = packed(model, stored, embeddings)
    assert model.logits(stored, hidden).dtype == jnp.bfloat16


def test_network_is_a_static_argument(make):
    model, _ = make()
    assert hash(model) == hash(Pi0Fast(model.config))
    assert model == Pi0Fast(model.config)
