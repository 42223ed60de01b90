"""Traces of the next inferences, for TensorBoard or Perfetto, with the stages by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import jax


class Profiler:
    """Traces a number of inferences, from the next one on. One thread asks, another one infers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._left = 0
        self._running = False

    def request(self, folder: Path, inferences: int) -> Path:
        """Have the next inferences traced; return the folder that the trace will be in.

        Raises:
            RuntimeError: a trace is under way.
            OSError: the folder cannot be made.
        """
        with self._lock:
            if self._left:
                raise RuntimeError(f'a trace of {self._left} more chunks is under way')
            stamp = datetime.now(timezone.utc).strftime('%Y%m%d-%H%M%S')
            self._folder = folder / stamp
            self._folder.mkdir(parents=True, exist_ok=True)
            self._left = inferences
            return self._folder

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Run the block, an inference, within the trace if one was asked for."""
        with self._lock:
            if self._left and not self._running:
                jax.profiler.start_trace(str(self._folder))
                self._running = True
        try:
            yield
        finally:
            with self._lock:
                if self._running:
                    self._left -= 1
                    if not self._left:
                        self._end()

    def close(self) -> None:
        """End a trace that is under way."""
        with self._lock:
            self._left = 0
            if self._running:
                self._end()

    def _end(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
