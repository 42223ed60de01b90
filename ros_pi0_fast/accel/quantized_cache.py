"""Keys and values of 8 bits, with a scale for each token and head. Lossy.

Written as they come, and widened where attention reads them: block by block, or as part of the
product, so that no wide cache exists.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.model.attention import slots_between, widen, write_slots

LARGEST = 127


@flax.struct.dataclass
class QuantizedSlots:
    """Keys, or values; x ≈ values · scale."""

    values: jax.Array
    """int8 [b, s, m, h]"""
    scale: jax.Array
    """float32 [b, s, m, 1]: of each token and head; 0 where nothing was written."""
    dtype: jnp.dtype = flax.struct.field(pytree_node=False)
    """Of what was quantized."""

    @classmethod
    def of(cls, x: jax.Array) -> QuantizedSlots:
        """Quantize x [b, s, m, h]; a head that is all 0 stays so."""
        wide = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / LARGEST
        values = jnp.round(wide / jnp.where(scale == 0, 1.0, scale))
        return cls(values=values.astype(jnp.int8), scale=scale, dtype=jnp.dtype(x.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """[b, s, m, h]"""
        return self.values.shape


@widen.register
def _(x: QuantizedSlots) -> jax.Array:
    return (x.values.astype(jnp.float32) * x.scale).astype(x.dtype)


@slots_between.register
def _(x: QuantizedSlots, start: jax.Array, size: int) -> jax.Array:
    return widen(x.replace(values=slots_between(x.values, start, size),
                           scale=slots_between(x.scale, start, size)))


@flax.struct.dataclass
class QuantizedLayerCache:
    """Keys and values of one layer; in the place of model.cache.LayerCache."""

    k: QuantizedSlots
    v: QuantizedSlots

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> QuantizedLayerCache:
        """Return a cache of [b, capacity, kv_heads, head_dim] without tokens."""
        zero = QuantizedSlots.of(jnp.zeros(shape, dtype))
        return cls(k=zero, v=jax.tree.map(jnp.copy, zero))

    def append(self, k: jax.Array, v: jax.Array, slot: jax.Array | int) -> QuantizedLayerCache:
        """Return the cache with k, v written from `slot` on: see LayerCache.append."""
        return QuantizedLayerCache(*(
            jax.tree.map(lambda buffer, new: write_slots(buffer, new, slot), old,
                         QuantizedSlots.of(new)) for old, new in ((self.k, k), (self.v, v))))

    def read(self) -> tuple[QuantizedSlots, QuantizedSlots]:
        """Return all keys and values, valid or not."""
        return self.k, self.v
