"""Attention behind one seam: implementations are chosen, the model is not forked.

A prefix is packed, so what a query may see is a contiguous range of slots, and `Visible` says
which. Only the reference path, which follows openpi slot by slot, needs a dense mask.
"""

from __future__ import annotations

import functools
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp

# What openpi adds to hidden scores; finite, so that a row that sees nothing stays a number.
HIDDEN = -2.3819763e38


@flax.struct.dataclass
class Visible:
    """Which key slots each query sees: those in [start, end), or those that `dense` marks."""

    end: jax.Array | None = None
    """int32 [b, t]: one past the last slot that the query sees."""
    start: jax.Array | None = None
    """int32 [b]: first slot that is seen; None for 0."""
    dense: jax.Array | None = None
    """bool [b, t, s]: used instead of the range."""
    uniform: bool = flax.struct.field(pytree_node=False, default=False)
    """All queries of a row have the same `end`, as in a prefix: no causal part."""

    def mask(self, slots: int) -> jax.Array:
        """Return the dense form, bool [b, t, slots]; slots that `dense` lacks are hidden."""
        if self.dense is not None:
            missing = slots - self.dense.shape[-1]
            return jnp.pad(self.dense, ((0, 0), (0, 0), (0, missing)))
        slot = jnp.arange(slots, dtype=jnp.int32)
        seen = slot < self.end[..., None]
        return seen if self.start is None else seen & (slot >= self.start[:, None, None])


    def of_token(self, index: jax.Array) -> Visible:
        """Return what token index[b] of each row sees."""
        def take(x: jax.Array | None) -> jax.Array | None:
            return x if x is None else jax.vmap(
                lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, 1))(x, index)

        return self.replace(end=take(self.end), dense=take(self.dense), uniform=True)


@flax.struct.dataclass
class Fresh:
    """Keys and values of new tokens, which `visible` counts but k and v do not hold yet.

    Of one token a row, in decoding: several are written to the cache first.

    An implementation may write them to their slots first. One that does not leaves the cache to be
    written by nobody but the one who keeps it, and so in place.
    """

    k: jax.Array
    """[b, t, m, h]"""
    v: jax.Array
    """[b, t, m, h]"""
    slot: jax.Array
    """int32 [b]: where the first of them belongs."""


class Attend(Protocol):
    """What an implementation of attention is."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
                 score_dtype: jnp.dtype, fresh: Fresh | None = None) -> jax.Array:
        """Return the attended values, [b, t, n, h] in the dtype of v.

        Args:
            q: [b, t, n, h]: queries, already scaled, of no less precision than k.
            k: [b, s, m, h]: keys; n is a multiple of m, heads of one group are adjacent. An array,
                or what a cache holds: see widen and slots_between.
            v: [b, s, m, h]: values, likewise.
            visible: What each query sees; None for everything.
            score_dtype: Lowest precision of scores and softmax.
            fresh: What belongs into k and v and is not there yet.
        """
        ...


@functools.singledispatch
def widen(x: jax.Array) -> jax.Array:
    """Return keys or values [b, s, m, h] as an array; register types of a cache on this."""
    return x


@functools.singledispatch
def slots_between(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Return `size` slots from `start` on; register types of a cache on this.

    Args:
        x: [b, s, m, h]: keys or values.
        start: int32 []
        size: How many.
    """
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def write_slots(buffer: jax.Array, new: jax.Array, slot: jax.Array | int) -> jax.Array:
    """Return buffer [b, s, m, h] with new [b, t, m, h] from `slot` on, int32 [b] or one int."""
    new = new.astype(buffer.dtype)
    # One slice is updated in place; a scatter of rows may not be.
    if isinstance(slot, int):
        return jax.lax.dynamic_update_slice(buffer, new, (0, slot, 0, 0))
    if buffer.shape[0] == 1:
        return jax.lax.dynamic_update_slice(buffer, new, (0, slot[0], 0, 0))
    return jax.vmap(lambda row, value, at: jax.lax.dynamic_update_slice(
        row, value, (at, 0, 0)))(buffer, new, slot)


def reference(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
              score_dtype: jnp.dtype = jnp.float32, fresh: Fresh | None = None) -> jax.Array:
    """Attend as openpi's gemma_fast.py and flax.linen.dot_product_attention do: see Attend."""
    k, v = widen(k), widen(v)
    if fresh is not None:
        k, v = write_slots(k, fresh.k, fresh.slot), write_slots(v, fresh.v, fresh.slot)
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum('btkgh,bskh->bkgts', grouped, k.astype(q.dtype),
                        preferred_element_type=score_dtype)
    if visible is not None:
        mask = visible.mask(k.shape[1])
        scores = jnp.where(mask[:, None, None], scores, HIDDEN)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum('bkgts,bskh->btkgh', probabilities, v).reshape(b, t, n, h)


def folded(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
           score_dtype: jnp.dtype = jnp.float32, fresh: Fresh | None = None) -> jax.Array:
    """Attend with the query heads that share a key-value head as rows of one matrix: see Attend.

    The products are those of the reference. Where all heads share one (multi-query attention, as
    in Gemma 2B), scores come out in the layout in which the softmax and the second product read
    them; the reference's are transposed in between, which on a CPU costs as much as the products.
    """
    b, t, n, h = q.shape
    if k.shape[2] != 1:
        return reference(q, k, v, visible, score_dtype=score_dtype, fresh=fresh)
    k, v = widen(k), widen(v)
    rows = q.reshape(b, t * n, h)
    mask = None if visible is None else visible.mask(k.shape[1])
    if mask is not None:  # Queries that all see the same need one row of it.
        mask = mask[:, :1] if visible.uniform else jnp.repeat(mask, n, axis=1)
    if fresh is None:
        scores = _scores(rows, k, mask, score_dtype)
        probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum('bqs,bsh->bqh', probabilities, v[:, :, 0]).reshape(b, t, n, h)
    # One softmax over both: what was there before, and what is new.
    slots = jnp.arange(k.shape[1], dtype=jnp.int32)
    new_slots = fresh.slot[:, None] + jnp.arange(t, dtype=jnp.int32)
    there = (slots < fresh.slot[:, None]) | (slots > new_slots[:, -1:])
    old = _scores(rows, k, mask & there[:, None], score_dtype)
    seen = jax.vmap(lambda row, at: jnp.take(row, at, axis=1))(mask, new_slots)
    new = _scores(rows, fresh.k, seen, score_dtype)
    top = jnp.maximum(jnp.max(old, axis=-1, keepdims=True), jnp.max(new, axis=-1, keepdims=True))
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    whole = jnp.sum(old, axis=-1, keepdims=True) + jnp.sum(new, axis=-1, keepdims=True)
    mixed = (jnp.einsum('bqs,bsh->bqh', (old / whole).astype(v.dtype), v[:, :, 0])
             + jnp.einsum('bqs,bsh->bqh', (new / whole).astype(v.dtype),
                          fresh.v[:, :, 0].astype(v.dtype)))
    return mixed.reshape(b, t, n, h)


def _scores(rows: jax.Array, k: jax.Array, mask: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """Return masked scores [b, q, s] of rows [b, q, h] and keys [b, s, 1, h]."""
    scores = jnp.einsum('bqh,bsh->bqs', rows, k[:, :, 0].astype(rows.dtype),
                        preferred_element_type=dtype)
    return scores if mask is None else jnp.where(mask, scores, HIDDEN)
