"""Which row of which chunk is due: what a robot's controller does with action chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TimedChunk:
    """An action chunk as it came in; times in nanoseconds of the robot's clock."""

    stamp_ns: int
    """Of the observation that it answers: row 0 is due then."""
    period_ns: int
    """Between two rows."""
    actions: np.ndarray
    """float32 [horizon, action_dim], absolute targets."""
    instruction: str


class ChunkPlayer:
    """Plays the newest chunk by its stamp, and says when there is nothing to play.

    Row i holds from stamp + i * period on. Rows whose time has passed when the chunk arrives are
    skipped; that is how its latency is made up for.
    """

    def __init__(self) -> None:
        self.reset('', 0)

    def reset(self, instruction: str, not_before_ns: int) -> None:
        """Forget the chunk, and from now on take only those for this instruction and later."""
        self._instruction = instruction
        self._not_before_ns = not_before_ns
        self._chunk: TimedChunk | None = None

    def offer(self, chunk: TimedChunk) -> bool:
        """Take a chunk unless it is for another episode, older than the last one, or empty."""
        newest = self._not_before_ns if self._chunk is None else self._chunk.stamp_ns
        if (chunk.instruction != self._instruction or chunk.stamp_ns < newest
                or len(chunk.actions) == 0):
            return False
        self._chunk = chunk
        return True

    def due(self, now_ns: int) -> np.ndarray | None:
        """Return the action [action_dim] that is due now; None: hold the position."""
        if self._chunk is None:
            return None
        row = (now_ns - self._chunk.stamp_ns) // self._chunk.period_ns
        if not 0 <= row < len(self._chunk.actions):
            return None
        return self._chunk.actions[row]
