"""Attention of a few new tokens on a cache, with rotary embedding and the new keys' way into it.

One kernel over blocks of the cache, whose partial softmaxes (FlashDecoding's method) a second one
merges.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.chain import call
from ros_pi0_fast.accel.kernels.few_product import TOKENS, Halves, load
from ros_pi0_fast.accel.kernels.norms import row_outputs, store_row

SLOTS = 64
"""Slots of the cache that a program attends to."""
HIDDEN = -1e30


def attend_cache(projected: jax.Array, k: jax.Array, v: jax.Array, cos: jax.Array, sin: jax.Array,
                 bounds: jax.Array, *, heads: int, halved: bool = False, interpret: bool = False,
                 ) -> tuple[jax.Array | Halves, jax.Array, jax.Array]:
    """Rotate t new tokens, write their keys and values to the cache, and attend to it.

    Args:
        projected: bfloat16 [t · (heads + 2), h]: of each token queries, key and value; t up to
            TOKENS.
        k: bfloat16 [s, h]: keys of the cache; the buffer is taken over.
        v: bfloat16 [s, h]: values, likewise.
        cos: float32 [t, h / 2]: of the rotary embedding.
        sin: float32 [t, h / 2]
        bounds: int32 [2]: first valid slot, and the one of the first new token.
        heads: Of queries.
        halved: Return the first as Halves, of a group a head.
        interpret: See few_product.

    Returns:
        bfloat16 [t, heads · h]; keys; values.
    """
    count, size = cos.shape[0], k.shape[1]
    # For each tile of queries, of as many as registers have room for, one program for each block
    # of slots, and one for the new tokens.
    blocks, queries = pl.cdiv(k.shape[0], SLOTS) + 1, count * heads
    tiles = pl.cdiv(queries, TOKENS)
    whole = lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)  # noqa: E731
    block = pl.BlockSpec((SLOTS, size), lambda i: (jnp.minimum(i // tiles, blocks - 2), 0))
    tile = pl.BlockSpec((None, TOKENS), lambda i: (i // tiles, i % tiles))
    padded = tiles * TOKENS
    mixed, top, total, k, v = call(
        functools.partial(_attend_kernel, count=count, heads=heads, blocks=blocks, tiles=tiles),
        programs=blocks * tiles,
        in_specs=[whole(projected), block, block, whole(cos), whole(sin), whole(bounds)],
        out_specs=[pl.BlockSpec((None, TOKENS, size), lambda i: (i // tiles, i % tiles, 0)),
                   tile, tile, whole(k), whole(v)],
        out_shape=[jax.ShapeDtypeStruct((blocks, padded, size), jnp.float32),
                   jax.ShapeDtypeStruct((blocks, padded), jnp.float32),
                   jax.ShapeDtypeStruct((blocks, padded), jnp.float32),
                   jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        input_output_aliases={1: 3, 2: 4}, warps=8, name='attend_cache',
        interpret=interpret)(projected, k, v, cos, sin, bounds)
    shapes, specs = row_outputs((queries, size), k.dtype,
                             pl.BlockSpec((None, size), lambda i: (i, 0)), halved)
    merged = call(
        functools.partial(_merge_kernel, blocks=blocks), programs=queries,
        in_specs=[pl.BlockSpec((blocks, None, size), lambda i: (0, i, 0)),
                  pl.BlockSpec((blocks, None), lambda i: (0, i)),
                  pl.BlockSpec((blocks, None), lambda i: (0, i))],
        out_specs=specs, out_shape=shapes, warps=4, name='merge_attention',
        interpret=interpret)(mixed, top, total)
    merged = [x.reshape(count, -1) for x in merged]
    return Halves(*merged) if halved else merged[0], k, v


def _attend_kernel(index, projected_ref, k_ref, v_ref, cos_ref, sin_ref, bounds_ref, mixed_ref,
                   top_ref, total_ref, k_out_ref, v_out_ref, *, count: int, heads: int,
                   blocks: int, tiles: int) -> None:
    """A tile of queries, and one block of slots or the new tokens. projected: see attend_cache;
    k, v [SLOTS, h]; mixed [TOKENS, h]; top, total [TOKENS]; k_out, v_out: the whole cache."""
    size = k_ref.shape[1]
    half = size // 2
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    here, tile = index // tiles, index % tiles
    first, end = bounds_ref[0], bounds_ref[1]

    def part(index: jax.Array, mask: jax.Array, at: int, length: int) -> jax.Array:
        return load(_table(projected_ref, index, at, length), mask[:, None]).astype(jnp.float32)

    def rotated(index: jax.Array, token: jax.Array, mask: jax.Array, by: float) -> tuple:
        one, two = part(index, mask, 0, half), part(index, mask, half, half)
        cos, sin = (load(_table(ref, token, 0, half), mask[:, None])
                    for ref in (cos_ref, sin_ref))
        return tuple((by * x).astype(k_ref.dtype)
                     for x in (one * cos - two * sin, two * cos + one * sin))

    row = tile * TOKENS + jnp.arange(TOKENS, dtype=jnp.int32)
    there, token = row < count * heads, row // heads
    queries = rotated(token * (heads + 2) + row % heads, token, there, size ** -0.5)

    def attend_to(keys: tuple, values: jax.Array, seen: jax.Array) -> tuple:
        """Return mixed values, largest score and sum of exponentials, where it is seen."""
        scores = sum(dot(q, key.T) for q, key in zip(queries, keys, strict=True))
        scores = jnp.where(seen, scores, HIDDEN)
        top = jnp.max(scores, axis=1)
        weights = jnp.where(seen, jnp.exp(scores - top[:, None]), 0.0)
        return dot(weights.astype(values.dtype), values), top, jnp.sum(weights, axis=1)

    def old() -> tuple:
        slots = here * SLOTS + jnp.arange(SLOTS, dtype=jnp.int32)
        seen = (slots >= first) & (slots < end)
        keys = tuple(load(k_ref.at[:, pl.ds(i * half, half)], seen[:, None]) for i in (0, 1))
        values = load(v_ref.at[:, pl.ds(0, size)], seen[:, None])
        return attend_to(keys, values, jnp.broadcast_to(seen[None], (TOKENS, SLOTS)))

    def fresh() -> tuple:
        new = jnp.arange(TOKENS, dtype=jnp.int32)
        is_new, at = new < count, new * (heads + 2) + heads
        keys = rotated(at, new, is_new, 1.0)
        values = part(at + 1, is_new, 0, size).astype(v_ref.dtype)
        written = is_new & (tile == 0)
        slots = jnp.where(written, end + new, k_out_ref.shape[0])  # Masked, and beyond the end.
        for ref, at, x in ((k_out_ref, 0, keys[0]), (k_out_ref, half, keys[1]),
                           (v_out_ref, 0, values)):
            plgpu.store(_table(ref, slots, at, x.shape[1]), x, mask=written[:, None])
        return attend_to(keys, values, (new[None] <= token[:, None]) & is_new[None])

    mixed, top, total = jax.lax.cond(here < blocks - 1, old, fresh)
    plgpu.store(mixed_ref.at[:, :], mixed, mask=there[:, None])
    plgpu.store(top_ref.at[:], top, mask=there)
    plgpu.store(total_ref.at[:], total, mask=there)


def _table(ref: Any, index: jax.Array, at: int, length: int) -> Any:
    """Return `length` columns from one on of the rows of a reference that an index names."""
    column = at + jax.lax.broadcasted_iota(jnp.int32, (index.shape[0], length), 1)
    return ref.at[jnp.broadcast_to(index[:, None], column.shape), column]


def _merge_kernel(_, mixed_ref, top_ref, total_ref, *out_refs, blocks: int) -> None:
    """One query. mixed [blocks, h]; top, total [blocks]; out [h], or its Halves."""
    index = jnp.arange(1 << (blocks - 1).bit_length(), dtype=jnp.int32)
    there = index < blocks
    top = jnp.where(there, load(top_ref.at[index], there), HIDDEN)
    weight = jnp.where(there, jnp.exp(top - jnp.max(top)), 0.0)
    total = jnp.sum(weight * load(total_ref.at[index], there))
    mixed = load(_table(mixed_ref, index, 0, out_refs[0].shape[0]), there[:, None])
    store_row(jnp.sum(weight[:, None] * mixed, axis=0) / total, out_refs)
