"""Weights of few bits: rounded right, multiplied right, never widened whole, refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.matrices import product
from ros_pi0_fast.accel.quantized import (
    GROUP_SIZES,
    QuantizationError,
    QuantizedMatrix,
    quantize_int4,
    quantize_int8,
    quantize_table,
)
from ros_pi0_fast.model.einsum import einsum, part, rows

HEAD = '...d,vd->...v'
FLOAT_TOLERANCE = 1e-5  # of sums in another order


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion('strict'):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_int8_is_what_qwix_makes():
    qwix = pytest.importorskip('qwix', reason='qwix, the oracle, is not installed')
    from qwix._src.core import qarray

    del qwix
    w = normal(192, 48)
    expected = qarray.quantize(w, qarray.HowToQuantize(qtype=jnp.int8, channelwise_axes=(1,)))
    found = quantize_int8(w)
    # qwix divides by 127.5 and cuts the one value off that rounds to 128.
    np.testing.assert_allclose(found.scale * 127 / 127.5, expected.scale[0], rtol=1e-6)
    difference = np.abs(np.asarray(found.values, np.int32) - np.asarray(expected.qvalue, np.int32))
    assert difference.max() <= 1
    np.testing.assert_allclose(found.wide(), w, atol=float(found.scale.max()) / 2 + 1e-6)


@pytest.mark.parametrize('size', GROUP_SIZES)
def test_int4_rounds_each_group_to_its_own_scale(size):
    w = normal(256, 40) * jnp.exp(normal(256, 40, seed=1))
    found = quantize_int4(w, size)
    assert found.values.shape == (128, 40) and found.values.dtype == jnp.uint8
    assert found.groups.shape == (256 // size, 40) and found.group_size == size
    assert found.bits == 4 and found.shape == w.shape
    largest = jnp.max(jnp.abs(w.reshape(-1, size, 40)), axis=1)
    steps = found.groups.astype(jnp.float32) * found.scale
    # Scales are rounded up to 1/255 of the largest of their channel.
    assert bool(jnp.all(steps >= largest / 7 * (1 - 1e-5)))
    assert bool(jnp.all(steps <= largest / 7 + found.scale * (1 + 1e-5)))
    error = jnp.abs(found.wide() - w).reshape(-1, size, 40)
    assert bool(jnp.all(error <= steps[:, None] * 0.5001))


def test_sizes_that_divide_are_found_and_others_are_padded():
    assert [quantize_int4(normal(n, 8)).group_size for n in (512, 192, 96, 4304)] == [
        128, 64, 32, 128]
    odd = quantize_int4(normal(4304, 8))
    assert odd.shape == (4304, 8) and odd.values.shape == (4352 // 2, 8)
    np.testing.assert_allclose(odd.wide(), normal(4304, 8), atol=0.5)


@pytest.mark.parametrize('make', [quantize_int8, quantize_int4])
@pytest.mark.parametrize('inputs', [192, 300])
@pytest.mark.parametrize('tokens', [1, 5])
def test_products_are_those_of_the_widened_matrix(make, inputs, tokens):
    matrix, x = make(normal(inputs, 24)), normal(tokens, inputs, seed=1)
    expected = np.asarray(x, np.float64) @ np.asarray(matrix.wide(), np.float64)
    np.testing.assert_allclose(jax.jit(product)(matrix, x), expected, rtol=0,
                               atol=FLOAT_TOLERANCE * np.abs(expected).max())
    half = jax.eval_shape(product, matrix, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize('make', [quantize_int8, quantize_int4])
def test_no_wide_copy_of_a_matrix_is_made(make):
    """Read from the compiled executable: for one token, for a prefix, and in a loop of steps."""
    matrix = make(normal(1024, 2048))

    def steps(matrix, x):
        return jax.lax.fori_loop(0, x[0, 0].astype(jnp.int32), lambda _, x: jnp.tanh(
            product(matrix, x)[:, :1024]), x)

    looped = jax.jit(steps).lower(matrix, normal(1, 1024)).compile().memory_analysis()
    assert looped.temp_size_in_bytes < 1024 * 2048 * 4 / 4
    for tokens in (1, 64):
        x = normal(tokens, 1024)
        scratch = jax.jit(product).lower(matrix, x).compile().memory_analysis()
        activations = 4 * tokens * (1024 + 2 * 2048)
        assert scratch.temp_size_in_bytes < 1024 * 2048 * 4 / 4 + 2 * activations


def test_tables_are_looked_up_cut_and_multiplied():
    table = normal(300, 64).at[7].set(0.0)
    found = quantize_table(table)
    ids = jnp.asarray([[3, 7], [299, 0]])
    np.testing.assert_allclose(rows(found, ids), table[ids], atol=0.02)
    assert rows(quantize_table(table.astype(jnp.bfloat16)), ids).dtype == jnp.bfloat16
    x = normal(2, 5, 64, seed=1)
    wide = rows(found, jnp.arange(300))
    np.testing.assert_allclose(einsum(HEAD, x, found), x @ wide.T, atol=1e-4)
    cut = part(found, jnp.asarray([5, 1, 290]))
    assert cut.shape == (3, 64) and cut.values.dtype == jnp.int8
    np.testing.assert_allclose(einsum(HEAD, x, cut), x @ wide[jnp.asarray([5, 1, 290])].T,
                               atol=1e-4)
    with pytest.raises(QuantizationError, match='equation: abc'):
        einsum('abc', x, found)


@pytest.mark.parametrize('make', [quantize_int8, quantize_int4])
def test_channels_that_mean_nothing_are_named(make):
    for value, what in ((jnp.nan, 'NaN or infinity'), (jnp.inf, 'NaN or infinity')):
        with pytest.raises(QuantizationError, match=rf'^some/w: channel 3 of 8 has {what}'):
            make(normal(64, 8).at[5, 3].set(value), name='some/w')
    with pytest.raises(QuantizationError, match=r'^some/w: channel 2 of 8 has nothing but 0'):
        make(normal(64, 8).at[:, 2].set(0.0), name='some/w')


def test_group_sizes_that_do_not_divide_are_named():
    for inputs, size, fitting in ((192, 128, '64, 32'), (256, 48, '128, 64, 32'),
                                  (4304, 32, 'none')):
        with pytest.raises(QuantizationError, match=f'^some/w: groups of {size} along an input '
                                                    f'axis of {inputs}, expected one of '
                                                    f'{fitting}, or no size'):
            quantize_int4(normal(inputs, 8), size, 'some/w')


def test_shapes_alone_can_be_quantized():
    """As whoever asks how much memory a model will take does."""
    found = jax.eval_shape(quantize_int4, jax.ShapeDtypeStruct((512, 96), jnp.bfloat16))
    assert isinstance(found, QuantizedMatrix) and found.values.shape == (256, 96)
