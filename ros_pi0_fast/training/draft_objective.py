"""What drafters learn by: the cross-entropy of the target's own ids."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel import drafter_head
from ros_pi0_fast.accel.draft_model import map_images
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.config import Pi0FastConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.training.loop import Batch, LossFunction


def head_loss(config: Pi0FastConfig, ahead: int, before: int, dtype: str = 'float32',
              ) -> LossFunction:
    """Return the loss of a head: see drafter_head.

    At each place of a chunk, and before its first, it is run `ahead` times, on its own outputs and
    on the target's ids, as it is when it is used: an id that is wrong ends what it is asked for.

    Args:
        config: Of the target.
        ahead: How often.
        before: Ids of 'Action: ', which are not there yet before the first place.
        dtype: Of activations.

    Returns:
        A loss of arrays of draft_data.TargetRecorder. Its metrics say how often the first, the
        second, … guess was right, given the ids before.
    """
    def loss(params: Any, arrays: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        del rng
        none, whole = len(params['ids']) - 1, len(params['place']) - 1
        x = jnp.concatenate([arrays['opening'][:, None], arrays['hidden']], axis=1).astype(dtype)
        before_first = ((0, 0), (1, 0))
        columns = jnp.pad(arrays['columns'], before_first, constant_values=none)
        to_go = jnp.pad(arrays['remaining'], before_first, constant_values=whole)
        depth = drafter_head.depth_of(params)
        layers = [tuple(arrays[name][:, index - depth].astype(dtype)
                        for name in ('keys', 'values')) for index in range(depth)]
        place = jnp.arange(x.shape[1], dtype=jnp.int32)
        end = arrays['prefix'][:, None] + jnp.where(place > 0, place - 1, -before)
        total, metrics = jnp.zeros(()), {}
        for index in range(ahead):
            ids, remaining = (jnp.roll(each, -index, axis=1) for each in (columns, to_go))
            x = drafter_head.advance(params, config.gemma, folded, x, ids, remaining, layers, end,
                                     end + config.first_token_offset + index)
            there = place + index < arrays['count'][:, None]
            each, right = _judge(drafter_head.logits(params, x), jnp.roll(ids, -1, axis=1), there)
            total, metrics[f'right_{index + 1}'] = total + each, right
        return total / ahead, metrics

    return loss


def model_loss(model: Pi0Fast, vision: jax.Array, candidates: jax.Array, before: jax.Array,
               ) -> LossFunction:
    """Return the loss of a small decoder: see draft_model.

    Args:
        model: The small decoder.
        vision: [m, n, d]: image tokens of all pictures.
        candidates: int32 [columns]: model ids of the FAST ids.
        before: int32 [p]: model ids of 'Action: '.

    Returns:
        See head_loss; there is one metric, since each guess costs the same.
    """
    def loss(params: Any, arrays: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        del rng
        images = map_images(params, vision[arrays['picture']].astype(model.dtype))
        prompt = model.embed_tokens(params, arrays['prompt'])
        ids = jnp.concatenate([jnp.broadcast_to(before, (len(images), len(before))),
                               candidates[arrays['columns']]], axis=1)
        size = images.shape[1] + prompt.shape[1]
        cache = model.init_cache(params, len(images), size + ids.shape[1])
        _, cache = model.prefill(params, jnp.concatenate([images, prompt], axis=1),
                                 images.shape[1] + arrays['prompt_length'], cache)
        hidden, _ = model.decode_step(params, ids, cache)
        scores = model.project(hidden[:, len(before) - 1:-1], model.head(params, candidates))
        place = jnp.arange(scores.shape[1], dtype=jnp.int32)
        each, right = _judge(scores, arrays['columns'], place < arrays['count'][:, None])
        return each, {'right_1': right}

    return loss


def _judge(scores: jax.Array, ids: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean cross-entropy of ids [b, t] where they are there, and how many are right."""
    log_p = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
    count = jnp.maximum(jnp.sum(there), 1).astype(jnp.float32)
    right = jnp.sum(there & (jnp.argmax(scores, axis=-1) == ids)).astype(jnp.float32) / count
    return -jnp.sum(jnp.where(there, picked, 0.0)) / count, right
