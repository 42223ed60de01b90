"""What the drafters learn from: the chunks that the target itself decodes, and what it thought.

A drafter is there to guess the target, so it is the target's own greedy ids that it learns, not
the expert's (sequence-level distillation, Kim and Rush, arXiv:1606.07947; for speculation:
DistillSpec, Zhou et al., arXiv:2310.08461).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.model.decode import DecodeOptions, GrammarTables, Progress, greedy
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.training.data import IMAGE

Arrays = Mapping[str, np.ndarray]


class TargetRecorder:
    """Runs a policy over frames and writes down what a drafter wants to know.

    Args:
        model: The policy's network.
        params: Its parameters, unrolled.
        codec: Of the same checkpoint.
        batch: Pictures at once.
        layers: How many of the last layers' keys and values are kept.
    """

    def __init__(self, model: Pi0Fast, params: Params, codec: PolicyCodec, *, batch: int = 8,
                 layers: int = 1):
        self._model, self._params, self._codec = model, params, codec
        self._batch, self._layers = batch, layers
        grammar = codec.grammar
        self._candidates = codec.fast_to_model(np.arange(codec.fast.vocab_size))
        self._tables = GrammarTables(
            count=jnp.asarray(grammar.count), next_state=jnp.asarray(grammar.next_state),
            shortest=jnp.asarray(grammar.shortest))
        self._most = min(grammar.max_ids, codec.profile.max_token_len)
        self._run = jax.jit(self._record)

    def __call__(self, parts: Iterable[Arrays]) -> dict[str, Any]:
        """Record frames.

        Args:
            parts: What data.encode_frames returns, each.

        Returns:
            On the device, for each of r rows, an order of a frame: `columns` int32 [r, t], FAST
            ids; `count` int32 [r]; `remaining` int32 [r, t], coefficients to go after each;
            `prefix` int32 [r], tokens before the first of them; `hidden` float16 [r, t, d], the
            output that each was chosen from; `opening` float16 [r, d], that at the prompt's end;
            `keys` and `values` float16 [r, layers, s, kv_heads, head_dim] of the last layers, slot
            by slot; `prompt` int32 [r, l], padded, `prompt_length` int32 [r], `picture` int32 [r],
            the row of `vision`; and `vision` float16 [m, n, d], the image tokens.
        """
        found: dict[str, list] = {}
        pictures = 0
        for arrays in parts:
            for start in range(0, len(arrays['tokens']), self._batch):
                part = self._one(arrays, start, pictures)
                pictures += len(part['vision'])
                for name, array in part.items():
                    found.setdefault(name, []).append(array)
        # One by one, so that no more than one is there twice.
        whole = {name: jnp.concatenate(found.pop(name)) for name in list(found)}
        return self._cut(whole)

    def _one(self, arrays: Arrays, start: int, pictures: int) -> dict[str, jax.Array]:
        """Record the frames from `start` on, before which there were so many pictures."""
        count = min(self._batch, len(arrays['tokens']) - start)
        rows = np.minimum(np.arange(start, start + self._batch), len(arrays['tokens']) - 1)
        tokens, learned = arrays['tokens'][rows], arrays['loss_mask'][rows]
        lengths = np.argmax(learned, axis=-1).astype(np.int32).reshape(-1)
        prompts = np.where(np.arange(tokens.shape[-1]) < lengths[:, None],
                           tokens.reshape(-1, tokens.shape[-1]), 0)
        images = {name.removeprefix(IMAGE): array[rows] for name, array in arrays.items()
                  if name.startswith(IMAGE)}
        orders = tokens.shape[1]
        result = self._run(self._params, images, prompts, lengths)
        vision = result.pop('vision')[:count]
        mine = {'prompt': jnp.asarray(prompts), 'prompt_length': jnp.asarray(lengths)}
        return {name: array[:count * orders] for name, array in (result | mine).items()} | {
            'vision': vision,
            'picture': jnp.asarray(pictures + np.repeat(np.arange(count, dtype=np.int32), orders))}

    def _record(self, params: Params, images: Mapping[str, jax.Array], prompts: jax.Array,
                lengths: jax.Array) -> dict[str, Any]:
        model, before = self._model, jnp.asarray(self._codec.action_prefix_ids)
        candidates = jnp.asarray(self._candidates, jnp.int32)
        black = jnp.zeros((len(next(iter(images.values()))), *model.config.siglip.image_size, 3),
                          jnp.uint8)
        vision = model.embed_images(params, {key: images.get(key, black)
                                             for key in model.config.camera_keys})
        seen = jnp.repeat(vision, prompts.shape[0] // vision.shape[0], axis=0)
        embeddings = jnp.concatenate([seen, model.embed_tokens(params, prompts)], axis=1)
        batch, size = embeddings.shape[:2]
        cache = model.init_cache(params, batch, size + len(before) + self._most)
        opening, cache = model.prefill(params, embeddings, seen.shape[1] + lengths, cache,
                                       last_only=True)
        hidden, cache = model.decode_step(
            params, jnp.broadcast_to(before, (batch, len(before))), cache)
        state = greedy(model, params, hidden[:, -1:], cache, candidates=candidates,
                       grammar=self._tables,
                       options=DecodeOptions(max_ids=self._most, eos_id=None))
        # Once more, all at once, for the outputs.
        later, after = model.decode_step(params, state.tokens[:, :-1], cache)
        columns = jnp.argmax(state.tokens[..., None] == candidates, axis=-1).astype(jnp.int32)
        read = [layer.read() for layer in after.layers[-self._layers:]]
        keys, values = (jnp.stack(each, axis=1) for each in zip(*read, strict=True))
        half = jnp.float16
        return {'vision': vision.astype(half), 'opening': opening[:, 0].astype(half),
                'columns': columns, 'count': state.length,
                'remaining': self._remaining(columns),
                'prefix': cache.length, 'keys': keys.astype(half), 'values': values.astype(half),
                'hidden': jnp.concatenate([hidden[:, -1:], later], axis=1).astype(half)}

    def _remaining(self, columns: jax.Array) -> jax.Array:
        """Return how many coefficients are to go after each of columns int32 [r, t]."""
        def step(now: Progress, column: jax.Array) -> tuple[Progress, jax.Array]:
            now = now.advance(self._tables, column)
            return now, now.remaining

        _, remaining = jax.lax.scan(step, Progress.start(self._tables, len(columns)), columns.T)
        return jnp.maximum(remaining.T, 0)

    def _cut(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Leave out the places that no row uses."""
        ids = int(arrays['count'].max())
        slots = int((arrays['prefix'] + arrays['count']).max())
        arrays |= {name: arrays[name][:, :ids] for name in ('columns', 'hidden', 'remaining')}
        for name in ('keys', 'values'):
            arrays[name] = arrays[name][:, :, :slots]
        return arrays
