"""Attention block by block, without ever building the matrix of scores. Lossless up to rounding.

A softmax over blocks of keys keeps a running maximum and a running sum (Milakov and Gimelshein,
arXiv:1805.02867), so that a block of scores is used up while it is in the cache and the memory
does not grow with the product of both lengths; gradients recompute the blocks (FlashAttention,
Dao et al., arXiv:2205.14135). This one is plain XLA, for CPUs and for whatever has no kernel. The
loop over keys ends with the last one that is seen, so a step of decoding costs what the tokens
present cost, however large the cache is.
"""

from __future__ import annotations

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.model.attention import Fresh, Visible, slots_between, widen

KEY_BLOCK = 1024
"""Keys a block, where there are more."""
CACHE_BLOCK = 256
"""Keys a block of a cache that is read for a few new tokens."""
QUERY_ROWS = 1024
"""Rows of queries (tokens times heads) a block, where there are more."""
HIDDEN = -1e30


class DenseMaskError(ValueError):
    """Attention by blocks goes by lengths and cannot honour a dense mask."""


@flax.struct.dataclass
class Bounds:
    """Which slots each row of queries sees: [first, last), int32 [b, r]."""

    first: jax.Array
    last: jax.Array


@flax.struct.dataclass
class _Sums:
    """What a row knows after some blocks; float32."""

    top: jax.Array
    """[b, m, r, 1]: largest score."""
    whole: jax.Array
    """[b, m, r, 1]: sum of exponentials relative to it."""
    mixed: jax.Array
    """[b, m, r, h]: values weighted by these exponentials."""


def flash(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
          score_dtype: jnp.dtype = jnp.float32, fresh: Fresh | None = None) -> jax.Array:
    """Attend by blocks: see model.attention.Attend. Scores and sums are in float32.

    Raises:
        DenseMaskError: `visible` is a dense mask.
    """
    del score_dtype  # No lower than float32.
    if visible is not None and visible.dense is not None:
        raise DenseMaskError('visible: a dense mask, expected ranges of slots (packed_prefix)')
    b, t, n, _ = q.shape
    group = n // k.shape[2]
    rows = to_rows(q, group)
    bounds = row_bounds(visible, b, t, k.shape[1], group)
    if fresh is None:
        mixed = _attend(rows, k, v, bounds)
    else:
        mixed = _attend_cache(rows, k, v, bounds, fresh, group)
    return to_tokens(mixed, t, group).astype(v.dtype)


def to_rows(q: jax.Array, group: int) -> jax.Array:
    """Bring queries [b, t, n, h] to rows [b, m, t · group, h] by the key-value head they use."""
    b, t, n, h = q.shape
    if group == n:  # One key-value head: the same memory.
        return q.reshape(b, 1, t * n, h)
    return q.reshape(b, t, n // group, group, h).swapaxes(1, 2).reshape(b, n // group, -1, h)


def to_tokens(rows: jax.Array, t: int, group: int) -> jax.Array:
    """Undo `to_rows`."""
    b, m, _, h = rows.shape
    if m == 1:
        return rows.reshape(b, t, group, h)
    return rows.reshape(b, m, t, group, h).swapaxes(1, 2).reshape(b, t, m * group, h)


def row_bounds(visible: Visible | None, b: int, t: int, s: int, group: int) -> Bounds:
    """Return what each row of `to_rows` sees of s slots."""
    if visible is None:
        zero = jnp.zeros((b, t * group), jnp.int32)
        return Bounds(first=zero, last=zero + s)
    last = jnp.repeat(jnp.broadcast_to(visible.end, (b, t)), group, axis=1)
    first = jnp.zeros_like(last) if visible.start is None else jnp.broadcast_to(
        visible.start[:, None], last.shape)
    return Bounds(first=first, last=last)


# --- a pass over keys ----------------------------------------------------------------------


def _empty(rows: jax.Array) -> _Sums:
    shape = (*rows.shape[:-1], 1)
    return _Sums(top=jnp.full(shape, HIDDEN, jnp.float32), whole=jnp.zeros(shape, jnp.float32),
                 mixed=jnp.zeros(rows.shape, jnp.float32))


def _scores(rows: jax.Array, k: jax.Array, seen: jax.Array) -> jax.Array:
    """Return float32 scores [b, m, r, s] of keys [b, s, m, h]; seen: bool [b, r, s]."""
    if k.shape[2] == 1:
        scores = jnp.einsum('brh,bsh->brs', rows[:, 0], k[:, :, 0].astype(rows.dtype),
                            preferred_element_type=jnp.float32)[:, None]
    else:
        scores = jnp.einsum('bmrh,bsmh->bmrs', rows, k.astype(rows.dtype),
                            preferred_element_type=jnp.float32)
    return jnp.where(seen[:, None], scores, HIDDEN)


def _weigh(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Return float32 weights [b, m, r, s] times values [b, s, m, h]: [b, m, r, h]."""
    weights = weights.astype(v.dtype)
    if v.shape[2] == 1:
        return jnp.einsum('brs,bsh->brh', weights[:, 0], v[:, :, 0],
                          preferred_element_type=jnp.float32)[:, None]
    return jnp.einsum('bmrs,bsmh->bmrh', weights, v, preferred_element_type=jnp.float32)


def _add(sums: _Sums, rows: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> _Sums:
    """Take another block of keys into account."""
    scores = _scores(rows, k, seen)
    top = jnp.maximum(sums.top, jnp.max(scores, axis=-1, keepdims=True))
    # A row that has seen nothing yet must not count what is hidden from it.
    weights = jnp.where(seen[:, None], jnp.exp(scores - top), 0.0)
    old = jnp.exp(sums.top - top)
    return _Sums(top=top, whole=sums.whole * old + jnp.sum(weights, axis=-1, keepdims=True),
                 mixed=sums.mixed * old + _weigh(weights, v))


def _blocks(s: int, block: int) -> tuple[int, int]:
    """Return the size of a block of s keys, and how many there are."""
    size = min(s, block)
    return size, math.ceil(s / size)


def _block_of(index: jax.Array, size: int, s: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return where block `index` is read from, its slots, and which of them are its own.

    The last block is moved back to end with the last key; what it shares with the one before is
    not its own.
    """
    start = jnp.minimum(index * size, s - size)
    slots = start + jnp.arange(size, dtype=jnp.int32)
    return start, slots, slots >= index * size


def _seen(bounds: Bounds, slots: jax.Array, own: jax.Array) -> jax.Array:
    """Return which rows see which slots: bool [b, r, size]."""
    return ((slots >= bounds.first[..., None]) & (slots < bounds.last[..., None]) & own)


def _pass(rows: jax.Array, k: jax.Array, v: jax.Array, bounds: Bounds, block: int,
          upto: jax.Array) -> _Sums:
    """Go over the blocks of keys that hold slots below `upto`, int32 []."""
    s = k.shape[1]
    size, count = _blocks(s, block)
    if count == 1:
        slots = jnp.arange(s, dtype=jnp.int32)
        return _add(_empty(rows), rows, widen(k), widen(v), _seen(bounds, slots, slots >= 0))

    def body(index: jax.Array, sums: _Sums) -> _Sums:
        start, slots, own = _block_of(index, size, s)
        part = [slots_between(x, start, size) for x in (k, v)]
        return _add(sums, rows, *part, _seen(bounds, slots, own))

    used = jnp.minimum((upto + size - 1) // size, count)
    return jax.lax.fori_loop(0, used, body, _empty(rows))


def _attend_cache(rows: jax.Array, k: jax.Array, v: jax.Array, bounds: Bounds, fresh: Fresh,
                  group: int) -> jax.Array:
    """Attend to a cache and to the new tokens that are not in it yet."""
    t = fresh.k.shape[1]
    before = bounds.replace(last=jnp.minimum(bounds.last, fresh.slot[:, None]))
    sums = _pass(rows, k, v, before, CACHE_BLOCK, jnp.max(before.last))
    slots = fresh.slot[:, None] + jnp.arange(t, dtype=jnp.int32)
    seen = ((slots[:, None] >= bounds.first[..., None])
            & (slots[:, None] < bounds.last[..., None]))
    sums = _add(sums, rows, fresh.k, fresh.v.astype(v.dtype), seen)
    return sums.mixed / sums.whole


# --- all keys at hand, with gradients --------------------------------------------------------


def _query_blocks(rows: jax.Array) -> tuple[int, int]:
    return _blocks(rows.shape[2], QUERY_ROWS)


def _split(x: jax.Array, axis: int, size: int, count: int) -> jax.Array:
    """Cut an axis into `count` blocks of `size`, padded, and bring the blocks to the front."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, size * count - x.shape[axis])
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1:]), axis, 0)


def _join(blocks: jax.Array, axis: int, length: int) -> jax.Array:
    """Undo `_split`."""
    x = jnp.moveaxis(blocks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2:])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


@jax.custom_vjp
def _attend(rows: jax.Array, k: jax.Array, v: jax.Array, bounds: Bounds) -> jax.Array:
    return _forward(rows, k, v, bounds)[0]


def _forward(rows: jax.Array, k: jax.Array, v: jax.Array, bounds: Bounds,
             ) -> tuple[jax.Array, tuple]:
    """Return float32 [b, m, r, h], and what the gradient needs."""
    size, count = _query_blocks(rows)

    def block(part: tuple[jax.Array, Bounds]) -> tuple[jax.Array, jax.Array]:
        some, some_bounds = part
        sums = _pass(some, k, v, some_bounds, KEY_BLOCK, jnp.max(some_bounds.last))
        whole = jnp.maximum(sums.whole, jnp.finfo(jnp.float32).tiny)  # Rows of padding see none.
        return sums.mixed / whole, sums.top + jnp.log(whole)

    if count == 1:
        mixed, log_sums = block((rows, bounds))
    else:
        parts = (_split(rows, 2, size, count),
                 jax.tree.map(lambda x: _split(x, 1, size, count), bounds))
        mixed, log_sums = (_join(x, 2, rows.shape[2]) for x in jax.lax.map(block, parts))
    return mixed, (rows, k, v, bounds, mixed, log_sums)


def _backward(kept: tuple, gradient: jax.Array) -> tuple:
    """Return the gradients of rows, k and v, recomputing scores block by block."""
    rows, k, v, bounds, mixed, log_sums = kept
    size, count = _query_blocks(rows)
    # The sum of each row's weights times their gradients.
    inner = jnp.sum(mixed * gradient, axis=-1, keepdims=True)
    parts = [_split(x, 2, size, count) for x in (rows, gradient, inner, log_sums)]
    split_bounds = jax.tree.map(lambda x: _split(x, 1, size, count), bounds)
    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (dk, dv), drows = jax.lax.scan(functools.partial(_backward_queries, k, v), zeros,
                                   (*parts, split_bounds))
    return (_join(drows, 2, rows.shape[2]).astype(rows.dtype), dk.astype(k.dtype),
            dv.astype(v.dtype), jax.tree.map(_no_gradient, bounds))


def _no_gradient(x: jax.Array) -> np.ndarray:
    return np.zeros(x.shape, jax.dtypes.float0)


def _backward_queries(k: jax.Array, v: jax.Array, sums: tuple[jax.Array, jax.Array],
                      part: tuple) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Add what a block of queries contributes to dk and dv; return its own gradient."""
    rows, gradient, inner, log_sums, bounds = part
    s = k.shape[1]
    size, count = _blocks(s, KEY_BLOCK)

    def body(index: jax.Array, state: tuple) -> tuple:
        dk, dv, drows = state
        start, slots, own = _block_of(index, size, s)
        some_k, some_v = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (k, v))
        seen = _seen(bounds, slots, own)
        weights = jnp.where(seen[:, None], jnp.exp(_scores(rows, some_k, seen) - log_sums), 0.0)
        dweights = jnp.einsum('bmrh,bsmh->bmrs', gradient, some_v.astype(jnp.float32))
        dscores = weights * (dweights - inner)
        drows += jnp.einsum('bmrs,bsmh->bmrh', dscores, some_k.astype(jnp.float32))
        some_dk = jnp.einsum('bmrs,bmrh->bsmh', dscores, rows.astype(jnp.float32))
        some_dv = jnp.einsum('bmrs,bmrh->bsmh', weights, gradient)
        return _add_slots(dk, some_dk, start), _add_slots(dv, some_dv, start), drows

    used = jnp.minimum((jnp.max(bounds.last) + size - 1) // size, count)
    *sums, drows = jax.lax.fori_loop(0, used, body, (*sums, jnp.zeros(rows.shape, jnp.float32)))
    return tuple(sums), drows


def _add_slots(total: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, axis=1)


_attend.defvjp(_forward, _backward)
