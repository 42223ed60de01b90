"""A drafter that proposes the ids of the last chunk, shifted by the time that passed since.

It costs next to nothing. What a chunk says about the time after its first steps is what the next
one should say about its own, so their coefficients are close; whoever calls shifts the last chunk
and encodes it again (codec.fast). This file only finds where in that sequence decoding is.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafters import NOTHING, Prefix, Proposal, Rules, SoFar
from ros_pi0_fast.model.decode import Progress

CONTEXT = 8
"""Most ids before a place that are compared."""


@flax.struct.dataclass
class PreviousChunkDrafter:
    """Proposes a sequence that is known before, from the place in it where decoding is.

    The place is the one at which as much of the chunk is done by the grammar, since two encodings
    of nearly the same coefficients come apart and together again; among such places, and where
    there is none, the one before which the most ids agree; else the one of the same number.
    """

    ids: jax.Array
    """int32 [n]: columns of the sequence, n ≥ 1; the same n for all inferences."""
    count: jax.Array
    """int32 []: how many there are; 0 where there is no last chunk."""

    def start(self, prefix: Prefix | None, rules: Rules, length: int,
              key: jax.Array | None) -> Progress | None:
        """Find how far the chunk is before each id of the sequence, n rows: see Drafter."""
        del prefix, length, key
        if rules.grammar is None:
            return None
        return rules.along(Progress.start(rules.grammar, 1), self.ids[:-1])

    def propose(self, state: Progress | None, so_far: SoFar, rules: Rules, length: int,
                ) -> tuple[Proposal, Progress | None]:
        """Propose what follows in the sequence: see Drafter."""
        del rules
        at = self._place(state, so_far) + jnp.arange(length, dtype=jnp.int32)
        ids = self.ids[jnp.minimum(at, len(self.ids) - 1)]
        return Proposal(ids=jnp.where(at < self.count, ids, NOTHING)), state

    def _place(self, state: Progress | None, so_far: SoFar) -> jax.Array:
        """Return the index, int32 [], of the id that should follow."""
        places = jnp.arange(len(self.ids), dtype=jnp.int32)
        score = self._agreeing(so_far)
        if state is not None:
            now = so_far.progress
            same = (state.state == now.state) & (state.remaining == now.remaining)
            score = score + jnp.where(same, CONTEXT + 1, 0)
        far = len(self.ids) + len(so_far.ids)  # More than any distance.
        score = far * score - jnp.abs(places - so_far.count)
        return jnp.argmax(jnp.where(places < self.count, score, -far)).astype(jnp.int32)

    def _agreeing(self, so_far: SoFar) -> jax.Array:
        """Return how many ids before each place, without a gap, are those chosen: int32 [n]."""
        back = jnp.arange(1, CONTEXT + 1, dtype=jnp.int32)[:, None]
        old, new = jnp.arange(len(self.ids), dtype=jnp.int32) - back, so_far.count - back
        same = (self.ids[jnp.maximum(old, 0)] == so_far.ids[jnp.maximum(new, 0)])
        same = same & (old >= 0) & (new >= 0)
        return jnp.sum(jnp.cumprod(same.astype(jnp.int32), axis=0), axis=0, dtype=jnp.int32)
