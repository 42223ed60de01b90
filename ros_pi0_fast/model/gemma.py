"""Gemma's decoder as openpi's FAST policies run it: names, order of operations, number formats.

Norms, rotary embedding, scores and softmax are in float32; activations, keys and values in the
config's dtype. GELU is the tanh approximation. Positions are passed in, since openpi counts them
in one way in training and in another at inference.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.model.attention import Attend, Fresh, Visible
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.einsum import Weight, einsum, rows, weight
from ros_pi0_fast.model.layers import Params, init_layers

NORM_EPSILON = 1e-6
MAX_WAVELENGTH = 10_000


@flax.struct.dataclass
class Tokens:
    """Where the new tokens of one pass are, and what they see."""

    positions: jax.Array
    """int32 [b, t] (or [1, t]): for the rotary embedding."""
    visible: Visible
    """Over the new tokens themselves in a prefill, over the cache's slots after it."""
    slot: jax.Array | None = None
    """int32 [b]: the cache slot of the first new token; None for a prefill, which starts at 0 and
    sees only itself."""
    only: jax.Array | None = None
    """int32 [b]: the one token a row whose output the last layer need compute; None for all."""
    limit: int | None = flax.struct.field(pytree_node=False, default=None)
    """All positions are below this: see rotate. None where nothing is known."""


def rotate(x: jax.Array, positions: jax.Array, limit: int | None = None) -> jax.Array:
    """Apply the rotary embedding (arXiv:2104.09864).

    Args:
        x: [b, t, n, h]
        positions: int32 [b, t] or [1, t]
        limit: Positions are below it, so that sines can be looked up, which a compiler would
            compute anew for every head of every layer; None to compute them.

    Returns:
        float32 [b, t, n, h]
    """
    if limit is None:
        wavelengths = MAX_WAVELENGTH ** rotary_exponents(x.shape[-1])
        radians = positions[..., None].astype(jnp.float32) / wavelengths
        sin, cos = jnp.sin(radians), jnp.cos(radians)
    else:
        sin, cos = (jnp.asarray(table)[positions] for table in _turns(limit, x.shape[-1]))
    sin, cos = sin[..., None, :], cos[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rotary_exponents(size: int) -> np.ndarray:
    """Return the exponents float32 [size / 2] of the rotary embedding's wavelengths."""
    return np.float32(2.0 / size) * np.arange(size // 2, dtype=np.float32)


@functools.lru_cache(maxsize=8)
def _turns(limit: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sines and cosines, float32 [limit, size / 2], of all positions below a limit."""
    positions = np.arange(limit, dtype=np.float32)[:, None]
    radians = positions / np.float32(MAX_WAVELENGTH) ** rotary_exponents(size)
    return np.sin(radians), np.cos(radians)


def take_token(x: jax.Array, index: jax.Array) -> jax.Array:
    """Return token index[b] of each row of x [b, t, ...], as [b, 1, ...]."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, 1))(x, index)


class RMSNorm(nn.Module):
    """Divide by the root mean square (arXiv:1910.07467), times 1 + scale, in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis of x; same shape, same dtype."""
        scale = weight(self, 'scale', nn.initializers.zeros, x.shape[-1:])
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jnp.reciprocal(jnp.sqrt(mean_square + NORM_EPSILON))
        # The sum is taken in the dtype in which the scale is stored, as in openpi.
        return (normed * (1 + scale).astype(jnp.float32)).astype(x.dtype)


class Einsum(nn.Module):
    """A weight called `w`."""

    shape: tuple[int, ...]
    batch_axis: tuple[int, ...]

    @nn.compact
    def __call__(self, eqn: str, x: jax.Array) -> jax.Array:
        """Return einsum(eqn, x, w)."""
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=self.batch_axis)
        return einsum(eqn, x, weight(self, 'w', init, self.shape))


class Attention(nn.Module):
    """Attention with as many query heads to a key-value head as it takes."""

    config: GemmaConfig
    attend: Attend

    def setup(self) -> None:
        """Declare the projections."""
        c = self.config
        if c.num_kv_heads == c.num_heads:
            self.qkv_einsum = Einsum((3, c.num_heads, c.width, c.head_dim), (0, 1))
        else:
            self.q_einsum = Einsum((c.num_heads, c.width, c.head_dim), (0,))
            self.kv_einsum = Einsum((2, c.num_kv_heads, c.width, c.head_dim), (0, 1))
        self.attn_vec_einsum = Einsum((c.num_heads, c.head_dim, c.width), (0,))

    def _project(self, x: jax.Array, queries: jax.Array) -> tuple[jax.Array, ...]:
        if self.config.num_kv_heads != self.config.num_heads:
            k, v = self.kv_einsum('bsd,ckdh->cbskh', x)
            return self.q_einsum('btd,ndh->btnh', queries), k, v
        q, k, v = self.qkv_einsum('bsd,ckdh->cbskh', x)
        return q, k, v

    def __call__(self, x: jax.Array, tokens: Tokens, cache: LayerCache | None,
                 ) -> tuple[jax.Array, LayerCache | None]:
        """Attend.

        Args:
            x: [b, t, d]: new tokens.
            tokens: Where they are.
            cache: Where their keys and values go; None in training.

        Returns:
            [b, t, d], or [b, 1, d] where `tokens.only` is given; and the cache.
        """
        queries, positions, visible = x, tokens.positions, tokens.visible
        if tokens.only is not None:
            queries, visible = take_token(x, tokens.only), visible.of_token(tokens.only)
            positions = take_token(jnp.broadcast_to(positions, x.shape[:2]), tokens.only)
        q, k, v = self._project(x, queries)
        if tokens.only is not None and q.shape[1] != 1:
            q = take_token(q, tokens.only)
        q = rotate(q, positions, tokens.limit) * self.config.head_dim ** -0.5
        k = rotate(k, tokens.positions, tokens.limit).astype(x.dtype)
        if tokens.slot is None:
            mixed = self.attend(q, k, v, visible, score_dtype=jnp.float32).astype(x.dtype)
            cache = cache if cache is None else cache.append(k, v, 0)
        elif x.shape[1] > 1:
            # Written first, for one softmax over one array. For one token that takes longer.
            cache = cache.append(k, v, tokens.slot)
            mixed = self.attend(q, *cache.read(), visible, score_dtype=jnp.float32)
            mixed = mixed.astype(x.dtype)
        else:
            fresh = Fresh(k=k, v=v, slot=tokens.slot)
            mixed = self.attend(q, *cache.read(), visible, score_dtype=jnp.float32, fresh=fresh)
            mixed = mixed.astype(x.dtype)
            cache = cache.append(k, v, _after(mixed, tokens.slot))
        return self.attn_vec_einsum('btnh,nhd->btd', mixed), cache


def _after(mixed: jax.Array, slot: jax.Array) -> jax.Array:
    """Return slot [b], made to depend on mixed [b, t, n, h].

    The cache can be written in place only after it was read. XLA does not order the two by
    itself, and would rather copy the cache; a barrier is gone by the time it decides that. What is
    added is 0, which nothing but computing it can tell.
    """
    first = jnp.abs(mixed[:, 0, 0, 0]).astype(jnp.int32)
    return slot + jnp.minimum(first, 0)


class FeedForward(nn.Module):
    """A gated GELU MLP (arXiv:2002.05202)."""

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Transform each token: x [b, t, d] -> [b, t, d]."""
        d, hidden = self.config.width, self.config.mlp_dim
        stacked = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        gating = weight(self, 'gating_einsum', stacked, (2, d, hidden))
        linear = weight(self, 'linear', nn.initializers.lecun_normal(), (hidden, d))
        gate, up = einsum('btd,cdf->cbtf', x, gating)
        return einsum('btf,fd->btd', nn.gelu(gate) * up, linear)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and with a residual."""

    config: GemmaConfig
    attend: Attend

    @nn.compact
    def __call__(self, x: jax.Array, tokens: Tokens, cache: LayerCache | None,
                 ) -> tuple[jax.Array, LayerCache | None]:
        """Transform tokens: see Attention."""
        with jax.named_scope('attention'):
            mixed, cache = Attention(self.config, self.attend, name='attn')(
                RMSNorm(name='pre_attention_norm')(x), tokens, cache)
            x = mixed + (x if tokens.only is None else take_token(x, tokens.only))
        with jax.named_scope('feed_forward'):
            y = FeedForward(self.config, name='mlp')(RMSNorm(name='pre_ffw_norm')(x))
            return x + y, cache

    @staticmethod
    def whole(*_: object) -> None:
        """Run all layers at once: not here. See accel.kernels.few_tokens."""

    @staticmethod
    def finish(x: jax.Array, norm: Params) -> jax.Array:
        """Return the norm of what the last layer returned."""
        return RMSNorm().apply({'params': norm}, x)


def init_gemma(config: GemmaConfig, attend: Attend, rng: jax.Array) -> Params:
    """Return random float32 weights: the tree below PaliGemma/llm."""
    embedder, layers = jax.random.split(rng)
    block, x = Block(config, attend), jnp.zeros((1, 1, config.width))
    index = jnp.zeros((1, 1), jnp.int32)
    tokens = Tokens(positions=index, visible=Visible(end=index + 1))
    table = nn.initializers.normal(config.width ** -0.5)(
        embedder, (config.vocab_size, config.width))
    return {
        'embedder': {'input_embedding': table},
        'layers': init_layers(lambda key: block.init(key, x, tokens, None)['params'], layers,
                              config.depth),
        'final_norm': RMSNorm().init(embedder, x)['params'],
    }


def embed(table: Weight, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Look ids [b, t] up in the table [vocabulary, d], scaled by √d as in Gemma: [b, t, d]."""
    x = rows(table, ids)
    # Scaled in the dtype of the table, in which openpi rounds √d, too.
    return (x * jnp.sqrt(x.shape[-1]).astype(x.dtype)).astype(dtype)
