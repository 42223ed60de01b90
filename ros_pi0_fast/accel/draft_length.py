"""How many ids to have drafted: what pays by the measured costs and the acceptance so far.

With probability a that the target agrees with an id, given the ones before it, a pass over k
drafted ids gives 1 + a + … + a^k of them (Leviathan et al., arXiv:2211.17192, eq. 1). Divided by
what that pass was measured to cost, that is the speed; the length with the highest is taken, or
none. So a drafter that guesses badly costs a few chunks, and one try in a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

LENGTHS = (1, 2, 4, 8)
"""What is chosen from, beside none."""
LONGEST = 16
"""What may be asked for."""
KEPT = 15
"""Measurements of a length that count, the last ones."""
WEIGHT = 0.15
"""Of the last chunk in the running acceptance; the first ones weigh more."""
HOPE = 0.8
"""Acceptance that is expected before anything was drafted. It counts as one chunk."""
RETRY = 64
"""After so many chunks without a draft, drafting is tried again."""


def expected_ids(acceptance: float, length: int) -> float:
    """Return how many ids a pass gives on average, that of the target included."""
    return float(sum(acceptance ** index for index in range(length + 1)))


def acceptance_of(accepted: float, length: int) -> float:
    """Return the acceptance at which so many of `length` ids are accepted on average; 0 to 1."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        above = expected_ids(middle, length) - 1 > accepted
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2


class DraftLength:
    """Decides before each chunk, and is told after it.

    Args:
        lengths: What to choose from; 0 for not drafting.
    """

    def __init__(self, lengths: Sequence[int]):
        self.lengths = tuple(sorted(lengths))
        self.acceptance = HOPE
        """Running probability that an id is accepted."""
        self._costs: dict[int, deque[float]] = {k: deque(maxlen=KEPT) for k in self.lengths}
        self._without = self._drafted = 0

    def record(self, length: int, *, passes: int, accepted: int, ms: float) -> None:
        """Take note of a chunk.

        Args:
            length: Ids that were drafted for each pass.
            passes: Of the target, at least 1.
            accepted: Ids of drafts that were accepted, in all.
            ms: All of it together.
        """
        self._costs[length].append(ms / passes)
        self._without = 0 if length else self._without + 1
        if length:
            self._drafted += 1
            now = acceptance_of(accepted / passes, length)
            weight = max(WEIGHT, 1 / (1 + self._drafted))
            self.acceptance += weight * (now - self.acceptance)

    def calibrate(self, length: int, ms_of_pass: float) -> None:
        """Take note of what a pass costs, measured without a chunk that says anything else."""
        self._costs[length].append(ms_of_pass)

    def choose(self) -> int:
        """Return how many ids to draft for the next chunk."""
        best = min(self.lengths, key=self._ms_of_id)
        if best or self._without < RETRY:
            return best
        return min((k for k in self.lengths if k), key=self._ms_of_id, default=0)

    def _ms_of_id(self, length: int) -> float:
        costs = self._costs[length]
        cost = float(np.median(costs)) if costs else float('inf')
        return cost / expected_ids(self.acceptance, length)
