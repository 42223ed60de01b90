"""What is asked of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from ros_pi0_fast.engine.variant import Variant

MALFORMED = ('constrain', 'reject')
FIXED = 'fixed'
"""Decode a given number of FAST ids, whatever they mean: for measuring with random weights."""


class EngineError(ValueError):
    """The engine cannot be built or run as asked; the message names the parameter."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A variant, and the answer to malformed chunks.

    Raises:
        EngineError: there is no such answer.
    """

    variant: Variant
    malformed: str
    """'constrain', 'reject', or FIXED."""

    def __post_init__(self) -> None:
        if self.malformed not in (*MALFORMED, FIXED):
            raise EngineError(f'malformed: {self.malformed!r}, expected one of '
                              f'{", ".join(MALFORMED)}')
