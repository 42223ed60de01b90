"""A picture for each chunk: what was seen, what pruning kept of it, what was planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from ros_pi0_fast.accel.pruning_overlay import draw_kept
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.types import ActionChunk, Observation

WIDTH, PLOT_HEIGHT, CAPTION = 640, 110, 20
BACKGROUND, TEXT = (24, 26, 30), (225, 225, 225)
FOUND, REFERENCE, RECORDED = (90, 200, 120), (150, 150, 160), (240, 180, 60)
"""RGB of the lines: the chunk, that of the reference, what the bag says was done."""
MARGIN = 0.05
JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Draws for one robot."""

    profile: RobotProfile
    size: tuple[int, int]
    """Height and width of a picture as the model sees it."""

    def draw(self, observation: Observation, chunk: ActionChunk, *, title: str,
             reference: np.ndarray | None, recorded: np.ndarray | None) -> np.ndarray:
        """Return the picture, uint8 RGB [h, WIDTH, 3].

        Args:
            observation: What was seen.
            chunk: The answer.
            title: Name of the variant.
            reference, recorded: Chunks [horizon, action_dim] to draw beside it; None for none.
        """
        pictures = self._pictures(observation, chunk.stats.kept)
        state = 'valid' if chunk.valid else chunk.reason
        text = f'{title}: {chunk.stats.total_ms:.1f} ms, {state}: {observation.instruction}'
        chunks = {FOUND: chunk.actions if chunk.valid else None, REFERENCE: reference,
                  RECORDED: recorded}
        return np.concatenate([_caption(text, WIDTH), pictures, self._plots(chunks)])

    def _pictures(self, observation: Observation, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        keys = sorted(kept) or sorted(observation.images)
        images = np.stack([resize_with_pad(observation.images[key], *self.size) for key in keys])
        if kept and not all(mask.all() for mask in kept.values()):
            masks = np.stack([kept[key] for key in keys])
            scale = max(1, WIDTH // (len(keys) * self.size[1]))
            shown = draw_kept(images, masks.ravel(), masks.shape[1:], scale=scale)
        else:
            shown = np.concatenate(list(images), axis=1)
        height = round(shown.shape[0] * WIDTH / shown.shape[1])
        return cv2.resize(shown, (WIDTH, height), interpolation=cv2.INTER_NEAREST)

    def _plots(self, chunks: Mapping[tuple[int, int, int], np.ndarray | None]) -> np.ndarray:
        """Draw each action over the horizon, the chunks as lines in their colours."""
        names = self.profile.actions.names
        columns = min(len(names), 8)
        rows = -(-len(names) // columns)
        canvas = np.full((rows * (PLOT_HEIGHT + CAPTION), WIDTH, 3), BACKGROUND, np.uint8)
        width = WIDTH // columns
        for joint, name in enumerate(names):
            top, left = (joint // columns) * (PLOT_HEIGHT + CAPTION), (joint % columns) * width
            canvas[top:top + CAPTION, left:left + width] = _caption(name, width)
            values = {colour: chunk[:, joint] for colour, chunk in chunks.items()
                      if chunk is not None}
            part = np.ascontiguousarray(canvas[top + CAPTION:top + CAPTION + PLOT_HEIGHT,
                                               left:left + width])
            _plot(part, values)
            canvas[top + CAPTION:top + CAPTION + PLOT_HEIGHT, left:left + width] = part
        return canvas


def _plot(canvas: np.ndarray, values: Mapping[tuple[int, int, int], np.ndarray]) -> None:
    known = [value[np.isfinite(value)] for value in values.values()]
    if not any(map(len, known)):
        return
    every = np.concatenate(known)
    low, high = float(every.min()), float(every.max())
    spread = max(high - low, MARGIN)
    height, width = canvas.shape[:2]
    for colour, value in reversed(values.items()):
        x = 4 + np.arange(len(value)) * (width - 8) / max(len(value) - 1, 1)
        y = height - 6 - (value - (low + high - spread) / 2) / spread * (height - 12)
        points = np.stack([x, y], axis=1)[np.isfinite(value)]
        cv2.polylines(canvas, [points.round().astype(np.int32)], False, colour, 2, cv2.LINE_AA)


def _caption(text: str, width: int) -> np.ndarray:
    line = np.full((CAPTION, width, 3), BACKGROUND, np.uint8)
    cv2.putText(line, text, (4, CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, TEXT, 1, cv2.LINE_AA)
    return line


def to_jpeg(picture: np.ndarray) -> np.ndarray:
    """Encode a picture uint8 RGB [h, w, 3]; return the bytes, uint8 [n]."""
    _, data = cv2.imencode('.jpg', picture[..., ::-1],
                           [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.reshape(-1)
