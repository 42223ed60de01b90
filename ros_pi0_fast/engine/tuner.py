"""Keeps an engine at what its user asked for, or at what fits a latency budget."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from ros_pi0_fast.engine.budget import BudgetReport, LatencyBudget, ladder
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.types import ActionChunk, Observation

SAMPLES = 4
"""Observations that a variant is measured on, the last ones."""
ROUNDS = 3
"""How often each; the first round does not count."""
POLL_S = 1.0
"""How often measurements are looked at that may have become old."""


class Tuner:
    """Asks an engine for variants. Without a budget, for the one that the user asked for.

    With one, what is not known is measured in a thread of its own, beside the inferences that go
    on, on observations that were served: no chunk waits for it. A variant that cannot run with
    this checkpoint is left out.

    Args:
        engine: Compiled.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._changed = threading.Condition()
        self._budget: LatencyBudget | None = None
        self._seen: deque[Observation] = deque(maxlen=SAMPLES)
        self._stopping = False
        self._thread: threading.Thread | None = None

    def ask(self, variant: Variant, malformed: str, budget_ms: float) -> None:
        """Ask for a variant, an answer to malformed chunks, and a budget (0: none), from now on.

        With a budget, what runs is decided anew: nothing that was measured before counts.
        """
        with self._changed:
            if budget_ms:
                self._budget = LatencyBudget(ladder(variant, self._engine.drafters), budget_ms)
                self._thread = self._thread or self._start()
            else:
                self._budget = None
            self._engine.request(variant=variant, malformed=malformed)
            self._changed.notify()

    def served(self, observation: Observation, chunk: ActionChunk) -> None:
        """Take note of an inference that was served; decide anew."""
        with self._changed:
            if self._budget is None:
                return
            self._seen.append(observation)
            # By name: the engine may have changed its variant since.
            if chunk.stats.variant == self._engine.variant.name:
                self._budget.served(self._engine.variant, chunk.stats.total_ms, time.monotonic())
                self._decide()
            self._changed.notify()

    @property
    def report(self) -> BudgetReport:
        """What is known and decided."""
        with self._changed:
            return BudgetReport() if self._budget is None else self._budget.report

    def stop(self, timeout_s: float | None = None) -> bool:
        """Measure no more; wait for the measurement that runs.

        Returns:
            Whether it has ended within the time.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name='tuner', daemon=True)
        thread.start()
        return thread

    def _decide(self) -> None:
        variant = self._budget.decide()
        if variant != (self._engine.pending or self._engine.variant):
            self._engine.request(variant=variant)

    def _run(self) -> None:
        while True:
            with self._changed:
                while (wanted := self._next()) is None and not self._stopping:
                    self._changed.wait(POLL_S)
                if self._stopping:
                    return
                budget, seen = self._budget, tuple(self._seen)
            self._measure(budget, wanted, seen)

    def _next(self) -> Variant | None:
        if self._budget is None or len(self._seen) < SAMPLES:
            return None
        return self._budget.next_to_measure(time.monotonic())

    def _measure(self, budget: LatencyBudget, variant: Variant,
                 seen: tuple[Observation, ...]) -> None:
        try:
            took = self._engine.measure(variant, seen * ROUNDS, first=len(seen))
        except Exception as error:  # Whatever it is, that variant is not needed.
            reason = f'{type(error).__name__}: {error}'
            logging.getLogger(__name__).warning('%s is left out: %s', variant.name, reason)
            with self._changed:
                budget.leave_out(variant, reason)
            return
        with self._changed:
            budget.measured(variant, took, time.monotonic())
            if budget is self._budget and not self._stopping:
                self._decide()
