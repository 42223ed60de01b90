"""Attention as a Pallas kernel: blocks of keys with a running softmax, a block of rows a program.

For GPUs on which cuDNN has none for these shapes (Gemma's heads of 256 before Hopper). The rows of
a program are queries of all heads that share a key-value head, so that with 8 query heads on one
key-value head (Gemma 2B) a single token fills half a tile and each key is read once for all of
them. The method is FlashAttention's (arXiv:2205.14135); gradients are those of
accel.flash_attention.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.flash_attention import DenseMaskError, row_bounds, to_rows, to_tokens
from ros_pi0_fast.accel.kernels.device import Device, jax_refusal
from ros_pi0_fast.model.attention import Fresh, Visible, widen, write_slots

ROWS = 32
KEYS = 64
"""Rows of queries and keys of a block: both must be powers of two, of at least 16."""
HIDDEN = -1e30
SMALLEST_CAPABILITY = 8.0


def pallas(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
           score_dtype: jnp.dtype = jnp.float32, fresh: Fresh | None = None,
           interpret: bool = False) -> jax.Array:
    """Attend: see model.attention.Attend.

    Args:
        q, k, v, visible, score_dtype, fresh: See there.
        interpret: Run the kernel's operations one by one on any device, to test it.

    Raises:
        DenseMaskError: `visible` is a dense mask.
    """
    del score_dtype  # No lower than float32.
    if visible is not None and visible.dense is not None:
        raise DenseMaskError('visible: a dense mask, expected ranges of slots (packed_prefix)')
    k, v = widen(k), widen(v)
    if fresh is not None:
        k, v = write_slots(k, fresh.k, fresh.slot), write_slots(v, fresh.v, fresh.slot)
    b, t, n, h = q.shape
    m = k.shape[2]
    group = n // m
    bounds = row_bounds(visible, b, t, k.shape[1], group)
    rows = _pad(_pad(to_rows(q, group), 2, ROWS), 3, _power_of_two(h))
    k, v = (_pad(_pad(x, 1, KEYS), 3, _power_of_two(h)) for x in (k, v))
    first, last = (_pad(x, 1, ROWS) for x in (bounds.first, bounds.last))
    mixed = _call(rows, k, v, first, last, interpret)
    return to_tokens(mixed[:, :, :t * group, :h], t, group).astype(v.dtype)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Fill an axis up with zeros to a multiple."""
    missing = math.ceil(x.shape[axis] / multiple) * multiple - x.shape[axis]
    if not missing:
        return x
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, missing)
    return jnp.pad(x, padding)


def _call(rows: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array,
          interpret: bool) -> jax.Array:
    """Run the kernel over rows [b, m, r, h] and keys [b, s, m, h]: float32 [b, m, r, h]."""
    b, m, r, h = rows.shape
    keys = pl.BlockSpec((None, k.shape[1], None, h), lambda i, j, _: (i, 0, j, 0))
    bound = pl.BlockSpec((None, ROWS), lambda i, _, at: (i, at))
    queries = pl.BlockSpec((None, None, ROWS, h), lambda i, j, at: (i, j, at, 0))
    return pl.pallas_call(
        _kernel, grid=(b, m, r // ROWS), in_specs=[queries, keys, keys, bound, bound],
        out_specs=queries, out_shape=jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret)(rows, k, v, first, last)


def _kernel(q_ref, k_ref, v_ref, first_ref, last_ref, out_ref) -> None:
    """One block of rows. q, out [ROWS, h]; k, v [s, h]; first, last [ROWS]."""
    q, first, last = q_ref[...], first_ref[...], last_ref[...]
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

    def body(index: jax.Array, state: tuple) -> tuple:
        top, whole, mixed = state
        block = pl.ds(index * KEYS, KEYS)
        k, v = k_ref[block, :], v_ref[block, :]
        slots = index * KEYS + jax.lax.broadcasted_iota(jnp.int32, (ROWS, KEYS), 1)
        seen = (slots >= first[:, None]) & (slots < last[:, None])
        scores = jnp.where(seen, dot(q.astype(k.dtype), k.T), HIDDEN)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
        old = jnp.exp(top - new_top)
        return (new_top, whole * old + jnp.sum(weights, axis=1),
                mixed * old[:, None] + dot(weights.astype(v.dtype), v))

    empty = (jnp.full((ROWS,), HIDDEN, jnp.float32), jnp.zeros((ROWS,), jnp.float32),
             jnp.zeros(q.shape, jnp.float32))
    blocks = (jnp.max(last) + KEYS - 1) // KEYS
    _, whole, mixed = jax.lax.fori_loop(0, blocks, body, empty)
    out_ref[...] = mixed / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny)[:, None]


def pallas_refusal(device: Device) -> str:
    """Return why the kernel cannot run here, or ''."""
    if device.platform != 'gpu' or device.capability < SMALLEST_CAPABILITY:
        return (f'{device.platform} of compute capability {device.capability:g}, expected an '
                f'NVIDIA GPU of at least {SMALLEST_CAPABILITY:g}')
    return jax_refusal()
