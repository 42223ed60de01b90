"""A drafter that knows what comes, and is right about as much of it as it is told to be.

With it the acceptance is given instead of found: what a pass over k + 1 tokens costs, and what
speculation would gain from a drafter of a given quality, can be measured without having one.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafters import NOTHING, Prefix, Proposal, Rules, SoFar


@flax.struct.dataclass
class OracleDrafter:
    """Proposes what greedy decoding of the same inference chose."""

    ids: jax.Array
    """int32 [n]: columns that are going to be chosen, n ≥ 1."""
    count: jax.Array
    """int32 []: how many there are."""
    right: jax.Array
    """int32 []: how many of a proposal's ids are right; those after them are wrong."""

    def start(self, prefix: Prefix | None, rules: Rules, length: int,
              key: jax.Array | None) -> tuple[()]:
        """Remember nothing: see Drafter."""
        del prefix, rules, length, key
        return ()

    def propose(self, state: tuple[()], so_far: SoFar, rules: Rules, length: int,
                ) -> tuple[Proposal, tuple[()]]:
        """Propose `right` ids that will be accepted and others that will not: see Drafter."""
        del rules
        index = jnp.arange(length, dtype=jnp.int32)
        at = so_far.count + index
        true = self.ids[jnp.minimum(at, len(self.ids) - 1)]
        wrong = jnp.where(true > 0, true - 1, true + 1)
        ids = jnp.where(index < self.right, true, wrong)
        return Proposal(ids=jnp.where(at < self.count, ids, NOTHING)), state
