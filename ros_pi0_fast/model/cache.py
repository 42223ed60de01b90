"""Keys and values of the tokens so far, at fixed capacity, written in place."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.model.attention import write_slots


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer, or of all layers stacked along a new first axis.

    A type with the same methods can take its place (a quantized cache does).
    """

    k: jax.Array
    """[b, capacity, kv_heads, head_dim]: keys, after the rotary embedding."""
    v: jax.Array
    """[b, capacity, kv_heads, head_dim]: values."""

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> LayerCache:
        """Return a cache of [(depth,) b, capacity, kv_heads, head_dim] without tokens."""
        return cls(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

    def append(self, k: jax.Array, v: jax.Array, slot: jax.Array | int) -> LayerCache:
        """Return the cache with k, v [b, t, kv_heads, head_dim] written from `slot` on.

        Args:
            k: Keys.
            v: Values.
            slot: int32 [b], or one int for all rows. slot + t must not exceed the capacity.
        """
        return LayerCache(k=write_slots(self.k, k, slot), v=write_slots(self.v, v, slot))

    def read(self) -> tuple[jax.Array, jax.Array]:
        """Return all keys and values, valid or not."""
        return self.k, self.v


@flax.struct.dataclass
class KVCache:
    """The cache of a whole model. Row b holds valid slots [start[b], start[b] + length[b])."""

    layers: tuple[LayerCache, ...] | LayerCache
    """One for each layer, updated in place by unrolled layers; or stacked, for scanned ones."""
    start: jax.Array
    """int32 [b]: first valid slot: 0, but where a prefix is right-aligned as in openpi."""
    length: jax.Array
    """int32 [b]: valid tokens; lower it to take tokens back."""

    @property
    def end(self) -> jax.Array:
        """int32 [b]: the slot that the next token goes to."""
        return self.start + self.length

    @property
    def stacked(self) -> bool:
        """Tell whether the layers are stacked."""
        return not isinstance(self.layers, tuple)

    @property
    def capacity(self) -> int:
        """Slots of a row."""
        layer = self.layers if self.stacked else self.layers[0]
        return layer.k.shape[-3]

    def rollback(self, tokens: jax.Array | int) -> KVCache:
        """Return the cache without each row's last tokens (int32 [b] or int)."""
        return self.replace(length=self.length - tokens)


def init_cache(*, depth: int, batch: int, capacity: int, kv_heads: int, head_dim: int,
               dtype: jnp.dtype, stacked: bool = False,
               layer: type[LayerCache] = LayerCache) -> KVCache:
    """Return an empty cache, of layers of a type with the methods of LayerCache."""
    shape = (batch, capacity, kv_heads, head_dim)
    if stacked:
        shape = (depth, *shape)
    layers = [layer.empty(shape, dtype) for _ in range(1 if stacked else depth)]
    zero = jnp.zeros((batch,), jnp.int32)
    return KVCache(layers=layers[0] if stacked else tuple(layers), start=zero, length=zero)
