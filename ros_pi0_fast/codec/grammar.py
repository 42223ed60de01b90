"""Which FAST ids may follow, so that a chunk always comes out with the right number of values.

A coefficient is one UTF-8 character, and byte-level BPE may cut a character between two ids. The
grammar is therefore an automaton over ids whose states are those of a UTF-8 decoder: state 0
between characters, the others inside one (Unicode Standard, table 3-7, well-formed sequences).

An id may be chosen in `state` with `remaining` coefficients to go if and only if

    count[state, id] >= 0  and  shortest[next_state[state, id], remaining - count] < UNREACHABLE

(and, where only so many ids more may be generated, that number is at least `shortest`).
The chunk is complete when remaining == 0 and state == 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

START = 0
"""State between characters, in which a chunk starts and ends."""
UNREACHABLE = 1 << 30
"""In `shortest`: the chunk cannot be completed from there."""

# Per state: (first byte, last byte, next state). Listed after START are: one, two and three more
# bytes of any kind; then the states after E0, ED, F0 and F4, whose second byte is restricted.
_RANGES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5),
     (0xEE, 0xEF, 2), (0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)),
    ((0x80, 0xBF, 0),),
    ((0x80, 0xBF, 1),),
    ((0x80, 0xBF, 2),),
    ((0xA0, 0xBF, 1),),
    ((0x80, 0x9F, 1),),
    ((0x90, 0xBF, 2),),
    ((0x80, 0x8F, 2),),
)
STATES = len(_RANGES)


@dataclass(frozen=True, kw_only=True, eq=False)
class FastGrammar:
    """Tables of the automaton, for chunks of `coefficients` values. To be read, not written."""

    count: np.ndarray
    """int32 [STATES, fast_vocab]: coefficients that the id completes; -1 where not allowed."""
    next_state: np.ndarray
    """int32 [STATES, fast_vocab]: state after the id; START where not allowed."""
    shortest: np.ndarray
    """int32 [STATES, coefficients + 1]: fewest ids that complete the chunk from a state with so
    many coefficients remaining; UNREACHABLE where none do."""
    longest: np.ndarray
    """int32 [STATES, coefficients + 1]: most ids that the completion can take."""

    @classmethod
    def build(cls, id_bytes: Sequence[bytes], coefficients: int) -> FastGrammar:
        """Build the tables.

        Args:
            id_bytes: Bytes of each FAST id (FastTokenizer.id_bytes).
            coefficients: Values in a chunk: horizon × action_dim.

        Raises:
            ValueError: no sequence of ids makes a chunk of that many coefficients.
        """
        count, next_state = _transitions(id_bytes)
        shortest, longest = _distances(count, next_state, coefficients)
        if shortest[START, coefficients] == UNREACHABLE:
            raise ValueError(f'coefficients: no sequence of the {len(id_bytes)} FAST ids stands '
                             f'for exactly {coefficients}')
        return cls(count=count, next_state=next_state, shortest=shortest, longest=longest)

    @property
    def coefficients(self) -> int:
        """Values in a chunk."""
        return self.shortest.shape[1] - 1

    @property
    def completable(self) -> np.ndarray:
        """Tell from where a chunk can be completed: bool [STATES, coefficients + 1]."""
        return self.shortest < UNREACHABLE

    @property
    def max_ids(self) -> int:
        """Most ids that a complete chunk can have: a buffer this long always suffices."""
        return int(self.longest[START, self.coefficients])

    def allowed(self, state: int, remaining: int, ids_left: int = UNREACHABLE - 1) -> np.ndarray:
        """Tell which ids may follow, bool [fast_vocab]; the host's reference of the device code.

        Args:
            state: Where the ids so far have led.
            remaining: Coefficients to go.
            ids_left: How many ids may still be generated; some sequence must fit.
        """
        count = self.count[state]
        rest = np.clip(remaining - np.maximum(count, 0), 0, None)
        needed = self.shortest[self.next_state[state], rest]
        return (count >= 0) & (count <= remaining) & (needed <= ids_left - 1)


def _transitions(id_bytes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Walk every id's bytes from every state."""
    table = np.full((STATES, 256), -1, np.int8)
    for state, ranges in enumerate(_RANGES):
        for first, last, following in ranges:
            table[state, first:last + 1] = following
    count = np.full((STATES, len(id_bytes)), -1, np.int32)
    next_state = np.zeros((STATES, len(id_bytes)), np.int32)
    for token, raw in enumerate(id_bytes):
        # An id of no bytes would let a sequence go on for ever.
        for start in range(STATES if raw else 0):
            state, completed = start, 0
            for byte in raw:
                state = int(table[state, byte])
                if state < 0:
                    break
                completed += state == START
            else:
                count[start, token] = completed
                next_state[start, token] = state
    return count, next_state


def _distances(count: np.ndarray, next_state: np.ndarray, coefficients: int,
               ) -> tuple[np.ndarray, np.ndarray]:
    """Find the fewest and the most ids that complete a chunk, by dynamic programming."""
    shortest = np.full((STATES, coefficients + 1), UNREACHABLE, np.int32)
    longest = np.full((STATES, coefficients + 1), -1, np.int32)
    shortest[START, 0] = longest[START, 0] = 0
    # Ids that complete as many coefficients and lead to the same state are one edge.
    edges = [np.unique(np.stack([count[s], next_state[s]])[:, count[s] >= 0], axis=1)
             for s in range(STATES)]
    for remaining in range(coefficients + 1):
        # An id that completes nothing leads from a character's start further into it, so that
        # after as many rounds as a character has bytes nothing changes any more.
        for _ in range(4):
            for state, (completed, following) in enumerate(edges):
                usable = completed <= remaining
                if (state, remaining) == (START, 0) or not usable.any():
                    continue
                after = (following[usable], remaining - completed[usable])
                fewest, most = shortest[after].min(), longest[after].max()
                shortest[state, remaining] = min(UNREACHABLE, fewest + 1)
                longest[state, remaining] = most + 1 if most >= 0 else -1
    return shortest, longest
