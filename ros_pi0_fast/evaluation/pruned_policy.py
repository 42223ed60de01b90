"""A policy that prunes image tokens, for many robots at once: to measure what pruning costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner, PruningState
from ros_pi0_fast.accel.pruning_attention import attention_of_actions
from ros_pi0_fast.accel.pruning_prefill import pack_pruned
from ros_pi0_fast.accel.pruning_scores import Weights
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.evaluation.batch_policy import BatchPolicy, decode_chunks
from ros_pi0_fast.model.decode import GrammarTables
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation


@flax.struct.dataclass
class _Planned:
    tokens: jax.Array
    """int32 [b, ids]"""
    lengths: jax.Array
    """int32 [b]: ids that count."""
    kept: jax.Array
    """int32 [b]: image tokens that were kept."""
    states: PruningState
    """Leading axis b."""


class PrunedPolicy(BatchPolicy):
    """Plans for `batch` robots, each with a memory of its own; compiles once.

    Args:
        model: the network, with unrolled parameters.
        params: these.
        codec: of the same checkpoint.
        pruner: what is kept.
        weights: of its scorer.
        batch: robots.
    """

    def __init__(self, model: Pi0Fast, params: Any, codec: PolicyCodec, *,
                 pruner: AdaptiveVisualPruner, weights: Weights, batch: int):
        super().__init__(model, params, codec, batch=batch)
        config = model.config
        one = pruner.init_state(config.num_image_tokens, config.gemma.width, model.dtype)
        self._states = jax.tree.map(lambda x: jnp.stack([x] * batch), one)
        self._weights = weights
        self._generate = jax.jit(partial(_generate, model, pruner, self._most))
        self.kept: list[int] = []
        """Image tokens that were kept for each chunk so far."""

    def plan(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return a chunk for each observation, of which nothing that came before is known."""
        chunks: list[ActionChunk] = []
        for start in range(0, len(observations), self.batch):
            part = observations[start:start + self.batch]
            idle = [None] * (self.batch - len(part))
            chunks += self.plan_all([*part, *idle], [True] * self.batch)[:len(part)]
        return chunks

    def plan_all(self, observations: Sequence[Observation | None],
                 new: Sequence[bool]) -> list[ActionChunk | None]:
        """Return a chunk for each robot.

        Args:
            observations: one a robot; None for a robot that does nothing.
            new: the robot is in another scene, or has another instruction, than before.
        """
        going = [robot for robot, seen in enumerate(observations) if seen is not None]
        encoded = {robot: self.codec.encode(observations[robot]) for robot in going}
        rows = [encoded.get(robot, encoded[going[0]]) for robot in range(self.batch)]
        planned = self._generate(
            self.params, self._weights, self._images(rows), *self._prompts(rows), self._states,
            np.asarray(new), jnp.asarray(self.codec.action_prefix_ids), self._candidates,
            self._tables)
        self._states = planned.states
        tokens, lengths, kept = jax.device_get((planned.tokens, planned.lengths, planned.kept))
        self.kept += kept[going].tolist()
        return [self._chunk(observations[robot], rows[robot], tokens[robot], lengths[robot])
                if robot in encoded else None for robot in range(self.batch)]


def _generate(model: Pi0Fast, pruner: AdaptiveVisualPruner, max_ids: int, params: Any,
              weights: Weights, images: Mapping[str, jax.Array], prompts: jax.Array,
              prompt_lengths: jax.Array, states: PruningState, reset: jax.Array,
              action_prefix: jax.Array, candidates: jax.Array, tables: GrammarTables) -> _Planned:
    """Prune, prefill, decode, and listen to what the actions paid attention to."""
    pictures = model.embed_images(params, images)
    words = model.embed_tokens(params, prompts)
    packed = pack_pruned(pruner, weights, pictures, words, prompt_lengths, states, reset)
    batch, size = packed.embeddings.shape[:2]
    cache = model.init_cache(params, batch, size + len(action_prefix) + 2 * max_ids)
    _, cache = model.prefill(params, packed.embeddings, packed.lengths, cache, last_only=True,
                             positions=packed.positions)
    decoded = decode_chunks(model, max_ids, params, cache, action_prefix, candidates, tables)
    states = packed.rankings.state
    if pruner.scorer.by_history:
        paid = attention_of_actions(
            model, params, decoded.tokens, decoded.length, decoded.cache,
            packed.lengths + len(action_prefix), pictures.shape[1])
        states = jax.vmap(pruner.attend)(states, packed.rankings, paid)
    return _Planned(tokens=decoded.tokens, lengths=decoded.length, states=states,
                    kept=packed.rankings.count)
