"""Attention's kernels: right on a GPU, or in interpret mode; refused where they cannot run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.attention_choice import (
    CANDIDATES,
    AttentionChooser,
    AttentionShape,
    refusal,
)
from ros_pi0_fast.accel.kernels.device import Device, jax_refusal
from ros_pi0_fast.accel.kernels.pallas_attention import pallas
from ros_pi0_fast.model.attention import Fresh, Visible, folded, reference, write_slots

pytestmark = pytest.mark.skipif(bool(jax_refusal()), reason=jax_refusal())
ON_GPU = jax.devices()[0].platform == 'gpu'
kernel = functools.partial(pallas, interpret=not ON_GPU)
FLOAT32, BFLOAT16 = 1e-5, 2e-2
HOPPER, ADA = Device(platform='gpu', capability=9.0), Device(platform='gpu', capability=8.9)
CPU = Device(platform='cpu')


@pytest.fixture(autouse=True)
def exact_products():
    """Multiply float32 as such: a GPU would round it to TF32."""
    with jax.default_matmul_precision('highest'):
        yield


def arrays(t, s, *, b=1, n=8, m=1, h=64, dtype='float32', seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((b, t, n, h)) * h ** -0.5
    k, v = (rng.standard_normal((b, s, m, h)) for _ in range(2))
    return tuple(jnp.asarray(x.astype(jnp.dtype(dtype))) for x in (q, k, v))


def check(actual, expected, dtype='float32'):
    error = np.abs(np.asarray(actual, np.float32) - np.asarray(expected, np.float32))
    assert error.max() < (FLOAT32 if dtype == 'float32' else BFLOAT16)
    assert actual.dtype == expected.dtype and np.std(np.asarray(expected, np.float32)) > 0.005


@pytest.mark.parametrize(('batch', 'kv_heads', 'head_dim', 'length', 'dtype'), [
    (1, 1, 256, 130, 'float32'), (2, 2, 64, 70, 'float32'), (1, 1, 256, 64, 'bfloat16'),
    (4, 1, 72, 1, 'float32')])
def test_a_prefix_is_the_reference(batch, kv_heads, head_dim, length, dtype):
    q, k, v = arrays(length, length, b=batch, m=kv_heads, h=head_dim, dtype=dtype)
    ends = np.broadcast_to(np.maximum(1, length - 5 * np.arange(batch))[:, None],
                           (batch, length)).astype(np.int32)
    visible = Visible(end=jnp.asarray(ends), uniform=True)
    check(kernel(q, k, v, visible), jax.jit(reference)(q, k, v, visible), dtype)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_siglip_s_heads_of_72_are_the_reference(dtype):
    q, k, v = arrays(100, 100, n=4, m=4, h=72, dtype=dtype)
    check(kernel(q, k, v, None), jax.jit(reference)(q, k, v, None), dtype)


@pytest.mark.parametrize('new', [1, 4, 8])
def test_new_tokens_on_a_cache_are_the_reference(new):
    q, k, v = arrays(new, 200, b=2, h=256)
    _, fresh_k, fresh_v = arrays(new, new, b=2, h=256, seed=1)
    slot = np.array([3, 150], np.int32)
    visible = Visible(end=jnp.asarray(slot[:, None] + np.arange(1, new + 1, dtype=np.int32)),
                      uniform=new == 1, start=jnp.array([0, 10], jnp.int32))
    fresh = Fresh(k=fresh_k, v=fresh_v, slot=jnp.asarray(slot))

    @jax.jit
    def written(q, k, v, visible, fresh):
        return reference(q, write_slots(k, fresh.k, fresh.slot),
                         write_slots(v, fresh.v, fresh.slot), visible)

    check(kernel(q, k, v, visible, fresh=fresh), written(q, k, v, visible, fresh))


def shape(**changes):
    return AttentionShape(**{
        'batch': 1, 'tokens': 1, 'slots': 64, 'heads': 8, 'kv_heads': 1, 'head_dim': 256,
        'dtype': 'bfloat16', 'kind': 'cache', **changes})


@pytest.mark.parametrize(('name', 'device', 'changes', 'reason'), [
    ('cudnn', CPU, {}, 'cpu of compute capability 0, expected an NVIDIA GPU of at least 8'),
    ('cudnn', ADA, {}, 'head_dim: 256, expected a multiple of 8 up to 128'),
    ('cudnn', HOPPER, {'dtype': 'float32'}, 'dtype: float32, expected bfloat16 or float16'),
    ('cudnn', HOPPER, {'tokens': 4}, '4 new tokens'), ('cudnn', HOPPER, {}, ''),
    ('cudnn', ADA, {'head_dim': 72, 'kind': 'all', 'tokens': 256}, ''),
    ('pallas', CPU, {}, 'cpu of compute capability 0'), ('pallas', ADA, {}, ''),
    ('flash', CPU, {}, ''), ('folded', CPU, {}, '')])
def test_what_cannot_run_is_refused_with_the_reason(name, device, changes, reason):
    found = refusal(name, device, shape(**changes))
    assert found.startswith(reason) and bool(found) == bool(reason)


@pytest.mark.parametrize('asked', [
    shape(kind='all', tokens=256, slots=256, heads=16, kv_heads=16, head_dim=72),
    shape(kind='prefix', tokens=576, slots=576), shape(slots=640),
    shape(slots=640, tokens=4)], ids=str)
def test_what_runs_on_this_device_is_the_reference(asked):
    q, k, v = arrays(asked.tokens, asked.slots, n=asked.heads, m=asked.kv_heads,
                     h=asked.head_dim, dtype=asked.dtype)
    last = np.full((1, asked.tokens), asked.slots - 9, np.int32)
    if asked.kind == 'cache':
        last += np.arange(asked.tokens, dtype=np.int32)
    visible = None if asked.kind == 'all' else Visible(
        end=jnp.asarray(last), uniform=asked.kind == 'prefix' or asked.tokens == 1)
    running = {name for name in CANDIDATES if not refusal(name, Device.current(), asked)}
    assert running >= ({'folded', 'flash', 'pallas'} if ON_GPU else {'folded', 'flash'})
    expected = jax.jit(reference)(q, k, v, visible)
    for name in running:
        check(jax.jit(CANDIDATES[name])(q, k, v, visible), expected, asked.dtype)


def test_only_what_can_run_is_measured():
    chooser = AttentionChooser()
    asked = shape(dtype='float32', head_dim=32)
    assert chooser.choose(asked) in chooser.candidates.values()
    if jax.devices()[0].platform == 'cpu':
        assert set(chooser.times[asked]) == {'folded', 'flash'}
        assert set(chooser.refusals[asked]) == {'cudnn', 'pallas'}
    assert chooser.candidates['folded'] is folded
