"""A drafter that is a head on the target: its last output, and what it remembers of the prefix.

A few blocks that are run once for each id: the target's last output and the id chosen after it go
in, what comes out stands for the target's next output, and so on (EAGLE, Li et al.,
arXiv:2401.15077). It has no cache: its blocks look at the keys and values of the target's last
layers (GliDe, Du et al., arXiv:2402.02082), which hold what the target found in the pictures; what
was drafted since goes from one id to the next through the output alone, as in a recurrent network
(ReDrafter, Cheng et al., arXiv:2403.09919). So there is nothing to prefill, and nothing to take
back. It is told which coefficient comes next, which an id does not say. The first ids it guesses
from the output at the end of the prompt, after an id that stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafters import Prefix, Proposal, Rules, SoFar
from ros_pi0_fast.model.attention import Attend, Visible, folded
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.gemma import NORM_EPSILON, rotate

Weights = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HeadSize:
    """What makes a head fit a policy."""

    columns: int
    """FAST ids."""
    coefficients: int
    """Of a chunk."""
    hidden: int
    """Width of the feed-forward layers."""
    depth: int
    """Blocks, each looking at one of the target's last layers."""


def init_head(gemma: GemmaConfig, size: HeadSize, rng: jax.Array) -> dict[str, Any]:
    """Return random float32 weights."""
    d, heads = gemma.width, gemma.num_heads * gemma.head_dim
    keys = iter(jax.random.split(rng, 4 + 4 * size.depth))

    def matrix(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) * shape[0] ** -0.5

    columns = size.columns + 1  # And one for what is before the first id.
    weights: dict[str, Any] = {
        'ids': matrix(columns, d) * (columns / d) ** 0.5, 'join': matrix(2 * d, d),
        'place': jnp.zeros((size.coefficients + 1, d)), 'out': matrix(d, size.columns),
        'out_scale': jnp.zeros((d,))}
    return weights | {f'block{index}': {
        'query': matrix(d, heads), 'read': matrix(heads, d), 'mlp_in': matrix(d, size.hidden),
        'mlp_out': matrix(size.hidden, d), 'query_scale': jnp.zeros((d,)),
        'mlp_scale': jnp.zeros((d,))} for index in range(size.depth)}


def depth_of(weights: Weights) -> int:
    """Return how many blocks there are."""
    return sum(name.startswith('block') for name in weights)


def advance(weights: Weights, gemma: GemmaConfig, attend: Attend, x: jax.Array,
            columns: jax.Array, remaining: jax.Array, layers: Sequence[tuple],
            end: jax.Array, positions: jax.Array, limit: int | None = None) -> jax.Array:
    """Return what stands for the target's output after some ids.

    Args:
        weights: See init_head.
        gemma: The target's decoder.
        attend: Implementation of attention.
        x: [b, t, d]: the target's outputs before the ids, or this function's.
        columns: int32 [b, t]: the ids; HeadSize.columns where there is none.
        remaining: int32 [b, t]: coefficients to go after them.
        layers: Keys and values of the target's last layers, one for each block.
        end: int32 [b, t]: one past the last slot that counts.
        positions: int32 [b, t]: of the ids, for the rotary embedding.
        limit: See model.gemma.rotate.

    Returns:
        [b, t, d]
    """
    ids = weights['ids'][columns].astype(x.dtype)
    x = (jnp.concatenate([x, ids], axis=-1) @ weights['join'].astype(x.dtype)
         + weights['place'][remaining].astype(x.dtype))
    for index, (keys, values) in enumerate(layers):
        x = _block(weights[f'block{index}'], gemma, attend, x, keys, values, end, positions, limit)
    return x


def _block(weights: Weights, gemma: GemmaConfig, attend: Attend, x: jax.Array, keys: jax.Array,
           values: jax.Array, end: jax.Array, positions: jax.Array, limit: int | None,
           ) -> jax.Array:
    heads = (*x.shape[:2], gemma.num_heads, gemma.head_dim)
    q = (_normed(x, weights['query_scale']) @ weights['query'].astype(x.dtype)).reshape(heads)
    q = (rotate(q, positions, limit) * gemma.head_dim ** -0.5).astype(x.dtype)
    seen = attend(q, keys, values, Visible(end=end, uniform=x.shape[1] == 1),
                  score_dtype=jnp.float32)
    x = x + seen.reshape(*x.shape[:2], -1).astype(x.dtype) @ weights['read'].astype(x.dtype)
    wide = jax.nn.gelu(_normed(x, weights['mlp_scale']) @ weights['mlp_in'].astype(x.dtype))
    return x + wide @ weights['mlp_out'].astype(x.dtype)


def logits(weights: Weights, x: jax.Array) -> jax.Array:
    """Return float32 logits [..., columns] of outputs [..., d]."""
    scores = _normed(x, weights['out_scale']) @ weights['out'].astype(x.dtype)
    return scores.astype(jnp.float32)


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + NORM_EPSILON) * (1 + scale)).astype(x.dtype)


@flax.struct.dataclass
class HeadDrafter:
    """Proposes what a head on the target finds likeliest, or draws it, as the rules say."""

    weights: Weights
    """See init_head."""
    gemma: GemmaConfig = flax.struct.field(pytree_node=False)
    """The target's decoder."""
    first_token_offset: int = flax.struct.field(pytree_node=False)
    """See Pi0FastConfig."""
    attend: Attend = flax.struct.field(pytree_node=False, default=folded)

    def start(self, prefix: Prefix | None, rules: Rules, length: int,
              key: jax.Array | None) -> jax.Array | None:
        """Remember the key: see Drafter."""
        del prefix, rules, length
        return key

    def propose(self, state: jax.Array | None, so_far: SoFar, rules: Rules, length: int,
                ) -> tuple[Proposal, jax.Array | None]:
        """Propose id after id: see Drafter."""
        layers = [layer.read() for layer in so_far.cache.layers[-depth_of(self.weights):]]
        first = so_far.cache.length[0] + self.first_token_offset
        end = so_far.cache.end[:, None]
        limit = so_far.cache.capacity + self.first_token_offset

        def step(carry: tuple, index: jax.Array) -> tuple:
            x, column, progress, key = carry
            remaining = jnp.zeros((1, 1), jnp.int32) if progress is None else (
                progress.remaining[None])
            x = advance(self.weights, self.gemma, self.attend, x, column[None], remaining, layers,
                        end, (first + index)[None, None], limit)
            scores = rules.mask(logits(self.weights, x[:, 0]), progress,
                                (so_far.count + index)[None])
            column, probabilities, key = rules.choose(scores, key)
            return ((x, column, rules.advance(progress, column), key),
                    Proposal(ids=column[0], probabilities=probabilities))

        with jax.named_scope('draft'):
            last = jax.lax.dynamic_slice(so_far.ids, (so_far.count - 1,), (1,))
            last = jnp.where(so_far.count > 0, last, len(self.weights['ids']) - 1)
            carry = (so_far.hidden[None, None], last, so_far.progress, state)
            (_, _, _, state), choices = jax.lax.scan(  # Unrolled: see Rules.along.
                step, carry, jnp.arange(length, dtype=jnp.int32), unroll=True)
            return choices, state
