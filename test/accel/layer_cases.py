"""Layers of Gemma of random numbers, for tests of kernels."""

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.matrices import Matrices
from ros_pi0_fast.evaluation.product_cuts import KINDS
from ros_pi0_fast.model.attention import Visible, folded
from ros_pi0_fast.model.gemma import Block, Tokens


def wide(w):
    return w.astype(jnp.float32) if isinstance(w, jax.Array) else w.wide()


def layer(kind, config, seed=1):
    """Return a layer's parameters as the model takes them, and stored by outputs."""
    block = Block(config, folded)
    x = jnp.zeros((1, 1, config.width))
    zero = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(block.init)(jax.random.key(seed), x, Tokens(
        positions=zero, visible=Visible(end=zero + 1)), None)['params']
    noise = jax.random.normal(jax.random.key(seed + 1), (2, config.width)) * 0.3
    params['pre_attention_norm']['scale'], params['pre_ffw_norm']['scale'] = noise
    equations = {'q_einsum': 'btd,ndh->btnh', 'kv_einsum': 'bsd,ckdh->cbskh',
                 'attn_vec_einsum': 'btnh,nhd->btd'}

    def stored(w, eqn, convert):
        w = Matrices.of(w.astype(jnp.bfloat16), eqn)
        return w.replace(parts=tuple(map(convert, w.parts)))

    def convert(convert):
        attn = {name: {'w': stored(params['attn'][name]['w'], eqn, convert)}
                for name, eqn in equations.items()}
        mlp = {'gating_einsum': stored(params['mlp']['gating_einsum'], 'btd,cdf->cbtf', convert),
               'linear': stored(params['mlp']['linear'], 'btf,fd->btd', convert)}
        norms = {name: {'scale': params[name]['scale'].astype(jnp.bfloat16)}
                 for name in ('pre_attention_norm', 'pre_ffw_norm')}
        return {'attn': attn, 'mlp': mlp, **norms}

    quantize = KINDS[kind]
    return (convert(lambda w: wide(quantize(w)).astype(jnp.float32)),
            convert(lambda w: Rows.of(quantize(w))))
