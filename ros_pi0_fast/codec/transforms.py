"""Small array transforms between a robot and the policy, as in openpi ``transforms.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def to_delta(actions: np.ndarray, state: np.ndarray, mask: Sequence[bool]) -> np.ndarray:
    """Subtract the chunk's start from the masked dimensions.

    Args:
        actions: Absolute targets [T, D].
        state: State at the chunk's start [S]; action dimension i goes with state dimension i.
        mask: Which of the D dimensions are deltas for the model.

    Returns:
        [T, D] in the dtype of `actions`.
    """
    return actions - _offset(actions, state, mask)


def to_absolute(actions: np.ndarray, state: np.ndarray, mask: Sequence[bool]) -> np.ndarray:
    """Undo `to_delta`."""
    return actions + _offset(actions, state, mask)


def _offset(actions: np.ndarray, state: np.ndarray, mask: Sequence[bool]) -> np.ndarray:
    offset = np.zeros(actions.shape[-1], actions.dtype)
    (dims,) = np.nonzero(mask)
    offset[dims] = state[dims]
    return offset


def parse_image(image: np.ndarray) -> np.ndarray:
    """Bring an image of a data set to uint8 [h, w, 3].

    Floats are in [0, 1] and truncated; an image [3, h, w] is turned, as openpi's robot inputs do.

    Raises:
        ValueError: neither [h, w, 3] nor [3, h, w].
    """
    image = np.asarray(image)
    if np.issubdtype(image.dtype, np.floating):
        image = (255 * image).astype(np.uint8)
    if image.ndim == 3 and image.shape[0] == 3:
        image = np.moveaxis(image, 0, -1)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'image: found {image.dtype} {list(image.shape)}, '
                         'expected uint8 or float, [h, w, 3] or [3, h, w]')
    return image


def pad_to(values: np.ndarray, length: int) -> np.ndarray:
    """Fill a vector up with zeros on the right."""
    return np.pad(values, (0, length - len(values)))
