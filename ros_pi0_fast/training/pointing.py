"""Pointing: image tokens learn, half-way through the decoder, to say whether they are meant.

Actions alone hardly teach which of several cubes an instruction names: until the policy compares
words with colours nothing is gained by looking, and it settles for the average. Here a linear read
of each image token after half of the layers must point to what is named, a loss whose gradient
reaches that comparison directly; the layers after it let the actions attend to what was found. The
read is not shipped.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ros_pi0_fast.model.pi0_fast import Pi0Fast

POINTER = 'pointer'
"""Key of the read's weights beside those of the policy."""


def init_pointer(model: Pi0Fast) -> dict[str, jax.Array]:
    """Return the read's weights: float32 [d], zero."""
    return {'w': jnp.zeros((model.config.gemma.width,), jnp.float32)}


def without_pointer(params: Any) -> Any:
    """Return the policy's parameters alone."""
    return {key: value for key, value in params.items() if key != POINTER}


def pointing_layer(model: Pi0Fast) -> int:
    """Return after how many layers is read."""
    return model.config.gemma.depth // 2


def pointing_loss(model: Pi0Fast, pointer: dict[str, jax.Array], middle: jax.Array,
                  places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean cross-entropy of pointing, and how often it points right.

    Args:
        model: The network.
        pointer: The read's weights.
        middle: [b, cameras · n, d]: image tokens after half of the layers.
        places: float32 [b, cameras, 2]: where what is named is, 0 to 1 to the right and down; NaN
            where it is not seen.

    Returns:
        float32 [] in nats, and the fraction of pictures, of those in which it is seen.
    """
    x = middle.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    scores = (x @ pointer['w']).reshape(*places.shape[:2], -1)
    rows, columns = model.config.siglip.grid
    seen = ~jnp.isnan(places[..., 0])
    column, row = (jnp.nan_to_num(places[..., axis]) * count for axis, count in
                   enumerate((columns, rows)))
    meant = row.astype(jnp.int32) * columns + column.astype(jnp.int32)
    log_p = jax.nn.log_softmax(scores, axis=-1)
    each = -jnp.take_along_axis(log_p, meant[..., None], axis=-1)[..., 0]
    count = jnp.maximum(jnp.sum(seen), 1)
    right = jnp.sum(seen & (jnp.argmax(scores, axis=-1) == meant)) / count
    return jnp.sum(jnp.where(seen, each, 0.0)) / count, right
