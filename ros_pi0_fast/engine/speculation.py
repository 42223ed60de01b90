"""Speculation in the engine: a checkpoint's drafters, and the chunk before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.draft_file import FOLDER, load_drafters
from ros_pi0_fast.accel.draft_length import LENGTHS
from ros_pi0_fast.accel.drafter_previous_chunk import PreviousChunkDrafter
from ros_pi0_fast.accel.drafters import Drafter
from ros_pi0_fast.accel.relaxation import Relaxation
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.engine.variant import Variant, VariantError
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation

PREVIOUS_CHUNK = 'previous_chunk'
NANOSECONDS = 1e9


def draft_lengths(variant: Variant, malformed: str) -> tuple[int, ...]:
    """Return between how many drafted ids a program chooses; 0 for none.

    Where ids are decoded freely nothing is drafted: drafters know of FAST ids only.
    """
    if not variant.speculative or malformed == 'reject':
        return (0,)
    return (variant.draft_length,) if variant.draft_length else (0, *LENGTHS)


@dataclass(frozen=True)
class Speculation:
    """The drafters of a policy."""

    drafters: Mapping[str, Drafter]
    """Those of the checkpoint's folder, by name."""
    codec: PolicyCodec

    @classmethod
    def load(cls, folder: Path, model: Pi0Fast, codec: PolicyCodec) -> Speculation:
        """Read the drafters of a checkpoint.

        Raises:
            DrafterError: one of them is damaged, or for another policy.
        """
        return cls(load_drafters(folder / FOLDER, model, codec.fast.vocab_size), codec)

    @property
    def names(self) -> tuple[str, ...]:
        """All that there are."""
        return (PREVIOUS_CHUNK, *self.drafters)

    def check(self, variant: Variant) -> None:
        """Check that the drafter of a variant is there.

        Raises:
            VariantError: it is not.
        """
        if variant.speculative and variant.drafter not in self.names:
            raise VariantError(f'speculative.drafter: {variant.drafter}, expected one that the '
                               f'checkpoint has: {", ".join(self.names)}')

    def drafter(self, variant: Variant, chunk: ActionChunk | None,
                observation: Observation | None) -> Drafter:
        """Return the drafter of a variant for one inference.

        Args:
            variant: Which.
            chunk: That came before, valid and for the same instruction; None for none.
            observation: What it is to be continued from; needed with a chunk.
        """
        if variant.drafter != PREVIOUS_CHUNK:
            return self.drafters[variant.drafter]
        ids = np.zeros(0, np.int32) if chunk is None else self._continued(chunk, observation)
        most = self.codec.grammar.max_ids
        return PreviousChunkDrafter(
            ids=jnp.asarray(np.pad(ids, (0, most - len(ids)))),
            count=jnp.asarray(len(ids), jnp.int32))

    def _continued(self, chunk: ActionChunk, observation: Observation) -> np.ndarray:
        """Return the FAST ids of what a chunk says about the time from an observation on.

        It says nothing about the last steps: its last action is taken for these. No ids where
        there is nothing left of it.
        """
        profile = self.codec.profile
        seconds = (observation.stamp_ns - chunk.stamp_ns) / NANOSECONDS
        steps = round(seconds * profile.control_rate_hz)
        if not 0 <= steps < profile.horizon:
            return np.zeros(0, np.int32)
        rest = chunk.actions[np.minimum(np.arange(profile.horizon) + steps, profile.horizon - 1)]
        ids = self.codec.fast.encode(self.codec.normalize_actions(rest, observation.state))
        return ids[:self.codec.grammar.max_ids]



    def relaxation(self, variant: Variant) -> Relaxation | None:
        """Return what a variant's tolerance means for this robot; None where it is exact."""
        if not variant.tolerance:
            return None
        codec = self.codec
        ends = np.stack([np.zeros(codec.profile.action_dim), np.ones(codec.profile.action_dim)])
        low, high = codec.norm_stats.actions.unnormalize(ends, codec.profile.normalization)
        return Relaxation.build(
            codec.fast.id_bytes, horizon=codec.profile.horizon, scale=codec.fast.scale,
            slopes=high - low, grippers=codec.profile.actions.gripper,
            tolerance=variant.tolerance)
