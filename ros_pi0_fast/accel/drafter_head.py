"""A drafter that is a head on the target: its last output, and what it remembers of the prefix.

One block that is run once for each id: the target's last output and the id chosen after it go in,
what comes out stands for the target's next output, and so on (EAGLE, Li et al., arXiv:2401.15077).
It has no cache: it looks at the keys and values of the target's last layer (GliDe, Du et al.,
arXiv:2402.02082), which hold what the target found in the pictures; what was drafted since goes
from one id to the next through the output alone, as in a recurrent network (ReDrafter, Cheng et
al., arXiv:2403.09919). So there is nothing to prefill, and nothing to take back.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafters import Prefix, Proposal, Rules, SoFar
from ros_pi0_fast.model.attention import Attend, Visible, folded
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.gemma import NORM_EPSILON, rotate

Weights = Mapping[str, jax.Array]


def init_head(gemma: GemmaConfig, columns: int, hidden: int, rng: jax.Array,
              ) -> dict[str, jax.Array]:
    """Return random float32 weights.

    Args:
        gemma: The target's decoder.
        columns: FAST ids.
        hidden: Width of the feed-forward layer.
        rng: Key.
    """
    d, heads = gemma.width, gemma.num_heads * gemma.head_dim
    shapes = {'ids': (columns, d), 'join': (2 * d, d), 'query': (d, heads), 'read': (heads, d),
              'mlp_in': (d, hidden), 'mlp_out': (hidden, d), 'out': (columns, d)}
    keys = dict(zip(shapes, jax.random.split(rng, len(shapes)), strict=True))
    weights = {name: jax.random.normal(keys[name], shape) * d ** -0.5
               for name, shape in shapes.items()}
    weights['mlp_out'] *= (d / hidden) ** 0.5
    return weights | {name: jnp.zeros((d,)) for name in ('query_scale', 'mlp_scale', 'out_scale')}


def block(weights: Weights, gemma: GemmaConfig, attend: Attend, x: jax.Array, columns: jax.Array,
          keys: jax.Array, values: jax.Array, end: jax.Array, positions: jax.Array) -> jax.Array:
    """Return what stands for the target's output after some ids.

    Args:
        weights: See init_head.
        gemma: The target's decoder.
        attend: Implementation of attention.
        x: [b, t, d]: the target's outputs before the ids, or this function's.
        columns: int32 [b, t]: the ids.
        keys: Of the target's last layer, as its cache holds them.
        values: Likewise.
        end: int32 [b, t]: one past the last slot that counts.
        positions: int32 [b, t]: of the ids, for the rotary embedding.

    Returns:
        [b, t, d]
    """
    ids = weights['ids'][columns].astype(x.dtype)
    x = jnp.concatenate([x, ids], axis=-1) @ weights['join'].astype(x.dtype)
    heads = (*x.shape[:2], gemma.num_heads, gemma.head_dim)
    q = (_normed(x, weights['query_scale']) @ weights['query'].astype(x.dtype)).reshape(heads)
    q = (rotate(q, positions) * gemma.head_dim ** -0.5).astype(x.dtype)
    seen = attend(q, keys, values, Visible(end=end, uniform=x.shape[1] == 1),
                  score_dtype=jnp.float32)
    x = x + seen.reshape(*x.shape[:2], -1).astype(x.dtype) @ weights['read'].astype(x.dtype)
    wide = jax.nn.gelu(_normed(x, weights['mlp_scale']) @ weights['mlp_in'].astype(x.dtype))
    return x + wide @ weights['mlp_out'].astype(x.dtype)


def logits(weights: Weights, x: jax.Array) -> jax.Array:
    """Return float32 logits [..., columns] of outputs [..., d]."""
    scores = _normed(x, weights['out_scale']) @ weights['out'].T.astype(x.dtype)
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
        layer = so_far.cache.layers[-1]
        keys, values = layer.read()
        first = so_far.cache.length[0] + self.first_token_offset
        end = so_far.cache.end[:, None]

        def step(carry: tuple, index: jax.Array) -> tuple:
            x, column, progress, key = carry
            x = block(self.weights, self.gemma, self.attend, x, column[None], keys, values, end,
                      (first + index)[None, None])
            scores = rules.mask(logits(self.weights, x[:, 0]), progress,
                                (so_far.count + index)[None])
            column, probabilities, key = rules.choose(scores, key)
            return ((x, column, rules.advance(progress, column), key),
                    Proposal(ids=column[0], probabilities=probabilities))

        with jax.named_scope('draft'):
            last = jax.lax.dynamic_slice(so_far.ids, (so_far.count - 1,), (1,))
            carry = (so_far.hidden[None, None], last, so_far.progress, state)
            (_, _, _, state), choices = jax.lax.scan(
                step, carry, jnp.arange(length, dtype=jnp.int32))
            return choices, state
