"""Pi0-FAST: images and a prompt in, one token after another out. Pure functions of parameters.

Parameters are a nested dict with openpi's names, layers stacked along a first axis as openpi
stores them (and then scanned), or split by `unroll` (and then unrolled, with the cache updated in
place). Every method takes either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ros_pi0_fast.model import gemma, masks, siglip
from ros_pi0_fast.model.attention import Attend, Visible, reference
from ros_pi0_fast.model.cache import KVCache, LayerCache, init_cache
from ros_pi0_fast.model.config import Pi0FastConfig
from ros_pi0_fast.model.einsum import Weight, einsum, part
from ros_pi0_fast.model.gemma import Tokens, take_token
from ros_pi0_fast.model.layers import Layers, Params, run_layers, stack, unroll

Batch = Mapping[str, jax.Array | Mapping[str, jax.Array]]
HEAD_EQUATION = '...d,vd->...v'
"""Of outputs and the output head: logits."""


def to_float(images: jax.Array) -> jax.Array:
    """Map uint8 pixels to float32 in [-1, 1], as openpi does; floats are taken to be there."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0 * 2.0 - 1.0
    return images.astype(jnp.float32)


@dataclass(frozen=True)
class Pi0Fast:
    """The policy's network; hashable, so that it can be a static argument of jax.jit."""

    config: Pi0FastConfig
    attend: Attend = field(default=reference, kw_only=True)
    """Implementation of attention, of SigLIP's and Gemma's."""
    layer_cache: type[LayerCache] = field(default=LayerCache, kw_only=True)
    """What keeps a layer's keys and values."""
    block: Callable[..., Any] = field(default=gemma.Block, kw_only=True)
    """Makes a layer of Gemma of a config and attention: gemma.Block, or what has its `apply`."""
    remat: str | None = field(default=None, kw_only=True)
    """Policy of gradient checkpointing: see run_layers."""

    @property
    def dtype(self) -> jnp.dtype:
        """Of activations and cache."""
        return jnp.dtype(self.config.dtype)

    def init(self, rng: jax.Array) -> Params:
        """Return random float32 parameters, stacked."""
        image, llm = jax.random.split(rng)
        config = self.config
        return {'PaliGemma': {
            'img': siglip.init_siglip(config.siglip, self.attend, config.gemma.width, image),
            'llm': gemma.init_gemma(config.gemma, self.attend, llm),
        }}

    def unroll(self, params: Params) -> Params:
        """Split stacked layers into a tuple of trees, one a layer."""
        return unroll(params)

    def stack(self, params: Params) -> Params:
        """Undo `unroll`."""
        return stack(params)

    def init_cache(self, params: Params, batch: int, capacity: int, *,
                   stacked: bool = False) -> KVCache:
        """Return an empty cache: a tuple where the layers of params are one, unless `stacked`."""
        size = self.config.gemma
        return init_cache(
            depth=size.depth, batch=batch, capacity=capacity, kv_heads=size.num_kv_heads,
            head_dim=size.head_dim, dtype=self.dtype, layer=self.layer_cache,
            stacked=stacked or not isinstance(params['PaliGemma']['llm']['layers'], tuple))

    def embed_image(self, params: Params, images: jax.Array) -> jax.Array:
        """Turn pictures into tokens.

        Args:
            params: Parameters.
            images: [b, h, w, 3] at the config's image size, uint8, or float in [-1, 1].

        Returns:
            [b, n, d]

        Raises:
            ValueError: the pictures have another size.
        """
        config = self.config
        expected = (*config.siglip.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f'images: shape {images.shape}, expected (batch, '
                             f'{", ".join(map(str, expected))})')
        with jax.named_scope('siglip'):
            return siglip.embed(
                config.siglip, params['PaliGemma']['img'], to_float(images), attend=self.attend,
                output_dim=config.gemma.width, dtype=self.dtype, remat=self.remat)

    def embed_images(self, params: Params, images: Mapping[str, jax.Array]) -> jax.Array:
        """Turn the pictures of all cameras, in one batch, into tokens in the config's order.

        Args:
            params: Parameters.
            images: Camera key -> [b, h, w, 3].

        Returns:
            [b, cameras · n, d]

        Raises:
            ValueError: the cameras are not those of the config.
        """
        keys = self.config.camera_keys
        if set(images) != set(keys):
            raise ValueError(f'images: cameras {sorted(images)}, expected {list(keys)}')
        together = jnp.stack([to_float(images[key]) for key in keys], axis=1)
        tokens = self.embed_image(params, together.reshape(-1, *together.shape[2:]))
        return tokens.reshape(together.shape[0], -1, tokens.shape[-1])

    def embed_tokens(self, params: Params, ids: jax.Array) -> jax.Array:
        """Look ids int32 [b, t] up and scale them as Gemma does: [b, t, d]."""
        with jax.named_scope('embed_tokens'):
            table = params['PaliGemma']['llm']['embedder']['input_embedding']
            return gemma.embed(table, ids, self.dtype)

    def prefill(self, params: Params, embeddings: jax.Array, lengths: jax.Array, cache: KVCache,
                *, last_only: bool = False, positions: jax.Array | None = None,
                ) -> tuple[jax.Array, KVCache]:
        """Run a packed prefix through the decoder; each of its tokens sees all of it.

        Args:
            params: Parameters.
            embeddings: [b, s, d]: the tokens that exist come first in each row.
            lengths: int32 [b]: how many those are, at least 1.
            cache: Empty, of a capacity of at least s.
            last_only: Compute the output of each row's last token only.
            positions: int32 [b, s] (or [1, s]); None for 0, 1, … Decoding goes on from `lengths`.

        Returns:
            The normed output [b, s, d], or [b, 1, d] if `last_only`; and the filled cache.

        Raises:
            ValueError: the cache is too small.
        """
        with jax.named_scope('prefill'):
            size = embeddings.shape[1]
            ends = jnp.broadcast_to(lengths[:, None], embeddings.shape[:2])
            if positions is None:
                positions = jnp.arange(size, dtype=jnp.int32)[None]
            tokens = Tokens(
                positions=positions, visible=Visible(end=ends, uniform=True),
                only=lengths - 1 if last_only else None)
            hidden, layers = self._run(params, embeddings, tokens, cache)
            return hidden, cache.replace(layers=layers, length=lengths,
                                         start=jnp.zeros_like(lengths))

    def prefill_aligned(self, params: Params, embeddings: jax.Array, mask: jax.Array,
                        ar_mask: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Run a prefix through the decoder as openpi does: right-aligned, under a dense mask.

        Args:
            params: Parameters.
            embeddings: [b, s, d], as `masks.right_align` returns it, and so the next two.
            mask: bool [b, s]: the token exists.
            ar_mask: int [b, s]: see masks.attention_mask.
            cache: Empty, of a capacity of at least s.

        Returns:
            The normed output [b, s, d], whose last token is each row's last; and the filled
            cache.

        Raises:
            ValueError: the cache is too small.
        """
        with jax.named_scope('prefill'):
            lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
            tokens = Tokens(
                positions=jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1,
                visible=Visible(dense=masks.attention_mask(mask, ar_mask)))
            hidden, layers = self._run(params, embeddings, tokens, cache)
            return hidden, cache.replace(layers=layers, length=lengths,
                                         start=embeddings.shape[1] - lengths)

    def decode_step(self, params: Params, ids: jax.Array, cache: KVCache,
                    ) -> tuple[jax.Array, KVCache]:
        """Run new tokens, one or several a row, each seeing those before it and itself.

        Args:
            params: Parameters.
            ids: int32 [b, k]
            cache: With room for k more tokens (this is not checked: lengths are not static).

        Returns:
            The normed output [b, k, d], and the cache with k more tokens.
        """
        with jax.named_scope('decode_step'):
            steps = jnp.arange(ids.shape[1], dtype=jnp.int32)
            first = cache.length + self.config.first_token_offset
            tokens = Tokens(
                positions=first[:, None] + steps,
                visible=Visible(start=cache.start, end=cache.end[:, None] + steps + 1,
                                uniform=ids.shape[1] == 1),
                slot=cache.end, limit=cache.capacity + self.config.first_token_offset)
            hidden, layers = self._run(params, self.embed_tokens(params, ids), tokens, cache)
            return hidden, cache.replace(layers=layers, length=cache.length + ids.shape[1])

    def head(self, params: Params, ids: jax.Array | None = None) -> Weight:
        """Return the output head [vocabulary, d], or its rows for int32 ids [n]: [n, d]."""
        table = params['PaliGemma']['llm']['embedder']['input_embedding']
        return table if ids is None else part(table, ids)

    def project(self, hidden: jax.Array, head: Weight) -> jax.Array:
        """Return logits [..., n] of hidden [..., d] for a head [n, d].

        As in openpi they have the wider of the dtypes of hidden and head.
        """
        with jax.named_scope('logits'):
            dtype = max(hidden.dtype, head.dtype, key=lambda dtype: dtype.itemsize)
            return einsum(HEAD_EQUATION, hidden.astype(dtype), head)

    def logits(self, params: Params, hidden: jax.Array, ids: jax.Array | None = None,
               ) -> jax.Array:
        """Return logits [..., vocabulary], or those of int32 ids [n]: [..., n]."""
        return self.project(hidden, self.head(params, ids))

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Return the mean cross-entropy of each example's marked tokens, as openpi's compute_loss.

        Positions count every token, whether it exists or not. The softmax is in float32.

        Args:
            params: Parameters.
            batch: `images`: camera key -> [p, h, w, 3], uint8 or float in [-1, 1], where b is a
                multiple of p: b / p examples in a row are of the same pictures;
                `tokens` int32 [b, l]; `token_mask` bool [b, l]: the token exists, those that do
                come first; `ar_mask` [b, l]: see masks.attention_mask; `loss_mask` [b, l]: the
                token is to be predicted; optionally `image_masks`: camera key -> bool [b].

        Returns:
            float32 [b]
        """
        return self.loss_and_middle(params, batch)[0]

    def loss_and_middle(self, params: Params, batch: Batch, layer: int | None = None,
                        ) -> tuple[jax.Array, jax.Array | None]:
        """Return what `loss` does, and what the decoder has of the images after some layers.

        Args:
            params: Parameters; unrolled if `layer` is given.
            batch: See `loss`.
            layer: After how many layers; None for no interest.

        Returns:
            float32 [b]; and [b, cameras · n, d], or None.
        """
        with jax.named_scope('loss'):
            ids = batch['tokens']
            seen = self.embed_images(params, batch['images'])
            seen = jnp.repeat(seen, ids.shape[0] // seen.shape[0], axis=0)
            embeddings = jnp.concatenate([seen, self.embed_tokens(params, ids)], axis=1)[:, :-1]
            tokens = Tokens(
                positions=jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None],
                visible=self._training_visible(batch))
            hidden, middle = self._run_in_parts(params, embeddings, tokens, layer)
            logits = self.logits(params, hidden[:, 1 - ids.shape[1]:])
            log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
            picked = jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1)[..., 0]
            wanted = batch['loss_mask'][:, 1:].astype(jnp.float32)
            loss = -jnp.sum(picked * wanted, axis=-1) / jnp.maximum(jnp.sum(wanted, axis=-1), 1.0)
            return loss, None if middle is None else middle[:, :seen.shape[1]]

    def _run_in_parts(self, params: Params, x: jax.Array, tokens: Tokens, layer: int | None,
                      ) -> tuple[jax.Array, jax.Array | None]:
        """Run the decoder without a cache; return its normed output, and x after some layers."""
        middle, llm = None, params['PaliGemma']['llm']
        if layer is not None:
            first, rest = llm['layers'][:layer], llm['layers'][layer:]
            x = middle = self._run_layers(first, x, tokens, None)[0]
            llm = {**llm, 'layers': rest}
        x, _ = self._run_layers(llm['layers'], x, tokens, None)
        return gemma.Block.finish(x, llm['final_norm']), middle

    def _training_visible(self, batch: Batch) -> Visible:
        """Say who sees whom among images and tokens, the last token left out."""
        token_mask, ar_mask = batch['token_mask'][:, :-1], batch['ar_mask'][:, :-1]
        ar_mask = ar_mask.astype(jnp.int32)
        before = self.config.num_image_tokens
        if 'image_masks' not in batch:
            ends = before + masks.last_visible(token_mask, ar_mask)
            # Images share the attention of the first token, unless that is causal.
            images = before + jnp.sum(token_mask & (jnp.cumsum(ar_mask, axis=1) == 0), axis=1,
                                      keepdims=True, dtype=jnp.int32)
            return Visible(end=jnp.concatenate(
                [jnp.broadcast_to(images, (images.shape[0], before)), ends], axis=1))
        exists = [jnp.repeat(batch['image_masks'][key][:, None], self.config.siglip.num_tokens,
                             axis=1) for key in self.config.camera_keys]
        mask = jnp.concatenate([*exists, token_mask], axis=1)
        return Visible(dense=masks.attention_mask(mask, jnp.pad(ar_mask, ((0, 0), (before, 0)))))

    def _run(self, params: Params, x: jax.Array, tokens: Tokens, cache: KVCache | None,
             ) -> tuple[jax.Array, object]:
        """Run the decoder over embedded tokens; return its normed output and the layer caches."""
        if cache is not None and x.shape[1] > cache.capacity:
            raise ValueError(f'cache: capacity {cache.capacity}, expected at least '
                             f'{x.shape[1]} for as many new tokens')
        llm = params['PaliGemma']['llm']
        x, layers = self._run_layers(llm['layers'], x, tokens, cache)
        if tokens.only is not None and x.shape[1] != 1:  # Scanned layers computed all of them.
            x = take_token(x, tokens.only)
        block = self.block(self.config.gemma, self.attend)
        return block.finish(x, llm['final_norm']), layers

    def _run_layers(self, layers: Layers, x: jax.Array, tokens: Tokens, cache: KVCache | None,
                    ) -> tuple[jax.Array, object]:
        block, every = self.block(self.config.gemma, self.attend), tokens.replace(only=None)
        if cache is not None and (found := block.whole(layers, x, tokens, cache.layers)):
            return found
        return run_layers(
            lambda weights, x, layer, *, last: block.apply(
                {'params': weights}, x, tokens if last else every, layer),
            layers, x.astype(self.dtype), None if cache is None else cache.layers,
            remat=self.remat)
