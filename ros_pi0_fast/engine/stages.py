"""The stages of an inference as pure functions: resize, vision, prefill, decode.

A batch of one throughout. Between the stages arrays stay on the device; the host only waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.decode import DecodeOptions, GrammarTables, greedy
from ros_pi0_fast.model.einsum import Weight
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.model.resize import resize_with_pad


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The compiled functions' static side; hashable."""

    model: Pi0Fast
    cameras: tuple[str, ...]
    """Keys of the cameras that the robot has; the others of the model are black."""
    capacity: int
    """Slots of the key-value cache."""
    max_ids: int
    """Most ids to decode."""
    eos_id: int
    constrained: bool
    """Only ids from which a whole chunk can still come are chosen."""

    def resize(self, images: tuple[jax.Array, ...]) -> jax.Array:
        """Bring pictures uint8 [h, w, 3] of any sizes to the model's: [cameras, h, w, 3]."""
        with jax.named_scope('resize'):
            size = self.model.config.siglip.image_size
            return jnp.stack([resize_with_pad(image, *size) for image in images])

    def vision(self, params: Params, images: jax.Array) -> jax.Array:
        """Turn pictures uint8 [cameras, h, w, 3] into tokens [cameras, n, d]."""
        return self.model.embed_image(params, images)

    def prefill(self, params: Params, seen: jax.Array, black: jax.Array, prompt: jax.Array,
                prompt_length: jax.Array) -> tuple[jax.Array, KVCache]:
        """Run the packed prefix through the decoder.

        Args:
            params: Parameters.
            seen: [cameras, n, d]: tokens of the cameras that exist.
            black: [n, d]: tokens of a black picture, for those that do not.
            prompt: int32 [bucket].
            prompt_length: int32 []: ids of it that count.

        Returns:
            The output [1, 1, d] at the last token, and the filled cache.
        """
        model, rows = self.model, dict(zip(self.cameras, seen, strict=True))
        images = jnp.concatenate([rows.get(key, black) for key in model.config.camera_keys])
        embeddings = jnp.concatenate([images, model.embed_tokens(params, prompt[None])[0]])[None]
        cache = model.init_cache(params, 1, self.capacity)
        return model.prefill(params, embeddings, (images.shape[0] + prompt_length)[None], cache,
                             last_only=True)

    def decode(self, params: Params, head: Weight, candidates: jax.Array, tables: GrammarTables,
               constant: jax.Array, hidden: jax.Array, cache: KVCache,
               ) -> tuple[jax.Array, jax.Array, jax.Array, KVCache]:
        """Decode ids until the chunk is complete or EOS.

        Args:
            params: Parameters.
            head: Rows of the output head: of the FAST ids if constrained, else all.
            candidates: int32 [n]: model ids of these rows.
            tables: Of the FAST grammar, over the candidates; not looked at if unconstrained.
            constant: int32 [c]: ids of 'Action: ', which a constrained chunk begins with.
            hidden: [1, 1, d]: output at the prefix's last token.
            cache: Of the prefix; its buffers are taken over.

        Returns:
            Ids int32 [max_ids], how many count, the steps done, and the cache (which is returned
            so that its buffers can be the ones of the argument).
        """
        options = DecodeOptions(max_ids=self.max_ids,
                                eos_id=None if self.constrained else self.eos_id)
        if not self.constrained:
            state = greedy(self.model, params, hidden, cache, options=options, head=head)
        else:
            hidden, cache = self.model.decode_step(params, constant[None], cache)
            state = greedy(self.model, params, hidden[:, -1:], cache, options=options, head=head,
                           candidates=candidates, grammar=tables)
        return state.tokens[0], state.length[0], state.step, state.cache
