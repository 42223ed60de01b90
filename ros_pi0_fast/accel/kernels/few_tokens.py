"""Decoder layers for a few tokens: as one kernel (decoder_pass) where there is one for them.

Else a layer is seven to nine kernels, where a compiler makes twenty-five.

Lossless with bfloat16; weights of integers see activations that are rounded: see few_product.

At batch one a kernel that reads no weights takes as long to start as a small product takes to
read its own, so the gate is computed by the products that make it, sums by the norm that follows
(norms), and attention is two kernels (cache_attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

import ros_pi0_fast.accel.kernels.by_rows  # noqa: F401  (registers products)
from ros_pi0_fast.accel.kernels.cache_attention import attend_cache
from ros_pi0_fast.accel.kernels.decoder_pass import PassShape, bits_of, decoder_pass
from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.kernels.few_product import TOKENS, Halves, few_fit, few_product
from ros_pi0_fast.accel.kernels.norms import Sum, add_and_norm, halves, norm
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.matrices import Matrices
from ros_pi0_fast.model.attention import Attend
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.gemma import MAX_WAVELENGTH, Attention, Block, Tokens, rotary_exponents
from ros_pi0_fast.model.layers import Layers, Params

HEAD = 256
"""Size of a head that activations are halved by: all of Gemma's, and a step of the product."""


@dataclass(frozen=True)
class FewTokensBlock:
    """In the place of model.gemma.Block; what the kernels are not for is left to that one."""

    config: GemmaConfig
    attend: Attend
    interpret: bool = False
    """Run the kernels' operations one by one on any device, to test them."""
    together: bool = True
    """Run all layers as one kernel where there is one: see decoder_pass."""

    def apply(self, variables: Params, x: jax.Array | Sum, tokens: Tokens,
              cache: LayerCache | None) -> tuple[jax.Array | Sum, LayerCache | None]:
        """Transform tokens: see model.gemma.Block."""
        weights = variables['params']
        if not self.fits(weights, x, tokens):
            x = x.whole(self.interpret) if isinstance(x, Sum) else x
            return Block(self.config, self.attend).apply(variables, x, tokens, cache)
        attn, mlp = weights['attn'], weights['mlp']
        halved = mlp['linear'].parts[0].bits < 16
        with jax.named_scope('attention'):
            gain, own = weights['pre_attention_norm']['scale'], type(cache) is LayerCache
            if isinstance(x, Sum):
                x, normed = add_and_norm(x, gain, halved and own, self.interpret, leads=own)
            else:
                x, normed = x[0], norm(x[0], gain, halved and own, self.interpret, leads=own)
            if own:
                mixed, cache = self._attend(attn, normed, tokens, cache, halved)
                y = few_product(attn['attn_vec_einsum']['w'].parts, mixed, whole=False,
                                leads=True, interpret=self.interpret)
            else:
                mixed, cache = Attention(self.config, self.attend).apply(
                    {'params': attn}, normed[None], tokens, cache)
                y = mixed[0]
        with jax.named_scope('feed_forward'):
            y, normed = add_and_norm(Sum(x, y), weights['pre_ffw_norm']['scale'], halved,
                                     self.interpret)
            hidden = few_product(mlp['gating_einsum'].parts, normed, gate=True, leads=True,
                                 interpret=self.interpret)
            return Sum(y, few_product(
                mlp['linear'].parts, halves(hidden, self.interpret) if halved else hidden,
                whole=False, leads=True, interpret=self.interpret)), cache

    def whole(self, layers: Layers, x: jax.Array, tokens: Tokens,
              caches: Sequence[LayerCache] | LayerCache,
              ) -> tuple[jax.Array, tuple[LayerCache, ...]] | None:
        """Run all layers as one kernel, if there is one for them: see model.gemma.Block."""
        if self.interpret or not self.together or not isinstance(layers, tuple) or not all(
                type(cache) is LayerCache and self.fits(weights, x, tokens)
                for weights, cache in zip(layers, caches, strict=True)):
            return None
        bits = bits_of(layers)
        if bits is None:
            return None
        shape = PassShape.of(self.config, len(layers), bits, x.shape[1], caches[0].k.shape[1],
                             Device.current())
        if shape.refusal():
            return None
        y, caches = decoder_pass(shape, layers, caches, x[0], *self.turns(tokens),
                                 self.bounds(tokens))
        return y[None], caches

    def finish(self, x: jax.Array | Sum, norm: Params) -> jax.Array:
        """Return the norm of what the last layer returned: see model.gemma.Block."""
        if not isinstance(x, Sum):
            return Block.finish(x, norm)
        return add_and_norm(x, norm['scale'], False, self.interpret, leads=False)[1][None]

    def fits(self, weights: Params, x: jax.Array | Sum, tokens: Tokens) -> bool:
        """Tell whether the kernels are for these weights and tokens."""
        c = self.config
        x = x.x[None] if isinstance(x, Sum) else x
        few = (tokens.slot is not None and x.shape[0] == 1 and x.shape[1] <= TOKENS
               and x.dtype == jnp.bfloat16)
        sizes = (c.num_kv_heads == 1 and c.head_dim in (64, 128, 256)
                 and not c.width & (c.width - 1))
        stored = [leaf for leaf in jax.tree.leaves(weights, is_leaf=_is_matrices)
                  if _is_matrices(leaf)]
        parts = [part for leaf in stored for part in leaf.parts]
        if not (few and sizes and len(stored) == 5 and all(
                isinstance(part, Rows) and few_fit(part) and part.outputs == len(part.values)
                and part.inputs == part.columns for part in parts)):
            return False
        # Activations are halved by heads and groups of GROUP.
        halved = c.head_dim == HEAD and not c.mlp_dim & (c.mlp_dim - 1)
        bits = {part.bits for part in parts}
        return bits == {16} or (len(bits) == 1 and halved)

    def _attend(self, attn: Params, normed: jax.Array | Halves, tokens: Tokens, cache: LayerCache,
                halved: bool) -> tuple[jax.Array | Halves, LayerCache]:
        size = self.config.head_dim
        projected = few_product(
            (*attn['q_einsum']['w'].parts, *attn['kv_einsum']['w'].parts), normed, leads=True,
            interpret=self.interpret)
        mixed, k, v = attend_cache(
            projected.reshape(-1, size), cache.k[0, :, 0], cache.v[0, :, 0],
            *self.turns(tokens), self.bounds(tokens),
            heads=self.config.num_heads, halved=halved, interpret=self.interpret)
        return mixed, LayerCache(k=k[None, :, None], v=v[None, :, None])

    def turns(self, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """Return cosines and sines of the rotary embedding, float32 [t, h / 2]."""
        radians = (tokens.positions[0, :, None].astype(jnp.float32)
                   / MAX_WAVELENGTH ** rotary_exponents(self.config.head_dim))
        return jnp.cos(radians), jnp.sin(radians)

    @staticmethod
    def bounds(tokens: Tokens) -> jax.Array:
        """Return the first valid slot, and the one of the first new token: int32 [2]."""
        first = jnp.zeros_like(tokens.slot) if tokens.visible.start is None else (
            tokens.visible.start)
        return jnp.concatenate([first, tokens.slot])


def _is_matrices(leaf: object) -> bool:
    return isinstance(leaf, Matrices)
