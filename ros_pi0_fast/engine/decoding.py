"""How a program decodes: by which stage, with how many guesses, and who guesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ros_pi0_fast.accel.draft_length import DraftLength
from ros_pi0_fast.accel.drafters import Drafter
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.engine.choice import FIXED, Choice, EngineError
from ros_pi0_fast.engine.speculation import Speculation, draft_lengths
from ros_pi0_fast.engine.stages import Decode, Speculate
from ros_pi0_fast.model.attention import Attend
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

FREE_IDS = 256
"""Most ids that are decoded freely, as in openpi."""


class Decoding:
    """The decode stages of a program.

    Args:
        choice: What to run.
        model: The network.
        codec: Of the same checkpoint.
        speculation: Knows the drafters.
        limit: Ids decoded at most; None: as many as a chunk may need, or FREE_IDS.

    Raises:
        EngineError: the limit is too small for a chunk.
        VariantError: the checkpoint lacks the drafter.
    """

    def __init__(self, choice: Choice, model: Pi0Fast, codec: PolicyCodec,
                 speculation: Speculation, *, limit: int | None):
        speculation.check(choice.variant)
        self._variant, self._speculation = choice.variant, speculation
        self._relaxation = speculation.relaxation(choice.variant)
        self._length = DraftLength(draft_lengths(choice.variant, choice.malformed))
        fields = {'model': model, 'max_ids': _most_ids(choice.malformed, codec, limit),
                  'eos_id': codec.text.eos_id, 'malformed': choice.malformed,
                  'constant_prefix': choice.variant.constant_prefix,
                  'early_stop': choice.variant.early_stop}
        self.stages: dict[int, Decode] = {
            length: Speculate(draft_length=length, **fields) if length else Decode(**fields)
            for length in self.lengths}
        """By the number of ids that are guessed for a pass."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of ids that may be guessed for a pass, ascending."""
        return self._length.lengths

    @property
    def slots(self) -> int:
        """Slots of the cache that the ids need, those of refused guesses included."""
        return self.stages[self.lengths[0]].max_ids + self.lengths[-1]

    def choose_attention(self, choose: Callable[[int], Attend]) -> None:
        """Give each stage its attention.

        Args:
            choose: Returns the fastest one for so many tokens on the cache.
        """
        for length in self.lengths:  # Measured for the most guesses only.
            attend = choose(1 + self.lengths[-1] if length else 1)
            stage = self.stages[length]
            self.stages[length] = replace(stage, model=replace(stage.model, attend=attend))

    def drafter(self, chunk: ActionChunk | None = None, observation: Observation | None = None,
                ) -> Drafter | None:
        """Return what guesses in an inference: see Speculation.drafter; None for nothing."""
        if not self.lengths[-1]:
            return None
        return self._speculation.drafter(self._variant, chunk, observation)

    def choose(self) -> int:
        """Return how many ids are to be guessed for each pass of the next inference."""
        return self._length.choose()

    def arguments(self, drafter: Drafter | None, length: int) -> tuple[Any, ...]:
        """Return what the stage of a number of guesses takes after the cache."""
        return (drafter, self._relaxation) if length else ()

    def calibrate(self, length: int, stats: InferenceStats) -> None:
        """Take note of what a number of guesses costs."""
        self._length.calibrate(length, stats.decode_ms / max(1, stats.target_passes))

    def note(self, stats: InferenceStats, length: int, drafted: int = 0, accepted: int = 0, *,
             learn: bool) -> InferenceStats:
        """Return the statistics with those of guessing.

        Args:
            stats: Of an inference.
            length: Ids that were guessed for each pass.
            drafted: Of them all.
            accepted: Of those.
            learn: Take note of how it went.
        """
        if learn:
            self._length.record(length, passes=max(1, stats.target_passes), accepted=accepted,
                                ms=stats.decode_ms)
        if not self.lengths[-1]:
            return stats
        return replace(stats, draft_length=length, drafted_tokens=drafted,
                       accepted_tokens=accepted, acceptance=self._length.acceptance)


def _most_ids(malformed: str, codec: PolicyCodec, limit: int | None) -> int:
    """Return how many ids to decode at most."""
    needed = FREE_IDS if malformed == 'reject' else codec.grammar.max_ids
    if malformed == FIXED:
        return limit or needed
    most = needed if limit is None else min(needed, limit)
    fewest = int(codec.grammar.shortest[0, -1])
    if most < fewest:
        raise EngineError(f'max_decode_tokens: {most}, expected at least {fewest}, without '
                          f'which no chunk of {codec.profile.horizon} x '
                          f'{codec.profile.action_dim} can be complete')
    return most
