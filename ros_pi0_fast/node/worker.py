"""One work slot in a thread of its own: the newest observation wins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ros_pi0_fast.types import ActionChunk, Observation

Infer = Callable[[Observation], ActionChunk]
OnChunk = Callable[[Observation, ActionChunk], None]
OnError = Callable[[Observation, Exception], None]


class InferenceWorker:
    """Runs inferences one after another, dropping observations that a newer one overtook.

    Args:
        infer: The engine.
        on_chunk: Called in the worker's thread with each answer.
        on_error: Called there with whatever `infer` or `on_chunk` raised; the worker goes on, also
            when `on_error` raises.
        heard: Tells whether anybody can hear of an answer. An inference that Ctrl-C overtakes ends
            where nothing can be published any more, which is no error.
    """

    def __init__(self, infer: Infer, on_chunk: OnChunk, on_error: OnError,
                 heard: Callable[[], bool] = lambda: True):
        self._infer, self._on_chunk, self._on_error = infer, on_chunk, on_error
        self._heard = heard
        self._changed = threading.Condition()
        self._waiting: Observation | None = None
        self._stopping = False
        self.handed_in = 0
        """Observations whose inference began."""
        self.dropped = 0
        """Observations that a newer one overtook."""
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def submit(self, observation: Observation) -> None:
        """Offer an observation; one that is still waiting is dropped."""
        with self._changed:
            self.dropped += self._waiting is not None
            self._waiting = observation
            self._changed.notify()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Let the running inference end and run no other; what it brings is still delivered.

        Args:
            timeout_s: How long to wait for it; None: as long as it takes.

        Returns:
            Whether it has ended.
        """
        with self._changed:
            self._stopping = True
            self._waiting = None
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                observation, self._waiting = self._waiting, None
                self.handed_in += 1
            try:
                self._on_chunk(observation, self._infer(observation))
            except Exception as error:  # The node survives whatever it is, and tells.
                self._tell(observation, error)

    def _tell(self, observation: Observation, error: Exception) -> None:
        try:
            if self._heard():
                self._on_error(observation, error)
        except Exception:  # Nobody is left to tell; a silent worker would be worse than a log.
            if self._heard():
                logging.getLogger(__name__).exception('while telling of %r', error)
