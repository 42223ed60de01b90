"""What a pruner learns from: the policy's loss without the pruned tokens, and its attention.

Three terms. The policy's next-token loss with tokens gated away (accel.pruning_attention.gated)
teaches what must not be missing; a token's gate is 0 or 1 by its rank, and its gradient that of
the probability that the threshold gives it (straight-through, arXiv:1308.3432), which tells pruned
tokens, too, whether they are missed. Distillation makes scores the logarithm of the attention that
the full model's action tokens pay. Sparsity keeps the mean of those probabilities at the target,
or the fraction of tokens above the threshold (`counted`), so that the threshold spends tokens
where a scene needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner
from ros_pi0_fast.accel.pruning_attention import Recorder, gated, middle_layers
from ros_pi0_fast.accel.pruning_scores import Scene
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.training.data import IMAGE, TOKEN_ARRAYS
from ros_pi0_fast.training.loop import Batch, LossFunction

VISION, TEACHER, PROGRESS = 'vision', 'teacher', 'progress'
"""Arrays beside the tokens: image tokens [m, n, d], the full model's attention [m, k, n], and how
far the curriculum is [m], 0 to 1."""
DECODER_RATE = 0.2
"""The decoder, which has learned already, learns at so much of the pruner's rate."""


@dataclass(frozen=True, kw_only=True)
class PrunerTerms:
    """Weights of the terms, and between which ratios a trained pruner is to keep."""

    task: float = 1.0
    distillation: float = 1.0
    sparsity: float = 20.0
    fewest: float = 0.25
    most: float = 0.5
    counted: bool = False
    """Sparsity counts tokens above the threshold, which a decoder that has learned to do with few
    needs: probabilities drift away from one half."""
    centred: bool = False
    """Attention is distilled as far as it is above what its place gets on average: a policy leans
    on places where there is nothing to see, too."""
    whole: int = 0
    """One of so many rows keeps everything, for a decoder that learns along; 0: none."""


@dataclass(frozen=True)
class FromTokens(Pi0Fast):
    """The network behind its vision encoder: `images` is {VISION: [p, n, d]}."""

    def embed_images(self, params: Params, images: Mapping[str, jax.Array]) -> jax.Array:
        """Return the image tokens that are given."""
        return images[VISION].astype(self.dtype)


def as_rows(arrays: Batch) -> dict[str, Any]:
    """Return a batch for Pi0Fast.loss of arrays [p, k, …]: one row an order."""
    rows = {name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()
            if name in TOKEN_ARRAYS}
    return rows | {'images': {VISION: arrays[VISION]}}


def teach(model: Pi0Fast, params: Params, arrays: Mapping[str, np.ndarray], *,
          layers: tuple[int, ...] | None = None, batch: int = 32) -> dict[str, np.ndarray]:
    """Return what a frozen policy has to say of frames: image tokens, and its attention to them.

    Args:
        model: The policy; each camera that the robot lacks is black.
        params: Its parameters.
        arrays: What data.encode_frames returns.
        layers: To listen to; None for middle_layers.
        batch: Frames at once.

    Returns:
        VISION, float16 [m, n, d], and TEACHER, float32 [m, k, n], each row summing up to 1.
    """
    layers = middle_layers(model.config.gemma.depth) if layers is None else layers
    params = model.unroll(params)
    black = np.zeros((batch, *model.config.siglip.image_size, 3), np.uint8)

    @jax.jit
    def one(params: Params, part: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        images = {key: part.get(IMAGE + key, black) for key in model.config.camera_keys}
        vision = model.embed_images(params, images)
        found = attention_of_model(model, params, part | {VISION: vision}, layers)
        return vision.astype(jnp.float16), found.reshape(*part['tokens'].shape[:2], -1)

    count = len(arrays['tokens'])
    wanted = {name: array for name, array in arrays.items()
              if name in TOKEN_ARRAYS or name.startswith(IMAGE)}
    found = []
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        found.append(jax.device_get(one(params, {
            name: array[rows] for name, array in wanted.items()})))
    vision, teacher = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    return {VISION: vision, TEACHER: teacher}


def attention_of_model(model: Pi0Fast, params: Params, arrays: Batch,
                       layers: tuple[int, ...]) -> jax.Array:
    """Return what the places that predict actions pay to image tokens: float32 [b, n].

    Args:
        model: The policy.
        params: Its parameters, unrolled.
        arrays: Tokens, and VISION.
        layers: To listen to.
    """
    rows = as_rows(arrays)
    slots = arrays[VISION].shape[1]
    predicting = jnp.pad(rows['loss_mask'][:, 1:], ((0, 0), (slots, 0))).astype(jnp.float32)
    recorder = Recorder(model.attend, layers, slots, predicting)
    FromTokens(model.config, attend=recorder).loss(params, rows)
    return recorder.mean


def changed_decoder(decoder: Params, change: Params) -> Params:
    """Return a decoder with what it has learned, see DECODER_RATE."""
    return jax.tree.map(lambda own, by: own + DECODER_RATE * by, decoder, change)


def change_of_decoder(decoder: Params, own: Params) -> Params:
    """Return what has changed in a policy's own decoder: see changed_decoder."""
    return jax.tree.map(lambda new, old: (new - old) / DECODER_RATE, decoder, own)


def pruner_loss(model: Pi0Fast, pruner: AdaptiveVisualPruner, terms: PrunerTerms,
                frozen: Params) -> LossFunction:
    """Return the loss of `{'pruner': weights}`, and of 'decoder' if the policy learns along: what
    changes in it, see changed_decoder.

    It takes the arrays of data.encode_frames, those of `teach` instead of pictures, and PROGRESS.

    Args:
        model: The policy.
        pruner: Whose scorer is trained; what it remembers of earlier frames is not used.
        terms: What counts how much.
        frozen: The policy's parameters, stacked.
    """
    def loss(params: Any, arrays: Batch, rng: jax.Array) -> tuple[jax.Array, dict]:
        llm = frozen['PaliGemma']['llm']
        if 'decoder' in params:
            llm = changed_decoder(llm, params['decoder'])
        policy = model.unroll({'PaliGemma': {**frozen['PaliGemma'], 'llm': llm}})
        rows, weights = as_rows(arrays), params['pruner']
        orders = arrays['tokens'].shape[1]
        tokens = jnp.repeat(arrays[VISION].astype(jnp.float32), orders, axis=0)
        scores, space = _scores(model, pruner, policy, weights, rows, tokens)
        wanted = jax.nn.sigmoid(scores - weights['threshold_bias'])
        progress = arrays[PROGRESS][0]
        hard = _hard_gates(pruner, tokens, scores, wanted, progress, terms, rng)
        gates = hard + wanted - jax.lax.stop_gradient(wanted)
        words = jnp.ones((len(gates), rows['tokens'].shape[1] - 1))
        student = FromTokens(model.config, remat=model.remat,
                             attend=gated(jnp.concatenate([gates, words], axis=1)))
        task = jnp.mean(student.loss(policy, rows))
        teacher = arrays[TEACHER]
        if terms.centred:
            teacher = above_average(teacher)
        distillation = _distance(teacher.reshape(scores.shape), scores)
        if pruner.scorer.space:  # Alone it cannot know of the order: it learns the mean over them.
            distillation += _distance(jnp.mean(teacher, axis=1), space[::orders])
        above = wanted
        if terms.counted:  # With the gradient of the probabilities.
            above = (wanted > 0.5) + wanted - jax.lax.stop_gradient(wanted)
        sparsity = jnp.square(jnp.mean(above) - _ratio(progress, (terms.fewest + terms.most) / 2))
        covered = jnp.mean(jnp.sum(hard * teacher.reshape(hard.shape), axis=1))
        total = (terms.task * task + terms.distillation * distillation
                 + terms.sparsity * sparsity)
        return total, {'task': task, 'distillation': distillation, 'sparsity': sparsity,
                       'kept': jnp.mean(hard), 'wanted': jnp.mean(above),
                       'wanted_deviation': jnp.std(jnp.mean(above, axis=1)),
                       'attention_kept': covered}

    return loss


def _scores(model: Pi0Fast, pruner: AdaptiveVisualPruner, policy: Params, weights: Any,
            rows: Batch, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return scores [b, n], and the spatial ones alone."""
    words = jax.lax.stop_gradient(model.embed_tokens(policy, rows['tokens']))
    lengths = jnp.sum(rows['token_mask'] & ~rows['ar_mask'].astype(bool), axis=1)

    def score(tokens: jax.Array, words: jax.Array, length: jax.Array) -> tuple:
        scene = Scene(tokens=tokens, prompt=words, prompt_length=length,
                      attention=jnp.zeros(len(tokens)), frame=jnp.zeros((), jnp.int32))
        return (pruner.scorer(weights, scene),
                pruner.scorer.relevance_to_action(weights, scene))

    return jax.vmap(score)(tokens, words, lengths)


def above_average(attention: jax.Array) -> jax.Array:
    """Return attention [m, k, n] as far as it is above what each of the n places gets on average.

    Each row sums up to 1 again, or is 0 where nothing is above.
    """
    above = jnp.maximum(attention - jnp.mean(attention, axis=(0, 1)), 0)
    return above / (jnp.sum(above, axis=-1, keepdims=True) + 1e-9)


def _ratio(progress: jax.Array, end: float) -> jax.Array:
    """Return the curriculum's ratio: from everything to `end`."""
    return 1 + progress * (end - 1)


def _hard_gates(pruner: AdaptiveVisualPruner, tokens: jax.Array, scores: jax.Array,
                wanted: jax.Array, progress: jax.Array, terms: PrunerTerms,
                rng: jax.Array) -> jax.Array:
    """Return gates 0 or 1, float32 [b, n]: of half of the rows so many as the threshold wants, of
    the others some number, both between the curriculum's fewest and most.
    """
    tokens, scores, wanted = jax.lax.stop_gradient((tokens, scores, wanted))
    rank = jax.vmap(pruner.order)(tokens, scores)
    fewest, most = (_ratio(progress, end) for end in (terms.fewest, terms.most))
    drawn = jax.random.uniform(rng, (len(rank),), minval=fewest, maxval=most)
    adaptive = jnp.clip(jnp.mean(wanted > 0.5, axis=1), fewest, most)
    row = jnp.arange(len(rank))
    ratio = jnp.where(row % 2 == 0, adaptive, drawn)
    if terms.whole:
        ratio = jnp.where(row % terms.whole == 1, 1.0, ratio)
    return (rank < jnp.ceil(ratio * rank.shape[1])[:, None]).astype(jnp.float32)


def _distance(teacher: jax.Array, scores: jax.Array) -> jax.Array:
    """Return the mean Kullback–Leibler divergence of softmax(scores) [b, n] from the teacher."""
    log_p = jax.nn.log_softmax(scores, axis=-1)
    return jnp.mean(jnp.sum(teacher * (jnp.log(teacher + 1e-9) - log_p), axis=-1))
