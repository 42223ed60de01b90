"""One Gemma block and one SigLIP block against loops in NumPy: heads, groups, order of steps.

The golden data have one key-value head only; how several are grouped is checked here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from ros_pi0_fast.model import gemma, siglip
from ros_pi0_fast.model.attention import Visible, reference

# Float32 sums of up to a hundred terms of order one.
FLOAT32 = 2e-5


def doubled(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x ** 2, axis=-1, keepdims=True) + 1e-6) * (1 + scale)


def rotate(x, position):
    half = len(x) // 2
    angle = position / 10_000 ** (np.arange(half) / half)
    return np.concatenate([x[:half] * np.cos(angle) - x[half:] * np.sin(angle),
                           x[half:] * np.cos(angle) + x[:half] * np.sin(angle)])


def gemma_block(params, x, positions, ends, heads, kv_heads):
    attn, mlp = params['attn'], params['mlp']
    y = rms_norm(x, params['pre_attention_norm']['scale'])
    if heads == kv_heads:
        wq, wk, wv = attn['qkv_einsum']['w']
    else:
        wq, (wk, wv) = attn['q_einsum']['w'], attn['kv_einsum']['w']
    mixed = np.zeros_like(x)
    for head in range(heads):
        group = head // (heads // kv_heads)
        q, k, v = y @ wq[head], y @ wk[group], y @ wv[group]
        for i, position in enumerate(positions):
            query = rotate(q[i], position) / np.sqrt(len(q[i]))
            keys = [rotate(k[j], positions[j]) for j in range(ends[i])]
            mixed[i] += softmax(keys @ query) @ v[:ends[i]] @ attn['attn_vec_einsum']['w'][head]
    x = x + mixed
    y = rms_norm(x, params['pre_ffw_norm']['scale'])
    gate, up = mlp['gating_einsum']
    return x + (gelu(y @ gate) * (y @ up)) @ mlp['linear']


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_gemma_block(make, kv_heads):
    model, params = make(gemma={'num_kv_heads': kv_heads})
    layer = params['PaliGemma']['llm']['layers'][0]
    rng = np.random.default_rng(0)
    layer = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 4, 'float32'),
                         layer)
    x = rng.standard_normal((5, 32))
    positions, ends = np.array([0, 1, 2, 4, 5]), np.array([3, 3, 3, 4, 5])
    tokens = gemma.Tokens(positions=jnp.asarray(positions)[None],
                          visible=Visible(end=jnp.asarray(ends)[None]))
    actual, _ = gemma.Block(model.config.gemma, reference).apply(
        {'params': layer}, jnp.asarray(x, jnp.float32)[None], tokens, None)
    expected = gemma_block(doubled(layer), x, positions, ends, 4, kv_heads)
    np.testing.assert_allclose(actual[0], expected, atol=FLOAT32)


def layer_norm(x, params):
    centered = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.mean(centered ** 2, axis=-1, keepdims=True) + 1e-6)
    return centered / spread * params['scale'] + params['bias']


def siglip_block(params, x, heads):
    attention, mlp = params['MultiHeadDotProductAttention_0'], params['MlpBlock_0']
    y, mixed = layer_norm(x, params['LayerNorm_0']), attention['out']['bias']
    for head in range(heads):
        q, k, v = (y @ attention[name]['kernel'][:, head] + attention[name]['bias'][head]
                   for name in ('query', 'key', 'value'))
        scores = softmax(q @ k.T / np.sqrt(q.shape[1]), axis=-1)
        mixed = mixed + scores @ v @ attention['out']['kernel'][head]
    x = x + mixed
    y = layer_norm(x, params['LayerNorm_1'])
    y = gelu(y @ mlp['Dense_0']['kernel'] + mlp['Dense_0']['bias'])
    return x + y @ mlp['Dense_1']['kernel'] + mlp['Dense_1']['bias']


def test_siglip_block(make):
    model, params = make()
    rng = np.random.default_rng(0)
    layer = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 4, 'float32'),
                         params['PaliGemma']['img']['Transformer']['encoderblock'][0])
    x = rng.standard_normal((6, 24))
    actual = siglip.EncoderBlock(model.config.siglip, reference).apply(
        {'params': layer}, jnp.asarray(x, jnp.float32)[None])
    np.testing.assert_allclose(actual[0], siglip_block(doubled(layer), x, 3), atol=FLOAT32)


def test_patches_are_cut_row_by_row(make):
    model, params = make()
    image = params['PaliGemma']['img']
    rng = np.random.default_rng(0)
    picture = rng.uniform(-1, 1, (13, 16, 3))  # The thirteenth row is no whole patch.
    kernel, bias = doubled(image['embedding']['kernel']), doubled(image['embedding']['bias'])
    expected = [np.tensordot(picture[4 * row:4 * row + 4, 8 * column:8 * column + 8], kernel, 3)
                for row in range(3) for column in range(2)]
    expected = np.stack(expected) + bias + doubled(image['pos_embedding'])[0]
    actual = siglip.Stem(model.config.siglip).apply(
        {'params': image}, jnp.asarray(picture, jnp.float32)[None])
    np.testing.assert_allclose(actual[0], expected, atol=FLOAT32)
