"""What is left of a run with the simulated robot: a table, and a GIF for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ros_pi0_fast.sim.tasks import TASKS

STAGES = ('preprocess', 'vision', 'prefill', 'decode', 'total')


@dataclass(kw_only=True)
class RunReport:
    """Counts and times of one run; grows as the run goes on."""

    received: int = 0
    """Chunks received."""
    valid: int = 0
    controls: int = 0
    """Control steps of the episodes."""
    holds: int = 0
    """Control steps for which no row was due, so that the position was held."""
    stage_ms: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    age_ms: list[float] = field(default_factory=list)
    """From the observation's stamp to the arrival of its chunk."""
    outcomes: dict[str, list[bool]] = field(default_factory=lambda: {t: [] for t in TASKS})
    invalid_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        """Episodes that ended."""
        return sum(map(len, self.outcomes.values()))

    def lines(self, video: Path | None) -> list[str]:
        """Return the table."""
        rows = [('chunks received', str(self.received)),
                ('valid', f'{self.valid} of {self.received}')]
        rows += [(f'invalid: {reason}', str(count))
                 for reason, count in sorted(self.invalid_reasons.items())]
        rows += [(f'{name} ms, p50 / p95', _percentiles(values))
                 for name, values in self.stage_ms.items()]
        rows.append(('image to chunk ms, p50 / p95', _percentiles(self.age_ms)))
        rows.append(('control steps on hold', f'{self.holds} of {self.controls}'))
        rows += [(f'success: {task}', f'{sum(done)} of {len(done)}')
                 for task, done in self.outcomes.items() if done]
        if video:
            rows.append(('video', str(video)))
        width = max(len(name) for name, _ in rows)
        rule = '-' * (width + 24)
        return [rule, *(f'{name:<{width}}  {value}' for name, value in rows), rule]


def _percentiles(values: list[float]) -> str:
    if not values:
        return 'none'
    low, high = np.percentile(values, [50, 95])
    return f'{low:.1f} / {high:.1f}'


class Film:
    """Frames with the instruction written on them, kept small until they are written as a GIF."""

    def __init__(self, path: Path, frames_per_second: float):
        self.path = path
        self._duration_ms = round(1000 / frames_per_second)
        self._frames: list[Image.Image] = []

    def add(self, picture: np.ndarray, caption: str, done: bool) -> None:
        """Add a frame uint8 RGB [h, w, 3]; a green bar says that the task is done."""
        frame = picture.copy()
        frame[-22:] = (20, 110, 40) if done else (25, 25, 25)
        cv2.putText(frame, caption + (': done' if done else ''), (6, len(frame) - 7),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
        # Other methods than MAXCOVERAGE give small things the colours of large ones.
        self._frames.append(Image.fromarray(frame).quantize(
            128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))

    def write(self) -> None:
        """Write the GIF; nothing if there is no frame."""
        if not self._frames:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._frames[0].save(self.path, save_all=True, append_images=self._frames[1:],
                             duration=self._duration_ms, loop=0, optimize=False)
