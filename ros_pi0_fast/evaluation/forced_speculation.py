"""Speculation whose acceptance is given: what a drafter of a given quality would gain.

Random weights make no chunks that anything could guess. What a pass over several tokens costs does
not depend on what they are, so here any ids are proposed, and as many of them accepted as asked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafter_oracle import OracleDrafter
from ros_pi0_fast.engine.speculation import Speculation
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.decode import Progress
from ros_pi0_fast.types import ActionChunk, Observation


@flax.struct.dataclass
class ForcedAcceptance:
    """Accepts a given number of ids, whatever they are; in the place of a Relaxation."""

    right: jax.Array
    """int32 []"""

    def unused(self) -> jax.Array:
        """Return what is remembered of changes: nothing."""
        return jnp.zeros((0,))

    def accept(self, choice: jax.Array, proposed: jax.Array, there: jax.Array,
               progress: Progress | None, used: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Accept the first ones that may be accepted: see Relaxation.accept."""
        del choice, proposed, progress
        return jnp.minimum(jnp.sum(there, dtype=jnp.int32), self.right), used


@dataclass(frozen=True)
class ForcedSpeculation(Speculation):
    """Speculation in which `tolerance` says which part of a proposal is accepted: 0 for none."""

    def check(self, variant: Variant) -> None:
        """Check nothing: there is a drafter for every variant."""
        del variant

    def drafter(self, variant: Variant, chunk: ActionChunk | None,
                observation: Observation | None) -> OracleDrafter:
        """Return one that proposes the same id again and again."""
        del variant, chunk, observation
        return _drafter()

    def relaxation(self, variant: Variant) -> ForcedAcceptance:
        """Return what accepts all ids of a proposal, or none at a tolerance of 0."""
        return _acceptance(variant.draft_length if variant.tolerance else 0)


@functools.cache
def _drafter() -> OracleDrafter:
    """Return the one drafter; made once, since to hand its numbers over takes time."""
    return OracleDrafter(ids=jnp.zeros((1,), jnp.int32),
                         count=jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32),
                         right=jnp.asarray(0, jnp.int32))


@functools.cache
def _acceptance(right: int) -> ForcedAcceptance:
    return ForcedAcceptance(right=jnp.asarray(right, jnp.int32))
