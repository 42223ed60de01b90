"""Many observations to many chunks in one compiled call: for simulation, where batches pay.

The robot's path is `engine`, with its switches and a batch of one. This one has no switches: it
is the plain policy (packed prefix, greedy decoding under the grammar), run for as many robots at
once as there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.codec.fast import MalformedChunkError
from ros_pi0_fast.codec.policy_codec import EncodedObservation, PolicyCodec
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.decode import DecodeOptions, DecodeState, GrammarTables, greedy
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation


class BatchPolicy:
    """Plans for up to `batch` observations at once; compiles once.

    Args:
        model: the network.
        params: its parameters; may be replaced by assigning to `params`.
        codec: of the same checkpoint.
        batch: rows of the compiled call; fewer observations are filled up, more are split.
    """

    def __init__(self, model: Pi0Fast, params: Any, codec: PolicyCodec, *, batch: int):
        self.model = model
        self.params = params
        self.codec = codec
        self.batch = batch
        fast_vocab = codec.fast.vocab_size
        self._candidates = jnp.asarray(codec.fast_to_model(np.arange(fast_vocab)), jnp.int32)
        self._tables = GrammarTables(
            count=jnp.asarray(codec.grammar.count), shortest=jnp.asarray(codec.grammar.shortest),
            next_state=jnp.asarray(codec.grammar.next_state))
        # No chunk that was trained on is longer than that, and the grammar makes it suffice.
        self._most = min(codec.grammar.max_ids, codec.profile.max_token_len)
        self._generate = jax.jit(partial(_generate, model, self._most))

    def plan(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return a chunk for each observation, in their order."""
        chunks: list[ActionChunk] = []
        for start in range(0, len(observations), self.batch):
            part = observations[start:start + self.batch]
            encoded = [self.codec.encode(observation) for observation in part]
            tokens, lengths = jax.device_get(self._generate(
                self.params, self._images(encoded), *self._prompts(encoded),
                jnp.asarray(self.codec.action_prefix_ids), self._candidates, self._tables))
            chunks += [self._chunk(*row) for row in zip(part, encoded, tokens, lengths,
                                                        strict=False)]
        return chunks

    def _images(self, encoded: Sequence[EncodedObservation]) -> dict[str, np.ndarray]:
        """Stack pictures to uint8 [batch, h, w, 3] per camera; absent cameras are black."""
        height, width = self.codec.profile.image_size
        stacks = {key: np.zeros((self.batch, height, width, 3), np.uint8)
                  for key in self.model.config.camera_keys}
        for row, item in enumerate(encoded):
            for key, image in item.images.items():
                stacks[key][row] = resize_with_pad(image, height, width)
        return stacks

    def _prompts(self, encoded: Sequence[EncodedObservation]) -> tuple[np.ndarray, np.ndarray]:
        """Stack prompts to int32 [batch, max_token_len] and their lengths [batch], at least 1."""
        prompts = np.zeros((self.batch, self.codec.profile.max_token_len), np.int32)
        lengths = np.ones(self.batch, np.int32)
        for row, item in enumerate(encoded):
            prompts[row, :len(item.prompt_ids)] = item.prompt_ids
            lengths[row] = len(item.prompt_ids)
        return prompts, lengths

    def _chunk(self, observation: Observation, encoded: EncodedObservation, tokens: np.ndarray,
               length: int) -> ActionChunk:
        ids = tokens[:length]
        try:
            actions = self.codec.decode(ids, encoded)
        except MalformedChunkError as error:
            return ActionChunk(actions=np.zeros((0, self.codec.profile.action_dim), np.float32),
                               valid=False, reason=str(error), stamp_ns=observation.stamp_ns,
                               token_ids=ids)
        return ActionChunk(actions=actions, valid=True, stamp_ns=observation.stamp_ns,
                           token_ids=ids)


def _generate(model: Pi0Fast, max_ids: int, params: Any, images: Mapping[str, jax.Array],
              prompts: jax.Array, prompt_lengths: jax.Array, action_prefix: jax.Array,
              candidates: jax.Array, tables: GrammarTables) -> tuple[jax.Array, jax.Array]:
    """Prefill images and prompts, feed 'Action: ', and decode under the grammar.

    Returns:
        Model ids int32 [b, max_ids] and how many of each row count, int32 [b].
    """
    pictures = model.embed_images(params, images)
    embeddings = jnp.concatenate([pictures, model.embed_tokens(params, prompts)], axis=1)
    batch, size = embeddings.shape[:2]
    cache = model.init_cache(params, batch, size + len(action_prefix) + max_ids)
    _, cache = model.prefill(params, embeddings, pictures.shape[1] + prompt_lengths, cache,
                             last_only=True)
    state = decode_chunks(model, max_ids, params, cache, action_prefix, candidates, tables)
    return state.tokens, state.length


def decode_chunks(model: Pi0Fast, max_ids: int, params: Any, cache: KVCache,
                  action_prefix: jax.Array, candidates: jax.Array,
                  tables: GrammarTables) -> DecodeState:
    """Feed 'Action: ' and decode under the grammar.

    Args:
        model: the network.
        max_ids: most ids of a row.
        params: its parameters.
        cache: of the prefixes, with room for what follows.
        action_prefix: int32 [k]: ids of 'Action: '.
        candidates: int32 [n]: model ids of the FAST ids.
        tables: the grammar over these.
    """
    constant = jnp.broadcast_to(action_prefix, (cache.length.shape[0], len(action_prefix)))
    hidden, cache = model.decode_step(params, constant, cache)
    return greedy(model, params, hidden[:, -1:], cache, candidates=candidates, grammar=tables,
                  options=DecodeOptions(max_ids=max_ids, eos_id=None))
