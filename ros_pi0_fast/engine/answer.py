"""One inference: a program run on an observation, and its ids turned into actions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ros_pi0_fast.codec.fast import MalformedChunkError
from ros_pi0_fast.codec.policy_codec import EncodedObservation, PolicyCodec
from ros_pi0_fast.engine.choice import FIXED
from ros_pi0_fast.engine.program import Clock, Program
from ros_pi0_fast.engine.pruning import PruningMemory
from ros_pi0_fast.types import ActionChunk, Observation


@dataclass(kw_only=True)
class Memory:
    """What one inference leaves to the next one of the same robot."""

    pruning: PruningMemory = field(default_factory=PruningMemory)
    last: ActionChunk | None = None
    """The last chunk, if it was valid."""
    instruction: str = ''
    """That it answers."""


def answer(program: Program, codec: PolicyCodec, observation: Observation,
           memory: Memory) -> ActionChunk:
    """Answer an observation.

    Args:
        program: To run.
        codec: Of the same checkpoint.
        observation: Its input.
        memory: Brought up to date.

    Returns:
        A chunk; not valid, without actions and with a reason, if the model's answer is none.

    Raises:
        ObservationError: the observation does not fit the robot profile.
    """
    clock = Clock()
    encoded = codec.encode(observation)
    before = memory.last if memory.instruction == observation.instruction else None
    drafter = program.decoding.drafter(before, observation)
    preprocess_ms = clock.lap()
    ids, stats = program.run(encoded, clock, memory.pruning, observation.instruction, drafter)
    actions, reason = _actions(ids, encoded, program, codec)
    stats = replace(stats, preprocess_ms=preprocess_ms, postprocess_ms=clock.lap(),
                    total_ms=clock.total)
    chunk = ActionChunk(actions=actions, valid=not reason, reason=reason, token_ids=ids,
                        stamp_ns=observation.stamp_ns, stats=stats)
    memory.instruction, memory.last = observation.instruction, chunk if chunk.valid else None
    return chunk


def _actions(ids: np.ndarray, encoded: EncodedObservation, program: Program, codec: PolicyCodec,
             ) -> tuple[np.ndarray, str]:
    """Decode ids; return actions in robot units and '', or none and the reason."""
    nothing = np.zeros((0, codec.profile.action_dim), np.float32)
    if program.choice.malformed == FIXED:
        return nothing, 'fixed: a given number of ids, for measuring only'
    try:
        actions = codec.decode(ids, encoded)
    except MalformedChunkError as error:
        return nothing, f'malformed: {error}'
    if not np.isfinite(actions).all():
        return nothing, 'not finite: the actions have NaN or infinity in them'
    return actions, ''
