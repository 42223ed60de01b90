"""Merged weights do what openpi's layers do with the factors kept apart."""

import numpy as np
import pytest

from ros_pi0_fast.weights import lora
from ros_pi0_fast.weights.errors import CheckpointError
from ros_pi0_fast.weights.layout import LORA, check_layout
from ros_pi0_fast.weights.openpi import flatten, load_params

LAYERS = 'PaliGemma/llm/layers/'
SCALING = 0.5

# Name, shapes of w, a and b in one layer; then the einsum with w, and those with a and b, which
# openpi's models/lora.py derives from it.
CASES = {
    f'{LAYERS}attn/q_einsum/w': (
        (4, 6, 5), (4, 6, 2), (4, 2, 5), 'btd,ndh->btnh', 'btd,ndl->btnl', 'btnl,nlh->btnh', True),
    f'{LAYERS}attn/kv_einsum/w': (
        (2, 3, 6, 5), (2, 3, 6, 2), (2, 3, 2, 5), 'btd,ckdh->cbtkh', 'btd,ckdl->cbtkl',
        'cbtkl,cklh->cbtkh', True),
    f'{LAYERS}attn/qkv_einsum/w': (
        (3, 4, 6, 5), (3, 4, 6, 2), (3, 4, 2, 5), 'btd,ckdh->cbtkh', 'btd,ckdl->cbtkl',
        'cbtkl,cklh->cbtkh', True),
    f'{LAYERS}attn/attn_vec_einsum/w': (
        (4, 5, 6), (4, 5, 2), (4, 2, 6), 'btnh,nhd->btd', 'btnh,nhl->btl', 'btl,nld->btd', True),
    f'{LAYERS}mlp/gating_einsum': (
        (2, 6, 7), (2, 6, 2), (2, 2, 7), 'btd,cdf->cbtf', 'btd,cdl->cbtl', 'cbtl,clf->cbtf',
        False),
    f'{LAYERS}mlp/linear': (
        (7, 6), (7, 2), (2, 6), 'btf,fd->btd', 'btf,fl->btl', 'btl,ld->btd', False),
}


@pytest.mark.parametrize('name', CASES)
def test_merged_weights_are_the_layers_with_factors(name):
    *shapes, whole, first, second, scaled = CASES[name]
    rng = np.random.default_rng(0)
    w, a, b = (rng.standard_normal((3, *shape)).astype(np.float32) for shape in shapes)
    merged = lora.merge(name, w.copy(), a, b, SCALING)
    sizes = dict(zip(whole.partition(',')[2].partition('-')[0], shapes[0], strict=True))
    sizes |= {'b': 2, 't': 3}
    x = rng.standard_normal([sizes[letter] for letter in whole.partition(',')[0]])
    for layer in range(3):
        low = np.einsum(second, np.einsum(first, x, a[layer]), b[layer])
        expected = np.einsum(whole, x, w[layer]) + low * (SCALING if scaled else 1.0)
        np.testing.assert_allclose(np.einsum(whole, x, merged[layer]), expected, atol=1e-4)


def test_every_weight_with_factors_is_tested():
    assert set(CASES) == set(LORA)


def test_golden_factors_change_their_weights_only(golden):
    plain = flatten(load_params(golden / 'tiny-a/checkpoint'))
    merged = flatten(load_params(golden / 'tiny-a-lora/checkpoint'))
    changed = {name for name, leaf in merged.items() if not np.array_equal(leaf, plain[name])}
    assert changed == set(LORA) - {f'{LAYERS}attn/qkv_einsum/w'}


def test_half_a_pair_of_factors_is_named(golden):
    leaves = load_shapes(golden)
    leaves[f'{LAYERS}mlp/linear_lora_a'] = (3, 128, 16)
    with pytest.raises(CheckpointError, match='here: PaliGemma/llm/layers/mlp/linear_lora_b: '
                       'missing'):
        check_layout(leaves, source='here')
    leaves[f'{LAYERS}mlp/linear_lora_b'] = (3, 15, 64)
    with pytest.raises(CheckpointError, match=r'linear_lora_[ab]: shape \(3, .*\), expected'):
        check_layout(leaves, source='here')


def load_shapes(golden):
    return {name: leaf.shape
            for name, leaf in flatten(load_params(golden / 'tiny-a/checkpoint')).items()}
