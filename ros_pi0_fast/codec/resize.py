"""Resize with padding on the host: the reference for the one in the compiled graph.

Equal to openpi-client ``image_tools.resize_with_pad``: Pillow's antialiased bilinear filter on
uint8, sizes cut to whole pixels, black bars of floor(rest / 2) before and the rest after.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized_shape(height: int, width: int, target_height: int, target_width: int,
                  ) -> tuple[int, int, int, int]:
    """Return (height, width, rows above, columns left) of the picture inside the target."""
    ratio = max(width / target_width, height / target_height)
    new_height, new_width = int(height / ratio), int(width / ratio)
    return (new_height, new_width,
            (target_height - new_height) // 2, (target_width - new_width) // 2)


def resize_with_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit an image into [height, width], keeping its aspect.

    Args:
        image: uint8 RGB [h, w, 3].
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        uint8 [height, width, 3]; the same array where the size is right already.

    Raises:
        ValueError: another dtype or shape, or so narrow that no pixel would be left.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f'image: found {image.dtype} {list(image.shape)}, expected uint8 [h, w, 3]')
    if image.shape[:2] == (height, width):
        return image
    new_height, new_width, top, left = resized_shape(*image.shape[:2], height, width)
    if not new_height or not new_width:
        raise ValueError(f'image: found {list(image.shape)}, too narrow for {height} x {width}')
    picture = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    result = np.zeros((height, width, 3), np.uint8)
    result[top:top + new_height, left:left + new_width] = picture
    return result
