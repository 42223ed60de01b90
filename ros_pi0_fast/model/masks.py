"""openpi's masks: which tokens exist, and from which on attention is causal."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention_mask(mask: jax.Array, ar_mask: jax.Array) -> jax.Array:
    """Return which token sees which, bool [b, s, s], as openpi's `make_attn_mask`.

    Args:
        mask: bool [b, s]: the token exists.
        ar_mask: int [b, s]: 1 where a token is hidden from those before it, 0 where it shares the
            attention of the token before it.
    """
    block = jnp.cumsum(ar_mask, axis=1)
    seen = block[:, None, :] <= block[:, :, None]
    return seen & mask[:, None, :] & mask[:, :, None]


def last_visible(mask: jax.Array, ar_mask: jax.Array) -> jax.Array:
    """Return `attention_mask` as ranges: int32 [b, s], one past the last token that each sees.

    The tokens that exist must come first in each row; others see what they would if they existed.
    """
    block = jnp.cumsum(ar_mask, axis=1)
    return jnp.sum((block[:, None, :] <= block[:, :, None]) & mask[:, None, :], axis=-1,
                   dtype=jnp.int32)


def right_align(x: jax.Array, mask: jax.Array, ar_mask: jax.Array,
                ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Move the tokens that exist to the end of each row, in order.

    openpi rolls rows by the trailing padding only; where a camera is masked out, too, it leaves a
    hole, and its decoding then sees the hole and loses as many real tokens. Here the hole moves
    to the front as well, so that what follows attends to a contiguous range.

    Args:
        x: [b, s, d]
        mask: bool [b, s]: the token exists.
        ar_mask: [b, s]

    Returns:
        All three, reordered.
    """
    order = jnp.argsort(mask, axis=1, stable=True)
    return (jnp.take_along_axis(x, order[..., None], axis=1),
            jnp.take_along_axis(mask, order, axis=1),
            jnp.take_along_axis(ar_mask, order, axis=1))
