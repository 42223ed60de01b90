"""SigLIP's vision transformer (So400m/14 at full size), with openpi's names and number formats.

Patches and position embeddings are computed in float32, the rest in the config's dtype; layer
norms have float32 statistics; scores and softmax are in the activations' dtype, as in flax's
MultiHeadDotProductAttention, which openpi uses. GELU is the tanh approximation.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ros_pi0_fast.model.attention import Attend
from ros_pi0_fast.model.config import SiglipConfig
from ros_pi0_fast.model.einsum import einsum, weight
from ros_pi0_fast.model.layers import Params, init_layers, run_layers

NORM_EPSILON = 1e-6
_xavier = nn.initializers.xavier_uniform
_bias = nn.initializers.normal(stddev=1e-6)


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics; the variance is E[x²] − E[x]², as in flax."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis of x; same shape, same dtype."""
        scale = weight(self, 'scale', nn.initializers.ones, x.shape[-1:])
        bias = weight(self, 'bias', nn.initializers.zeros, x.shape[-1:])
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.maximum(
            0.0, jnp.mean(jnp.square(wide), axis=-1, keepdims=True) - jnp.square(mean))
        factor = jax.lax.rsqrt(variance + NORM_EPSILON) * scale.astype(jnp.float32)
        return ((wide - mean) * factor + bias.astype(jnp.float32)).astype(x.dtype)


class Projection(nn.Module):
    """einsum(eqn, x, kernel) + bias, in the dtype of x."""

    eqn: str
    shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    kernel_init: nn.initializers.Initializer = _xavier()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Project x."""
        kernel = weight(self, 'kernel', self.kernel_init, self.shape)
        bias = weight(self, 'bias', self.bias_init, self.bias_shape)
        return einsum(self.eqn, x, kernel) + bias.astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all tokens."""

    config: SiglipConfig
    attend: Attend

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix tokens: x [b, n, d] -> [b, n, d]."""
        d, heads, size = self.config.width, self.config.num_heads, self.config.head_dim
        # Xavier over the whole projection, as flax does, which initializes it flattened.
        split = _xavier(in_axis=0, out_axis=(1, 2))
        q, k, v = (Projection('bnd,dhk->bnhk', (d, heads, size), (heads, size), split,
                              name=name)(x) for name in ('query', 'key', 'value'))
        q = q / jnp.sqrt(size).astype(x.dtype)
        mixed = self.attend(q, k, v, None, score_dtype=x.dtype)
        return Projection('bnhk,hkd->bnd', (heads, size, d), (d,),
                          _xavier(in_axis=(0, 1), out_axis=2), name='out')(mixed)


class Mlp(nn.Module):
    """Two projections with a GELU between."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Transform each token: x [b, n, d] -> [b, n, d]."""
        d, hidden = self.config.width, self.config.mlp_dim
        x = Projection('bnd,df->bnf', (d, hidden), (hidden,), bias_init=_bias, name='Dense_0')(x)
        return Projection('bnf,fd->bnd', (hidden, d), (d,), bias_init=_bias,
                          name='Dense_1')(nn.gelu(x))


class EncoderBlock(nn.Module):
    """Attention and MLP, each behind a layer norm and with a residual."""

    config: SiglipConfig
    attend: Attend

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Transform tokens: x [b, n, d] -> [b, n, d]."""
        with jax.named_scope('attention'):
            y = LayerNorm(name='LayerNorm_0')(x)
            x = x + SelfAttention(self.config, self.attend,
                                  name='MultiHeadDotProductAttention_0')(y)
        with jax.named_scope('feed_forward'):
            return x + Mlp(self.config, name='MlpBlock_0')(LayerNorm(name='LayerNorm_1')(x))


class Stem(nn.Module):
    """Pictures to patch tokens with positions, in float32."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Cut float32 images [b, h, w, 3] into patches: [b, n, d]."""
        config = self.config
        (rows, columns), (high, wide) = config.grid, config.patch_size
        images = images[:, :rows * high, :columns * wide]
        patches = images.reshape(-1, rows, high, columns, wide, 3)
        # A convolution whose stride is its size is a product of patches; it fans in as one.
        x = Projection('brpcqe,pqed->brcd', (high, wide, 3, config.width), (config.width,),
                       nn.initializers.lecun_normal(), name='embedding')(patches)
        positions = weight(self, 'pos_embedding', nn.initializers.normal(config.width ** -0.5),
                           (1, config.num_tokens, config.width))
        return x.reshape(-1, config.num_tokens, config.width) + positions.astype(jnp.float32)


def _head(config: SiglipConfig, output_dim: int) -> Projection:
    return Projection('bnd,de->bne', (config.width, output_dim), (output_dim,),
                      nn.initializers.lecun_normal())


def init_siglip(config: SiglipConfig, attend: Attend, output_dim: int,
                rng: jax.Array) -> Params:
    """Return random float32 weights: the tree below PaliGemma/img."""
    stem, blocks, head = jax.random.split(rng, 3)
    block, x = EncoderBlock(config, attend), jnp.zeros((1, 1, config.width))
    return {
        **Stem(config).init(stem, jnp.zeros((1, *config.image_size, 3)))['params'],
        'Transformer': {
            'encoderblock': init_layers(lambda key: block.init(key, x)['params'], blocks,
                                        config.depth),
            'encoder_norm': LayerNorm().init(head, x)['params'],
        },
        'head': _head(config, output_dim).init(head, x)['params'],
    }


def embed(config: SiglipConfig, params: Params, images: jax.Array, *, attend: Attend,
          output_dim: int, dtype: jnp.dtype, remat: str | None = None) -> jax.Array:
    """Turn pictures into tokens.

    Args:
        config: Sizes.
        params: The tree below PaliGemma/img.
        images: [b, h, w, 3], float32 in [-1, 1].
        attend: Implementation of attention.
        output_dim: Width of the decoder.
        dtype: Of the activations.
        remat: See run_layers.

    Returns:
        [b, n, output_dim] in dtype.
    """
    encoder = params['Transformer']
    block = EncoderBlock(config, attend)
    x = Stem(config).apply({'params': params}, images).astype(dtype)
    x, _ = run_layers(lambda weights, x, cache, *, last: (
        block.apply({'params': weights}, x), cache), encoder['encoderblock'], x, remat=remat)
    x = LayerNorm().apply({'params': encoder['encoder_norm']}, x)
    return _head(config, output_dim).apply({'params': params['head']}, x)
