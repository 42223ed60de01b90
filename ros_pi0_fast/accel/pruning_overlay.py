"""A picture of which image tokens were kept."""

from __future__ import annotations

import numpy as np

DIM = 0.3
"""Brightness of what was not kept."""
OUTLINE = np.array([80, 220, 100], np.uint8)


def draw_kept(images: np.ndarray, kept: np.ndarray, grid: tuple[int, int], *,
              scale: int = 4) -> np.ndarray:
    """Return the cameras' pictures side by side: patches not kept dark, kept ones outlined.

    Args:
        images: uint8 [cameras, h, w, 3], as the model saw them.
        kept: bool [cameras · rows · columns].
        grid: Rows and columns of tokens in a picture.
        scale: Pixels of the result for one of a picture.

    Returns:
        uint8 [h · scale, cameras · w · scale, 3].

    Raises:
        ValueError: `kept` has another length.
    """
    rows, columns = grid
    cameras, height, width = images.shape[:3]
    if kept.shape != (cameras * rows * columns,):
        raise ValueError(f'kept: shape {kept.shape}, expected ({cameras * rows * columns},) for '
                         f'{cameras} pictures of {rows} x {columns} tokens')
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    patch = (scale * (height // rows), scale * (width // columns))
    mask = np.zeros(large.shape[:3], bool)  # Pixels beyond the last whole patch belong to none.
    whole = kept.reshape(cameras, rows, columns).repeat(patch[0], axis=1).repeat(patch[1], axis=2)
    mask[:, :whole.shape[1], :whole.shape[2]] = whole
    shown = np.where(mask[..., None], large, (DIM * large).astype(np.uint8))
    shown[mask & _rims(mask)] = OUTLINE
    return np.concatenate(list(shown), axis=1)


def _rims(mask: np.ndarray) -> np.ndarray:
    """Mark pixels [cameras, h, w] whose neighbour up, down, left or right is not marked."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inside = (padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2]
              & padded[:, 1:-1, 2:])
    return ~inside
