"""Numbers that say how sure they are."""

from __future__ import annotations

import math


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a success rate, as fractions (Wilson, JASA 22, 1927).

    Raises:
        ValueError: more successes than trials, or no trial.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f'{successes} successes of {trials} trials: expected 0 <= successes <= '
                         'trials and at least one trial')
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def rate_line(name: str, successes: int, trials: int) -> str:
    """Return a line such as `reach 95.0 % [91.0, 97.3] 190/200`."""
    low, high = wilson_interval(successes, trials)
    return (f'{name} {100 * successes / trials:.1f} % [{100 * low:.1f}, {100 * high:.1f}] '
            f'{successes}/{trials}')
