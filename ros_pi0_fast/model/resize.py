"""Resize with padding in the compiled graph, on uint8, bit for bit as Pillow does it.

openpi-client's `image_tools.resize_with_pad` uses Pillow's antialiased bilinear filter, which
computes on uint8 in fixed point, rounding to uint8 between the two passes: the width first, then
the height (Pillow's src/libImaging/Resample.c; from 13.0 on Pillow takes the height of tall
pictures first, which changes a few of their pixels by one level). Sizes are static, so the filter
taps are constants.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

PRECISION_BITS = 22


@functools.lru_cache(maxsize=64)
def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source indices and fixed-point weights of each output pixel: [taps, new_size]."""
    scale = size / new_size
    support = max(scale, 1.0)  # The triangle filter reaches one source or one output pixel.
    center = (np.arange(new_size) + 0.5) * scale
    first = np.maximum(center - support + 0.5, 0).astype(np.int64)
    last = np.minimum((center + support + 0.5).astype(np.int64), size)
    index = first + np.arange(math.ceil(support) * 2 + 1)[:, None]
    weight = np.maximum(1 - np.abs((index - center + 0.5) * (1.0 / support)), 0)
    weight = np.where(index < last, weight, 0)
    weight = weight / weight.sum(axis=0)
    fixed = (0.5 + weight * (1 << PRECISION_BITS)).astype(np.int32)
    return np.minimum(index, size - 1).astype(np.int32), fixed


def _resize_axis(images: jax.Array, new_size: int, axis: int) -> jax.Array:
    size = images.shape[axis]
    if size == new_size:
        return images
    index, weight = _taps(size, new_size)
    shape = [1] * images.ndim
    shape[axis] = new_size
    total = jnp.int32(1 << (PRECISION_BITS - 1))
    for taken, factor in zip(index, weight, strict=True):
        picked = jnp.take(images, taken, axis=axis).astype(jnp.int32)
        total = total + picked * factor.reshape(shape)
    return jnp.clip(total >> PRECISION_BITS, 0, 255).astype(jnp.uint8)


def resize_with_pad(images: jax.Array, height: int, width: int) -> jax.Array:
    """Fit pictures into a size, keeping their shape, with black bars around.

    Args:
        images: uint8 [..., h, w, 3]
        height: Of the result, pixels.
        width: Of the result, pixels.

    Returns:
        uint8 [..., height, width, 3]

    Raises:
        TypeError: the pictures are not uint8.
        ValueError: they are so narrow that nothing would be left.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f'images: {images.dtype}, expected uint8')
    high, wide = images.shape[-3:-1]
    if (high, wide) == (height, width):
        return images
    ratio = max(wide / width, high / height)
    new_height, new_width = int(high / ratio), int(wide / ratio)
    if not new_height or not new_width:
        raise ValueError(f'images: {high} x {wide} pixels, too narrow for {height} x {width}')
    resized = _resize_axis(_resize_axis(images, new_width, -2), new_height, -3)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    bars = ((0, 0),) * (images.ndim - 3) + (
        (top, height - new_height - top), (left, width - new_width - left), (0, 0))
    return jnp.pad(resized, bars)
