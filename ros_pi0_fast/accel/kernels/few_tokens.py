"""A decoder layer for a few tokens in six kernels, where a compiler makes twenty-five. Lossless.

At batch one a kernel that reads no weights takes as long to start as a small product takes to
read its own, so the norms are computed by the products that read them, the gate by the product
that makes it, and rotary embedding, the new keys' way into the cache and attention are one kernel
over blocks of the cache, whose partial softmaxes (FlashDecoding's method) a second one merges.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.rows import (
    MOST_TOKENS,
    OUTPUTS,
    TOKENS,
    Rows,
    Tiling,
    accumulate,
    load,
    partial_sums,
    rows_specs,
    token_mask,
)
from ros_pi0_fast.accel.matrices import Matrices
from ros_pi0_fast.model.attention import Attend
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.gemma import (
    MAX_WAVELENGTH,
    NORM_EPSILON,
    Attention,
    Block,
    RMSNorm,
    Tokens,
)
from ros_pi0_fast.model.layers import Params

NORM_INPUTS = 256
"""Inputs of a step in which a norm is measured."""
SLOTS = 64
"""Slots of the cache that a program attends to."""
HIDDEN = -1e30


@dataclass(frozen=True)
class FewTokensBlock:
    """In the place of model.gemma.Block; what the kernels are not for is left to that one."""

    config: GemmaConfig
    attend: Attend
    interpret: bool = False
    """Run the kernels' operations one by one on any device, to test them."""

    def apply(self, variables: Params, x: jax.Array, tokens: Tokens, cache: LayerCache | None,
              ) -> tuple[jax.Array, LayerCache | None]:
        """Transform tokens: see model.gemma.Block."""
        weights = variables['params']
        if not self._fits(weights, x, tokens):
            return Block(self.config, self.attend).apply(variables, x, tokens, cache)
        with jax.named_scope('attention'):
            if type(cache) is LayerCache:
                mixed, cache = self._attend(weights, x[0], tokens, cache)
            else:
                mixed, cache = Attention(self.config, self.attend).apply(
                    {'params': weights['attn']}, RMSNorm().apply(
                        {'params': weights['pre_attention_norm']}, x), tokens, cache)
                mixed = mixed[0]
            y = x[0] + mixed
        with jax.named_scope('feed_forward'):
            gate, up = weights['mlp']['gating_einsum'].parts
            hidden = norm_product(y, weights['pre_ffw_norm']['scale'], (gate, up), gated=True,
                                  interpret=self.interpret)[0]
            return (y + self._product(weights['mlp']['linear'], hidden))[None], cache

    def _fits(self, weights: Params, x: jax.Array, tokens: Tokens) -> bool:
        """Tell whether the kernels are for these weights and tokens."""
        c = self.config
        few = (tokens.slot is not None and x.shape[0] == 1 and x.shape[1] <= MOST_TOKENS
               and x.dtype == jnp.bfloat16)
        sizes = (c.num_kv_heads == 1 and c.head_dim in (64, 128, 256) and c.width % NORM_INPUTS == 0
                 and c.mlp_dim % OUTPUTS == 0)
        linear = weights['mlp']['linear']
        return few and sizes and isinstance(linear, Matrices) and isinstance(linear.parts[0], Rows)

    def _product(self, w: Matrices, x: jax.Array) -> jax.Array:
        sums = partial_sums(w.parts[0], x, interpret=self.interpret)
        return jnp.sum(sums, axis=0).astype(x.dtype)

    def _attend(self, weights: Params, x: jax.Array, tokens: Tokens, cache: LayerCache,
                ) -> tuple[jax.Array, LayerCache]:
        attn, size = weights['attn'], self.config.head_dim
        parts = (*attn['q_einsum']['w'].parts, *attn['kv_einsum']['w'].parts)
        sums = norm_product(x, weights['pre_attention_norm']['scale'], parts,
                            interpret=self.interpret)
        half = size // 2
        exponents = (2.0 / size) * jnp.arange(half, dtype=jnp.float32)
        radians = (tokens.positions[0, :, None].astype(jnp.float32)
                   / MAX_WAVELENGTH ** exponents)
        first = jnp.zeros_like(tokens.slot) if tokens.visible.start is None else (
            tokens.visible.start)
        mixed, k, v = attend_cache(
            sums.reshape(sums.shape[0], -1, size), cache.k[0, :, 0], cache.v[0, :, 0],
            jnp.cos(radians), jnp.sin(radians), jnp.concatenate([first, tokens.slot]),
            heads=self.config.num_heads, interpret=self.interpret)
        cache = LayerCache(k=k[None, :, None], v=v[None, :, None])
        return self._product(attn['attn_vec_einsum']['w'], mixed), cache


# --- norm and product --------------------------------------------------------------------------


def norm_product(x: jax.Array, gain: jax.Array, parts: tuple[Rows, ...], *, gated: bool = False,
                 interpret: bool = False) -> jax.Array:
    """Return the RMS norm of x times matrices.

    Args:
        x: bfloat16 [t, d].
        gain: [d]: of the norm; see model.gemma.RMSNorm.
        parts: Matrices [d, out], of the same kind.
        gated: Return gelu(first) · second, bfloat16 [1, t, out]. Else all products side by side,
            float32 [splits, t, sum of out]: to be added up over splits.
        interpret: See partial_sums.
    """
    count, width = x.shape
    most = max(parts, key=lambda w: w.outputs)
    tile = Tiling.of(most, count)
    # Shared memory holds the stages of each matrix: of all branches, or of both factors.
    tile = replace(tile, stages=3, splits=1 if gated else tile.splits)
    offsets = [0]
    for w in parts:
        offsets.append(offsets[-1] + (0 if gated else w.outputs // tile.outputs))
    programs = parts[0].outputs // tile.outputs if gated else offsets[-1]
    arrays, specs = [], []
    for w, offset in zip(parts, offsets, strict=False):
        own, own_specs = rows_specs(w, tile)
        arrays.append(own)
        specs.append([spec and _moved(spec, offset, w.outputs // tile.outputs)
                      for spec in own_specs])
    kernel = functools.partial(
        _norm_kernel, tile=tile, count=count, offsets=None if gated else tuple(offsets),
        group_size=0 if most.groups is None else most.group_size)
    return pl.pallas_call(
        kernel, grid=(1, programs, tile.splits),
        in_specs=[pl.BlockSpec((TOKENS, width), lambda i, j, k: (0, 0)),
                  pl.BlockSpec((width,), lambda i, j, k: (0,)), specs],
        out_specs=pl.BlockSpec((None, TOKENS, tile.outputs), lambda i, j, k: (k, 0, j)),
        out_shape=jax.ShapeDtypeStruct((tile.splits, count, programs * tile.outputs),
                                       x.dtype if gated else jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name='gated_product' if gated else 'norm_product', interpret=interpret)(x, gain, arrays)


def _moved(spec: pl.BlockSpec, offset: int, programs: int) -> pl.BlockSpec:
    """Return how programs from `offset` on see the blocks of a matrix; others see any."""
    def index(i: jax.Array, j: jax.Array, k: jax.Array) -> tuple:
        return spec.index_map(i, jnp.clip(j - offset, 0, programs - 1), k)

    return pl.BlockSpec(spec.block_shape, index)


def _norm_kernel(x_ref, gain_ref, part_refs, out_ref, *, tile: Tiling, count: int,
                 offsets: tuple[int, ...] | None, group_size: int) -> None:
    """x [TOKENS, d], gain [d], parts: see rows._kernel, out [TOKENS, outputs]."""
    width = gain_ref.shape[0]
    mask = token_mask(0, count, TOKENS)

    def square(step: jax.Array, total: jax.Array) -> jax.Array:
        part = load(x_ref.at[:, pl.ds(step * NORM_INPUTS, NORM_INPUTS)], mask)
        part = part.astype(jnp.float32)
        return total + jnp.sum(part * part, axis=1)

    total = jax.lax.fori_loop(0, width // NORM_INPUTS, square, jnp.zeros((TOKENS,), jnp.float32))
    scale = 1 / jnp.sqrt(total / width + NORM_EPSILON)

    def tokens(at: jax.Array, size: int) -> jax.Array:
        gain = (1 + gain_ref[pl.ds(at, size)]).astype(jnp.float32)
        raw = load(x_ref.at[:, pl.ds(at, size)], mask).astype(jnp.float32)
        return (raw * scale[:, None] * gain[None]).astype(jnp.bfloat16)

    steps = width // tile.inputs // tile.splits
    begin = pl.program_id(2) * steps

    def products(*parts: tuple) -> list[jax.Array]:
        def body(step: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            at = (begin + step) * tile.inputs
            return [accumulate(one, (values, groups), at, tile, tokens, group_size)
                    for one, (values, _, groups) in zip(sums, parts, strict=True)]

        sums = [jnp.zeros((tile.outputs, TOKENS), jnp.float32)] * len(parts)
        sums = jax.lax.fori_loop(0, steps, body, sums)
        return [one if unit is None else one * unit[...][:, None]
                for one, (_, unit, _) in zip(sums, parts, strict=True)]

    if offsets is None:
        gate, up = products(*part_refs)
        result = jax.nn.gelu(gate.astype(jnp.bfloat16).astype(jnp.float32)) * up
    else:
        result = _of_program(pl.program_id(1), part_refs, offsets, products)
    plgpu.store(out_ref.at[:, :], result.T.astype(out_ref.dtype), mask=mask)


def _of_program(program: jax.Array, part_refs: tuple, offsets: tuple[int, ...],
                products: Any) -> jax.Array:
    """Return the product of the one matrix that the program is for."""
    first, *rest = part_refs
    if not rest:
        return products(first)[0]
    return jax.lax.cond(program < offsets[1], lambda: products(first)[0],
                        lambda: _of_program(program, tuple(rest), offsets[1:], products))


# --- attention ---------------------------------------------------------------------------------


def attend_cache(sums: jax.Array, k: jax.Array, v: jax.Array, cos: jax.Array, sin: jax.Array,
                 bounds: jax.Array, *, heads: int, interpret: bool = False,
                 ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotate t new tokens, write their keys and values to the cache, and attend to it.

    Args:
        sums: float32 [splits, t · (heads + 2), h]: of each token queries, key and value, to be
            added up over splits.
        k: bfloat16 [s, h]: keys of the cache; the buffer is taken over.
        v: bfloat16 [s, h]: values, likewise.
        cos: float32 [t, h / 2]: of the rotary embedding.
        sin: float32 [t, h / 2]
        bounds: int32 [2]: first valid slot, and the one of the first new token.
        heads: Of queries.
        interpret: See partial_sums.

    Returns:
        bfloat16 [t, heads · h]; keys; values.
    """
    count, size = cos.shape[0], k.shape[1]
    blocks, queries = pl.cdiv(k.shape[0], SLOTS), count * heads
    rows = max(16, 1 << (queries - 1).bit_length())
    whole = lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)  # noqa: E731
    block = pl.BlockSpec((SLOTS, size), lambda i: (i, 0))
    kernel = functools.partial(_attend_kernel, count=count, heads=heads, rows=rows)
    mixed, top, total, k, v = pl.pallas_call(
        kernel, grid=(blocks,),
        in_specs=[whole(sums), block, block, whole(cos), whole(sin), whole(bounds)],
        out_specs=[pl.BlockSpec((None, queries, size), lambda i: (i, 0, 0)),
                   pl.BlockSpec((None, queries), lambda i: (i, 0)),
                   pl.BlockSpec((None, queries), lambda i: (i, 0)), whole(k), whole(v)],
        out_shape=[jax.ShapeDtypeStruct((blocks, queries, size), jnp.float32),
                   jax.ShapeDtypeStruct((blocks, queries), jnp.float32),
                   jax.ShapeDtypeStruct((blocks, queries), jnp.float32),
                   jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        input_output_aliases={1: 3, 2: 4},
        compiler_params=plgpu.CompilerParams(num_warps=4 if rows <= 32 else 8, num_stages=1),
        name='attend_cache', interpret=interpret)(sums, k, v, cos, sin, bounds)
    merged = pl.pallas_call(
        functools.partial(_merge_kernel, blocks=blocks), grid=(queries,),
        in_specs=[pl.BlockSpec((blocks, None, size), lambda i: (0, i, 0)),
                  pl.BlockSpec((blocks, None), lambda i: (0, i)),
                  pl.BlockSpec((blocks, None), lambda i: (0, i))],
        out_specs=pl.BlockSpec((None, size), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((queries, size), k.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        name='merge_attention', interpret=interpret)(mixed, top, total)
    return merged.reshape(count, heads * size), k, v


def _attend_kernel(sums_ref, k_ref, v_ref, cos_ref, sin_ref, bounds_ref, mixed_ref, top_ref,
                   total_ref, k_out_ref, v_out_ref, *, count: int, heads: int, rows: int) -> None:
    """One block of slots. sums: see attend_cache; k, v [SLOTS, h]; mixed [queries, h]; top, total
    [queries]; k_out, v_out: the whole cache."""
    size = k_ref.shape[1]
    half = size // 2
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    here = pl.program_id(0)
    first, end = bounds_ref[0], bounds_ref[1]

    def added(index: jax.Array, mask: jax.Array, at: int, length: int) -> jax.Array:
        total = jnp.zeros((index.shape[0], length), jnp.float32)
        for split in range(sums_ref.shape[0]):
            total += load(_table(sums_ref, index, at, length, split), mask[:, None])
        return total.astype(k_ref.dtype).astype(jnp.float32)

    def rotated(index: jax.Array, token: jax.Array, mask: jax.Array, by: float) -> tuple:
        one, two = added(index, mask, 0, half), added(index, mask, half, half)
        cos, sin = (load(_table(ref, token, 0, half), mask[:, None])
                    for ref in (cos_ref, sin_ref))
        return tuple((by * x).astype(k_ref.dtype)
                     for x in (one * cos - two * sin, two * cos + one * sin))

    row = jnp.arange(rows, dtype=jnp.int32)
    there, token = row < count * heads, row // heads
    queries = rotated(token * (heads + 2) + row % heads, token, there, size ** -0.5)
    new = jnp.arange(TOKENS, dtype=jnp.int32)
    is_new, at = new < count, new * (heads + 2) + heads
    keys = rotated(at, new, is_new, 1.0)
    values = added(at + 1, is_new, 0, size).astype(v_ref.dtype)

    @pl.when(here == 0)
    def _() -> None:
        slots = jnp.where(is_new, end + new, k_out_ref.shape[0])  # Masked, and beyond the end.
        plgpu.store(_table(k_out_ref, slots, 0, half), keys[0], mask=is_new[:, None])
        plgpu.store(_table(k_out_ref, slots, half, half), keys[1], mask=is_new[:, None])
        plgpu.store(_table(v_out_ref, slots, 0, size), values, mask=is_new[:, None])

    slots = here * SLOTS + jnp.arange(SLOTS, dtype=jnp.int32)
    old = (slots >= first) & (slots < end)
    scores = sum(dot(q, load(k_ref.at[:, pl.ds(i * half, half)], old[:, None]).T)
                 for i, q in enumerate(queries))
    scores = jnp.where(old[None], scores, HIDDEN)
    seen = (new[None] <= token[:, None]) & is_new[None] & (here == 0)
    fresh = jnp.where(seen, sum(dot(q, key.T) for q, key in zip(queries, keys, strict=True)),
                      HIDDEN)
    top = jnp.maximum(jnp.max(scores, axis=1), jnp.max(fresh, axis=1))
    scores = jnp.where(old[None], jnp.exp(scores - top[:, None]), 0.0)
    fresh = jnp.where(seen, jnp.exp(fresh - top[:, None]), 0.0)
    block = load(v_ref.at[:, pl.ds(0, size)], old[:, None])
    mixed = dot(scores.astype(block.dtype), block) + dot(fresh.astype(block.dtype), values)
    plgpu.store(mixed_ref.at[pl.ds(0, rows), :], mixed, mask=there[:, None])
    plgpu.store(top_ref.at[pl.ds(0, rows)], top, mask=there)
    plgpu.store(total_ref.at[pl.ds(0, rows)], jnp.sum(scores, axis=1) + jnp.sum(fresh, axis=1),
                mask=there)


def _table(ref: Any, index: jax.Array, at: int, length: int, *before: int) -> Any:
    """Return `length` columns from one on of the rows of a reference that an index names.

    Args:
        ref: The reference.
        index: int32 [n]
        at: First column.
        length: Columns.
        before: Indices of the axes before the rows'.
    """
    column = at + jax.lax.broadcasted_iota(jnp.int32, (index.shape[0], length), 1)
    return ref.at[(*before, jnp.broadcast_to(index[:, None], column.shape), column)]


def _merge_kernel(mixed_ref, top_ref, total_ref, out_ref, *, blocks: int) -> None:
    """One query. mixed [blocks, h]; top, total [blocks]; out [h]."""
    index = jnp.arange(1 << (blocks - 1).bit_length(), dtype=jnp.int32)
    there = index < blocks
    top = jnp.where(there, load(top_ref.at[index], there), HIDDEN)
    weight = jnp.where(there, jnp.exp(top - jnp.max(top)), 0.0)
    total = jnp.sum(weight * load(total_ref.at[index], there))
    mixed = load(_table(mixed_ref, index, 0, out_ref.shape[0]), there[:, None])
    out_ref[...] = (jnp.sum(weight[:, None] * mixed, axis=0) / total).astype(out_ref.dtype)
