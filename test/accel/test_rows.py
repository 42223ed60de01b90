"""Products of few tokens and the layer made of them: right on a GPU, or in interpret mode."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import layer, wide

from ros_pi0_fast.accel.kernels import chain
from ros_pi0_fast.accel.kernels.by_rows import to_rows
from ros_pi0_fast.accel.kernels.cache_attention import SLOTS, attend_cache
from ros_pi0_fast.accel.kernels.device import Device, jax_refusal
from ros_pi0_fast.accel.kernels.few_product import GROUP, Halves, Tile, few_fit, few_product
from ros_pi0_fast.accel.kernels.few_tokens import FewTokensBlock
from ros_pi0_fast.accel.kernels.mixed_product import _kernel, mixed_fits, mixed_product
from ros_pi0_fast.accel.kernels.norms import Sum, add_and_norm, halves, norm
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.kernels.widen import widened
from ros_pi0_fast.accel.matrices import product, to_matrices
from ros_pi0_fast.accel.quantization import Scheme, quantize_params
from ros_pi0_fast.evaluation.product_cuts import KINDS
from ros_pi0_fast.model.attention import Visible, folded, reference
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig, get_config
from ros_pi0_fast.model.gemma import MAX_WAVELENGTH, Block, Tokens, rotate
from ros_pi0_fast.model.pi0_fast import Pi0Fast

pytestmark = pytest.mark.skipif(bool(jax_refusal()), reason=jax_refusal())
CONFIG = GemmaConfig(width=512, depth=1, mlp_dim=512, num_heads=2, num_kv_heads=1, head_dim=256,
                     vocab_size=64)
ON_GPU = jax.devices()[0].platform == 'gpu'
ROUNDED = 4e-3
"""Relative error of what is rounded to bfloat16 once: 2^-8."""
BFLOAT16 = 2e-2 if ON_GPU else 1e-2
"""Relative error of a layer in bfloat16, of which every product and norm rounds once. On a GPU
both sides are compiled by other compilers, which round in other places."""


def product_case(kind, inputs, outputs, tokens):
    keys = jax.random.split(jax.random.key(0))
    w = KINDS[kind](jax.random.normal(keys[0], (inputs, outputs)))
    x = jax.random.normal(keys[1], (tokens, inputs)).astype(jnp.bfloat16)
    return Rows.of(w), x, np.asarray(x, np.float32) @ np.asarray(wide(w))


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float32) - expected) / np.linalg.norm(expected)


def activations(kind, x):
    return x if kind == 'bfloat16' else Halves.of(x)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('inputs', 'outputs', 'tokens'), [
    (256, 192, 1), (256, 192, 9), (144, 80, 3), (2048, 64, 1), (4096, 128, 3)])
def test_the_kernel_s_products_are_those_of_the_wide_matrix(kind, inputs, outputs, tokens):
    rows, x, expected = product_case(kind, inputs, outputs, tokens)
    assert rows.shape == (inputs, outputs) and few_fit(rows)
    found = few_product([rows], activations(kind, x), interpret=not ON_GPU)[:, :outputs]
    assert found.shape == expected.shape and found.dtype == jnp.bfloat16
    assert relative_error(found, expected) < ROUNDED


def test_large_matrices_are_split():
    for kind, splits in (('bfloat16', 4), ('int8', 4), ('int4', 16)):
        rows = jax.eval_shape(
            lambda kind=kind: Rows.of(KINDS[kind](jnp.zeros((8192, 2048)))))
        assert Tile.of(rows, False).splits == splits


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('tokens', [1, 3])
def test_matrices_side_by_side_and_gated(kind, tokens):
    (one, x, first), (other, _, second) = (
        product_case(kind, 2048, outputs, tokens) for outputs in (128, 64))
    found = few_product([one, other, one], activations(kind, x), interpret=not ON_GPU)
    assert relative_error(found, np.concatenate([first, second, first], axis=1)) < ROUNDED
    found = few_product([one, one], activations(kind, x), gate=True, interpret=not ON_GPU)
    gelu = np.asarray(jax.nn.gelu(jnp.asarray(first)), np.float32)
    assert relative_error(found, gelu * first) < 2 * ROUNDED


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_split_may_be_added_up_by_the_norm_that_follows(kind):
    rows, x, expected = product_case(kind, 2048, 256, 3)
    tile = replace(Tile.of(rows, False), splits=2, inputs=256)
    parts = few_product([rows], activations(kind, x), tile=tile, whole=False,
                        interpret=not ON_GPU)
    assert parts.shape == (2, 3, 256) and parts.dtype == jnp.float32
    assert relative_error(parts.sum(axis=0), expected) < ROUNDED
    residual, gain = (jax.random.normal(jax.random.key(i), shape).astype(jnp.bfloat16)
                      for i, shape in ((5, (3, 256)), (6, (256,))))
    y, normed = add_and_norm(Sum(residual, parts), gain, False, not ON_GPU)
    assert relative_error(y, expected + np.asarray(residual, np.float32)) < ROUNDED
    again, alike = add_and_norm(Sum(residual, y - residual), gain, True, not ON_GPU)
    for found in (normed, 256. * alike.high * alike.scale + alike.low * alike.scale):
        assert relative_error(found, np.asarray(
            norm(again, gain, interpret=not ON_GPU), np.float32)) < 2 * ROUNDED


def test_a_kernel_lets_the_next_one_be_started_where_it_is_told_to_and_the_device_can(monkeypatch):
    rows, x, _ = product_case('bfloat16', 256, 192, 3)

    def lowered(leads):
        function = jax.jit(lambda rows, x: few_product([rows], x, leads=leads))
        return function.trace(rows, x).lower(lowering_platforms=('cuda',)).as_text()

    for can in (True, False):
        monkeypatch.setattr(chain, 'starts_early', lambda can=can: can)
        assert ('griddepcontrol.launch_dependents' in lowered(True)) == can
        assert 'griddepcontrol' not in lowered(False)


def test_halves_are_as_near_as_sixteen_bits_allow():
    x = jax.random.normal(jax.random.key(0), (3, 1024)).astype(jnp.bfloat16)
    x = x.at[0, 5].set(40.0).at[2].set(0)
    for found in (Halves.of(x), halves(x, not ON_GPU)):
        number = 256 * np.asarray(found.high, np.float32) + np.asarray(found.low, np.float32)
        error = np.abs(number * np.asarray(found.scale) - np.asarray(x, np.float32))
        assert np.all(error <= 0.51 * np.asarray(found.scale)) and not error[2].any()
        assert np.abs(number[0]).max() == 127 * 256
    assert np.abs(np.asarray(found.scale)[0] * 127 * 256 - 40).max() < 1e-4


def test_halves_of_long_rows_have_a_scale_for_each_group():
    x = jax.random.normal(jax.random.key(0), (2, 2 * GROUP)).astype(jnp.bfloat16)
    x = x.at[1, GROUP:].multiply(8)
    rows = Rows.of(KINDS['int8'](jax.random.normal(jax.random.key(1), (2 * GROUP, 64))))
    found = halves(x, not ON_GPU)
    assert found.scale.shape == (2, 2) and found.scale[1, 1] > 4 * found.scale[1, 0]
    expected = np.asarray(few_product([rows], Halves.of(x), interpret=not ON_GPU), np.float32)
    for splits in (1, 2):
        tile = replace(Tile.of(rows, False), splits=splits, inputs=256)
        assert relative_error(few_product([rows], found, tile=tile, interpret=not ON_GPU),
                              expected) < ROUNDED


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('inputs', 'outputs'), [(256, 192), (144, 80)])
def test_products_of_many_tokens_are_those_of_the_wide_matrix(kind, inputs, outputs):
    rows, x, expected = product_case(kind, inputs, outputs, 20)
    found = jax.jit(product)(rows, x)
    assert found.dtype == x.dtype and found.shape == expected.shape
    assert relative_error(found, expected) < ROUNDED


@functools.cache
def odd_policy():
    config = replace(get_config('tiny'), dtype='bfloat16')
    config = replace(config, siglip=replace(config.siglip, mlp_dim=272, depth=1),
                     gemma=replace(config.gemma, depth=1))
    model = Pi0Fast(config)
    return model, jax.jit(model.init)(jax.random.key(0))


def test_integers_are_widened_exactly():
    values = jax.random.randint(jax.random.key(0), (64, 384), -128, 128, jnp.int8)
    found = widened(values, interpret=not ON_GPU)
    assert found.dtype == jnp.bfloat16 and np.array_equal(np.asarray(found, np.int32), values)


def large(inputs, outputs, dtype=jnp.int8):
    return Rows(values=jax.ShapeDtypeStruct((outputs, inputs), dtype), inputs=inputs,
                outputs=outputs, groups=None,
                scale=None if dtype != jnp.int8 else jnp.ones((outputs,)))


def test_the_mixed_product_is_for_hopper_and_some_hundreds_of_tokens(monkeypatch):
    def fits(w, tokens, capability=9.0):
        device = Device(platform='gpu', capability=capability)
        monkeypatch.setattr(Device, 'current', lambda: device)
        return mixed_fits(w, jax.ShapeDtypeStruct((tokens, w.inputs), jnp.bfloat16))

    gate = large(2048, 16384)
    assert all(fits(gate, tokens) for tokens in (224, 320, 512)) == (_kernel() is not None)
    assert not any(fits(gate, tokens) for tokens in (17, 513, 832))
    assert not fits(gate, 320, 8.9) and not fits(gate, 320, 10.0)
    assert not fits(large(2048, 2048), 320) and not fits(large(16384, 2048), 320)
    assert not fits(large(2048, 16384, jnp.bfloat16), 320)


@pytest.mark.skipif(Device.current().capability != 9.0, reason='a kernel for Hopper GPUs only')
@pytest.mark.parametrize('tokens', [201, 320])
def test_the_mixed_product_is_that_of_the_wide_matrix(tokens):
    keys = jax.random.split(jax.random.key(0))
    w = jax.random.randint(keys[0], (16384, 2048), -127, 128, jnp.int8)
    x = jax.random.normal(keys[1], (tokens, 2048)).astype(jnp.bfloat16)
    expected = np.asarray(x, np.float32) @ np.asarray(w, np.float32).T
    assert relative_error(mixed_product(w, x), expected) < ROUNDED


@pytest.mark.parametrize('kind', KINDS)
def test_siglip_s_hidden_axis_is_padded_and_its_tokens_are_the_same(kind):
    model, params = odd_policy()
    plain = to_matrices(model, model.unroll(params)) if kind == 'bfloat16' else quantize_params(
        model, params, Scheme(weights=kind))
    stored = to_rows(plain)
    mlp = stored['PaliGemma']['img']['Transformer']['encoderblock'][0]['MlpBlock_0']
    assert mlp['Dense_0']['kernel'].shape == (128, 384) and mlp['Dense_0']['bias'].shape == (384,)
    assert mlp['Dense_1']['kernel'].shape == (384, 128)
    images = jax.random.randint(jax.random.key(1), (1, *model.config.siglip.image_size, 3), 0, 256)
    seen, expected = (jax.jit(model.embed_image)(weights, images.astype(jnp.uint8))
                      for weights in (stored, plain))
    assert seen.shape == expected.shape
    assert relative_error(seen, np.asarray(expected, np.float32)) < BFLOAT16


@pytest.mark.parametrize(('kind', 'tokens'), [
    ('bfloat16', 3), ('int8', 4), ('int4', 1)])
def test_a_layer_is_the_model_s(kind, tokens):
    reference, few = layer(kind, CONFIG)
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (1, tokens, CONFIG.width)).astype(jnp.bfloat16)
    shape = (1, 2 * SLOTS + 9, 1, CONFIG.head_dim)
    cache = LayerCache(k=jax.random.normal(keys[1], shape).astype(jnp.bfloat16),
                       v=jax.random.normal(keys[2], shape).astype(jnp.bfloat16))
    block = FewTokensBlock(CONFIG, folded, interpret=not ON_GPU)
    apply, expect = jax.jit(block.apply), jax.jit(Block(CONFIG, folded).apply)
    for first, slot in ((0, SLOTS - 2), (5, 2 * SLOTS + 9 - tokens)):
        steps = jnp.arange(tokens, dtype=jnp.int32)
        at = jnp.array([slot], jnp.int32)
        where = Tokens(positions=at[:, None] + steps - first, slot=at, visible=Visible(
            start=jnp.array([first], jnp.int32), end=at[:, None] + steps + 1,
            uniform=tokens == 1))
        assert block.fits(few, x, where)
        expected, expected_cache = expect({'params': reference}, x, where, cache)
        added, found_cache = apply({'params': few}, x, where, cache)
        found = added.whole(block.interpret)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        for one, other in ((found - x, expected - x), (found_cache.k, expected_cache.k),
                           (found_cache.v, expected_cache.v)):
            one, other = (np.asarray(a, np.float32) for a in (one, other))
            assert np.linalg.norm(one - other) < BFLOAT16 * np.linalg.norm(other)
        new = slice(slot, slot + tokens)
        assert np.abs(np.asarray(found_cache.k[0, new] - cache.k[0, new])).max() > 0.1
        others = np.delete(np.asarray(found_cache.k), range(slot, slot + tokens), axis=1)
        assert np.array_equal(others, np.delete(np.asarray(cache.k), range(slot, slot + tokens),
                                                axis=1))
    # What follows adds up what a layer returns: the next layer, or the last norm.
    gain = {'scale': few['pre_ffw_norm']['scale']}
    assert relative_error(block.finish(added, gain), np.asarray(
        Block.finish(found, gain), np.float32)) < 2 * ROUNDED
    if kind == 'int8':
        following, expected = (apply({'params': few}, x, where, cache)[0].whole(block.interpret)
                               for x in (added, found))
        assert relative_error(following, np.asarray(expected, np.float32)) < 2 * ROUNDED


@pytest.mark.parametrize('tokens', [1, 3, 8])
def test_attention_on_a_cache_is_the_reference_s_for_any_few_tokens(tokens):
    heads, size, slots, first, slot = 3, 64, 2 * SLOTS + 9, 5, SLOTS + 3
    keys = jax.random.split(jax.random.key(4), 3)
    projected, k, v = (jax.random.normal(key, (count, size)).astype(jnp.bfloat16)
                       for key, count in zip(keys, (tokens * (heads + 2), slots, slots),
                                             strict=True))
    steps = jnp.arange(tokens, dtype=jnp.int32)
    positions = (slot - first + steps)[None]
    radians = positions[0, :, None] / MAX_WAVELENGTH ** (
        jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    found = attend_cache(projected, k, v, jnp.cos(radians), jnp.sin(radians),
                         jnp.array([first, slot], jnp.int32), heads=heads, interpret=not ON_GPU)
    each = projected.reshape(1, tokens, heads + 2, size)
    rotated = rotate(each[:, :, :heads + 1], positions)
    q = (rotated[:, :, :heads] * size ** -0.5).astype(jnp.bfloat16)
    k = k.at[slot:slot + tokens].set(rotated[0, :, heads].astype(jnp.bfloat16))
    v = v.at[slot:slot + tokens].set(each[0, :, heads + 1])
    mixed = reference(q, k[None, :, None], v[None, :, None], Visible(
        start=jnp.array([first], jnp.int32), end=slot + 1 + steps[None], uniform=tokens == 1))
    for one, other in zip(found, (mixed.reshape(tokens, -1), k, v), strict=True):
        one, other = (np.asarray(a, np.float32) for a in (one, other))
        assert np.linalg.norm(one - other) < BFLOAT16 * np.linalg.norm(other)
