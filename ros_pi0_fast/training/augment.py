"""Random shifts, brightness, contrast and colour noise on uint8 images, inside the graph.

The instruction names colours and the labels are positions, so both kinds of change stay small:
a shift of a pixel or two (the arm moves with the picture, so the relation that the policy must
see is kept), and channel gains that never turn one colour name into another. Hue is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much each image may change; zeros switch a change off."""

    shift_pixels: int = 1
    """The picture moves by up to this many pixels along each axis; edge pixels are repeated."""
    brightness: float = 0.15
    """All channels are multiplied by one factor in 1 ± brightness."""
    contrast: float = 0.15
    """Distances from the image's mean are multiplied by a factor in 1 ± contrast."""
    channel_gain: float = 0.05
    """Each channel is multiplied by its own factor in 1 ± channel_gain (white balance)."""
    noise: float = 0.01
    """Standard deviation of the pixel noise, as a fraction of full scale."""

    def __post_init__(self) -> None:
        if self.shift_pixels < 0:
            raise ValueError(f'shift_pixels is {self.shift_pixels}, expected 0 or more')
        for name in ('brightness', 'contrast', 'channel_gain', 'noise'):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f'{name} is {value}, expected at least 0 and below 1')


def augment(images: jax.Array, rng: jax.Array, config: AugmentConfig) -> jax.Array:
    """Change each image of a batch by its own random draw.

    Args:
        images: uint8 [b, h, w, 3], RGB.
        rng: a key.
        config: how much.

    Returns:
        float32 [b, h, w, 3] in [0, 255], not rounded.

    Raises:
        ValueError: if the images are not uint8 [b, h, w, 3].
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f'images are {images.dtype} {images.shape}, expected uint8 [b, h, w, 3]')
    keys = jax.random.split(rng, 5)
    moved = _shift(images, keys[0], config.shift_pixels).astype(jnp.float32)
    count = images.shape[0]

    def factor(key: jax.Array, amount: float, channels: int) -> jax.Array:
        return jax.random.uniform(key, (count, 1, 1, channels), minval=1 - amount,
                                  maxval=1 + amount)

    gain = factor(keys[1], config.brightness, 1) * factor(keys[2], config.channel_gain, 3)
    mean = moved.mean(axis=(1, 2, 3), keepdims=True)
    changed = ((moved - mean) * factor(keys[3], config.contrast, 1) + mean) * gain
    if config.noise:
        changed += 255 * config.noise * jax.random.normal(keys[4], changed.shape)
    return jnp.clip(changed, 0.0, 255.0)


def _shift(images: jax.Array, rng: jax.Array, most: int) -> jax.Array:
    """Move each image by its own whole number of pixels: pad by repetition, then crop."""
    if most == 0:
        return images
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode='edge')
    offsets = jax.random.randint(rng, (images.shape[0], 2), 0, 2 * most + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, 3))

    return jax.vmap(crop)(padded, offsets)
