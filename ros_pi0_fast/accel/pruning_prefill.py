"""The prefix without the image tokens that are pruned, for one robot and for many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner, PruningState, Ranking
from ros_pi0_fast.accel.pruning_scores import Weights
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@flax.struct.dataclass
class PrunedPrefix:
    """A prefix that has been through the decoder."""

    hidden: jax.Array
    """[1, 1, d]: output at the last token."""
    cache: KVCache
    """Image tokens that are kept come first, then the prompt."""
    ranking: Ranking


def prefill_pruned(model: Pi0Fast, pruner: AdaptiveVisualPruner, params: Params, weights: Weights,
                   images: jax.Array, prompt: jax.Array, prompt_length: jax.Array,
                   state: PruningState, reset: jax.Array | bool, cache: KVCache) -> PrunedPrefix:
    """Prune image tokens and run what is left through the decoder.

    Args:
        model: The network.
        pruner: What to keep.
        params: The network's parameters.
        weights: The pruner's; {} for a scorer that has none.
        images: [n, d]: tokens of all cameras.
        prompt: int32 [bucket]
        prompt_length: int32 []: ids of it that count.
        state: What the pruner remembers.
        reset: bool []: the instruction is a new one.
        cache: Empty, of a batch of one and room for the largest of the pruner's counts, the
            bucket, and what is to be decoded.
    """
    words = model.embed_tokens(params, prompt[None])[0]
    ranking = pruner.rank(weights, images, words, prompt_length, state, reset)

    def prefill(count: int, cache: KVCache) -> tuple[jax.Array, KVCache]:
        kept = pruner.keep(images, ranking, count)
        following = count + jnp.arange(len(prompt), dtype=jnp.int32)
        return model.prefill(
            params, jnp.concatenate([kept.tokens, words])[None],
            (count + prompt_length.astype(jnp.int32))[None], cache, last_only=True,
            positions=jnp.concatenate([kept.positions, following])[None])

    hidden, cache = switch(pruner.counts(len(images)), ranking.choice, prefill, cache)
    return PrunedPrefix(hidden=hidden, cache=cache, ranking=ranking)


def switch(counts: tuple[int, ...], choice: jax.Array, branch: Callable[..., Any],
           *operands: Any) -> Any:
    """Return branch(counts[choice], *operands), compiled for each count; only one of them runs."""
    if len(counts) == 1:
        return branch(counts[0], *operands)
    return jax.lax.switch(choice, [lambda *xs, count=count: branch(count, *xs)
                                   for count in counts], *operands)


@flax.struct.dataclass
class PackedPrefix:
    """Prefixes of several robots, each with as many image tokens as it keeps."""

    embeddings: jax.Array
    """[b, n + l, d]: tokens that exist come first."""
    positions: jax.Array
    """int32 [b, n + l]"""
    lengths: jax.Array
    """int32 [b]"""
    rankings: Ranking
    """With a leading axis b."""


def pack_pruned(pruner: AdaptiveVisualPruner, weights: Weights, images: jax.Array,
                words: jax.Array, lengths: jax.Array, states: PruningState,
                reset: jax.Array) -> PackedPrefix:
    """Prune for several robots at once, for Pi0Fast.prefill.

    Their counts differ, and so nothing is saved: this is to measure what pruning costs, not what
    it gains. Tokens and positions are those of `prefill_pruned`.

    Args:
        pruner: What to keep.
        weights: Its weights.
        images: [b, n, d]: tokens of all cameras.
        words: [b, l, d]: embeddings of the prompts.
        lengths: int32 [b]: ids of them that count.
        states: What the pruner remembers, with a leading axis b.
        reset: bool [b]: the instruction is a new one.
    """
    def pack(images: jax.Array, words: jax.Array, length: jax.Array, state: PruningState,
             reset: jax.Array) -> PackedPrefix:
        ranking = pruner.rank(weights, images, words, length, state, reset)
        prompt = jnp.arange(len(words), dtype=jnp.int32)
        exists = jnp.concatenate([jnp.arange(len(images)) < ranking.count, prompt < length])
        front = jnp.argsort(~exists, stable=True)
        embeddings = jnp.concatenate([images[ranking.slots], words])
        positions = jnp.concatenate([pruner.positions(ranking), ranking.count + prompt])
        return PackedPrefix(embeddings=embeddings[front], positions=positions[front],
                            lengths=ranking.count + length, rankings=ranking)

    return jax.vmap(pack)(images, words, lengths, states, reset)
