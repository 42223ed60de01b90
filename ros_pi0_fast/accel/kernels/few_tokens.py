"""A decoder layer for a few tokens in seven to nine kernels, where a compiler makes twenty-five.

Lossless with bfloat16; weights of integers see activations that are rounded: see few_product.

At batch one a kernel that reads no weights takes as long to start as a small product takes to
read its own, so the gate is computed by the products that make it, sums by the norm that follows,
and rotary embedding, the new keys' way into the cache and attention are one kernel over blocks of
the cache, whose partial softmaxes (FlashDecoding's method) a second one merges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

import ros_pi0_fast.accel.kernels.by_rows  # noqa: F401  (registers products)
from ros_pi0_fast.accel.kernels.chain import call
from ros_pi0_fast.accel.kernels.few_product import (
    GROUP,
    TOKENS,
    Halves,
    few_fit,
    few_product,
    halve,
    load,
)
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.matrices import Matrices
from ros_pi0_fast.model.attention import Attend
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.gemma import MAX_WAVELENGTH, NORM_EPSILON, Attention, Block, Tokens
from ros_pi0_fast.model.layers import Params

HEAD = 256
"""Size of a head that activations are halved by: all of Gemma's, and a step of the product."""
SLOTS = 64
"""Slots of the cache that a program attends to."""
ADD_WARPS = 16
"""Of a program that adds up what was split, and norms it."""
HIDDEN = -1e30


@flax.struct.dataclass
class Sum:
    """What a layer returns: the norm that follows adds it up. Only a kernel of these may read it
    (see chain)."""

    x: jax.Array
    """bfloat16 [t, d]"""
    parts: jax.Array
    """float32 [splits, t, d] or bfloat16 [t, d]: of a product."""

    def whole(self, interpret: bool = False) -> jax.Array:
        """Return it added up, [1, t, d]."""
        gain = jnp.zeros(self.x.shape[1:], self.x.dtype)
        return add_and_norm(self, gain, False, interpret, leads=False)[0][None]


@dataclass(frozen=True)
class FewTokensBlock:
    """In the place of model.gemma.Block; what the kernels are not for is left to that one."""

    config: GemmaConfig
    attend: Attend
    interpret: bool = False
    """Run the kernels' operations one by one on any device, to test them."""

    def apply(self, variables: Params, x: jax.Array | Sum, tokens: Tokens,
              cache: LayerCache | None) -> tuple[jax.Array | Sum, LayerCache | None]:
        """Transform tokens: see model.gemma.Block."""
        weights = variables['params']
        if not self.fits(weights, x, tokens):
            x = x.whole(self.interpret) if isinstance(x, Sum) else x
            return Block(self.config, self.attend).apply(variables, x, tokens, cache)
        attn, mlp = weights['attn'], weights['mlp']
        halved = mlp['linear'].parts[0].bits < 16
        with jax.named_scope('attention'):
            gain, own = weights['pre_attention_norm']['scale'], type(cache) is LayerCache
            if isinstance(x, Sum):
                x, normed = add_and_norm(x, gain, halved and own, self.interpret, leads=own)
            else:
                x, normed = x[0], norm(x[0], gain, halved and own, self.interpret, leads=own)
            if own:
                mixed, cache = self._attend(attn, normed, tokens, cache, halved)
                y = few_product(attn['attn_vec_einsum']['w'].parts, mixed, whole=False,
                                leads=True, interpret=self.interpret)
            else:
                mixed, cache = Attention(self.config, self.attend).apply(
                    {'params': attn}, normed[None], tokens, cache)
                y = mixed[0]
        with jax.named_scope('feed_forward'):
            y, normed = add_and_norm(Sum(x, y), weights['pre_ffw_norm']['scale'], halved,
                                     self.interpret)
            hidden = few_product(mlp['gating_einsum'].parts, normed, gate=True, leads=True,
                                 interpret=self.interpret)
            return Sum(y, few_product(
                mlp['linear'].parts, halves(hidden, self.interpret) if halved else hidden,
                whole=False, leads=True, interpret=self.interpret)), cache

    def finish(self, x: jax.Array | Sum, norm: Params) -> jax.Array:
        """Return the norm of what the last layer returned: see model.gemma.Block."""
        if not isinstance(x, Sum):
            return Block.finish(x, norm)
        return add_and_norm(x, norm['scale'], False, self.interpret, leads=False)[1][None]

    def fits(self, weights: Params, x: jax.Array | Sum, tokens: Tokens) -> bool:
        """Tell whether the kernels are for these weights and tokens."""
        c = self.config
        x = x.x[None] if isinstance(x, Sum) else x
        few = (tokens.slot is not None and x.shape[0] == 1 and x.shape[1] <= TOKENS
               and x.dtype == jnp.bfloat16)
        sizes = (c.num_kv_heads == 1 and c.head_dim in (64, 128, 256)
                 and not c.width & (c.width - 1))
        stored = [leaf for leaf in jax.tree.leaves(weights, is_leaf=_is_matrices)
                  if _is_matrices(leaf)]
        parts = [part for leaf in stored for part in leaf.parts]
        if not (few and sizes and len(stored) == 5 and all(
                isinstance(part, Rows) and few_fit(part) and part.outputs == len(part.values)
                and part.inputs == part.columns for part in parts)):
            return False
        # Activations are halved by heads and groups of GROUP.
        halved = c.head_dim == HEAD and not c.mlp_dim & (c.mlp_dim - 1)
        bits = {part.bits for part in parts}
        return bits == {16} or (len(bits) == 1 and halved)

    def _attend(self, attn: Params, normed: jax.Array | Halves, tokens: Tokens, cache: LayerCache,
                halved: bool) -> tuple[jax.Array | Halves, LayerCache]:
        size = self.config.head_dim
        projected = few_product(
            (*attn['q_einsum']['w'].parts, *attn['kv_einsum']['w'].parts), normed, leads=True,
            interpret=self.interpret)
        half = size // 2
        exponents = (2.0 / size) * jnp.arange(half, dtype=jnp.float32)
        radians = (tokens.positions[0, :, None].astype(jnp.float32)
                   / MAX_WAVELENGTH ** exponents)
        first = jnp.zeros_like(tokens.slot) if tokens.visible.start is None else (
            tokens.visible.start)
        mixed, k, v = attend_cache(
            projected.reshape(-1, size), cache.k[0, :, 0], cache.v[0, :, 0],
            jnp.cos(radians), jnp.sin(radians), jnp.concatenate([first, tokens.slot]),
            heads=self.config.num_heads, halved=halved, interpret=self.interpret)
        return mixed, LayerCache(k=k[None, :, None], v=v[None, :, None])


def _is_matrices(leaf: object) -> bool:
    return isinstance(leaf, Matrices)


def norm(x: jax.Array, gain: jax.Array, halved: bool = False, interpret: bool = False,
         leads: bool = True) -> jax.Array | Halves:
    """Return the RMS norm of x [t, d], as Halves if asked to: see model.gemma.RMSNorm, chain."""
    return _by_rows(_norm_kernel, 'rms_norm', halved, interpret, x, gain, leads=leads)


def add_and_norm(x: Sum, gain: jax.Array, halved: bool, interpret: bool, leads: bool = True,
                 ) -> tuple[jax.Array, jax.Array | Halves]:
    """Return a sum, bfloat16 [t, d], and its norm: see norm."""
    row = pl.BlockSpec((None, x.x.shape[1]), lambda i: (i, 0))
    shapes, specs = _outputs(x.x.shape, x.x.dtype, row, halved)
    parts = x.parts if x.parts.ndim == 3 else x.parts[None]
    y, *out = call(
        _add_and_norm_kernel, programs=x.x.shape[0],
        in_specs=[pl.BlockSpec((len(parts), None, x.x.shape[1]), lambda i: (0, i, 0)), row,
                  pl.BlockSpec(gain.shape, lambda i: (0,))],
        out_specs=[row, *specs],
        out_shape=[jax.ShapeDtypeStruct(x.x.shape, x.x.dtype), *shapes],
        warps=ADD_WARPS, name='add_and_norm', interpret=interpret, leads=leads)(
            parts, x.x, gain)
    return y, Halves(*out) if halved else out[0]


def halves(x: jax.Array, interpret: bool = False) -> Halves:
    """Return Halves of x [t, d], of groups of GROUP."""
    found = _by_rows(_halve_kernel, 'halve', True, interpret,
                     x.reshape(-1, min(GROUP, x.shape[1])))
    return jax.tree.map(lambda leaf: leaf.reshape(len(x), -1), found)


def _by_rows(kernel: Callable, name: str, halved: bool, interpret: bool, x: jax.Array,
             *gain: jax.Array, leads: bool = True) -> jax.Array | Halves:
    """Run a kernel for each row of x [t, d]."""
    row = pl.BlockSpec((None, x.shape[1]), lambda i: (i, 0))
    shapes, specs = _outputs(x.shape, x.dtype, row, halved)
    out = call(kernel, programs=x.shape[0],
               in_specs=[row, *(pl.BlockSpec(g.shape, lambda i: (0,)) for g in gain)],
               out_specs=specs, out_shape=shapes, warps=4, name=name, interpret=interpret,
               leads=leads)(x, *gain)
    return Halves(*out) if halved else out[0]


def _outputs(shape: tuple[int, int], dtype: jnp.dtype, row: pl.BlockSpec, halved: bool,
             ) -> tuple[list[jax.ShapeDtypeStruct], list[pl.BlockSpec]]:
    """Return shapes and blocks of a kernel's rows [n, d], or of their Halves."""
    if not halved:
        return [jax.ShapeDtypeStruct(shape, dtype)], [row]
    half = jax.ShapeDtypeStruct(shape, jnp.int8)
    return ([half, half, jax.ShapeDtypeStruct((shape[0], 1), jnp.float32)],
            [row, row, pl.BlockSpec((None, 1), lambda i: (i, 0))])


def _store(x: jax.Array, out_refs: Sequence) -> None:
    """Store float32 [d] as it is, or as Halves."""
    if len(out_refs) == 1:
        out_refs[0][...] = x.astype(out_refs[0].dtype)
    else:
        for ref, own in zip(out_refs, halve(x), strict=True):
            ref[...] = own


def _norm_kernel(_, x_ref, gain_ref, *out_refs) -> None:
    """One token; all [d]."""
    _store_norm(x_ref[...], gain_ref, out_refs)


def _add_and_norm_kernel(_, parts_ref, x_ref, gain_ref, y_ref, *out_refs) -> None:
    """One token. parts [splits, d]; all others [d]."""
    found = sum(parts_ref[i, :] for i in range(parts_ref.shape[0]))
    y = x_ref[...] + found.astype(x_ref.dtype)
    y_ref[...] = y
    _store_norm(y, gain_ref, out_refs)


def _store_norm(x: jax.Array, gain_ref: Any, out_refs: Sequence) -> None:
    wide = x.astype(jnp.float32)
    scale = 1 / jnp.sqrt(jnp.mean(wide * wide) + NORM_EPSILON)
    gain = (1 + gain_ref[...]).astype(jnp.float32)
    _store(wide * scale * gain, out_refs)


def _halve_kernel(_, x_ref, *out_refs) -> None:
    """One token; all [d]."""
    _store(x_ref[...].astype(jnp.float32), out_refs)


# --- attention ---------------------------------------------------------------------------------


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
    shapes, specs = _outputs((queries, size), k.dtype,
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
    _store(jnp.sum(weight[:, None] * mixed, axis=0) / total, out_refs)
