"""Configs refuse what cannot be built, and are found again in the shapes of parameters."""

import dataclasses

import jax
import pytest

from ros_pi0_fast.model.config import config_from_params, get_config
from ros_pi0_fast.model.pi0_fast import Pi0Fast


def shapes_of(config):
    return jax.eval_shape(Pi0Fast(config).init, jax.random.key(0))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', ['tiny', 'tabletop', 'mid', 'full'])
def test_architecture_is_derived_from_shapes(name):
    config = get_config(name)
    derived = config_from_params(
        shapes_of(config), action_dim=config.action_dim, action_horizon=config.action_horizon,
        max_token_len=config.max_token_len, camera_keys=config.camera_keys, dtype=config.dtype)
    assert derived == config
    assert hash(derived) == hash(config)


@pytest.mark.parametrize('name,least,most', [
    ('tiny', 1e6, 5e6), ('tabletop', 1e6, 5e6), ('mid', 45.2e6, 45.4e6), ('full', 2.9e9, 3e9)])
def test_presets_have_the_promised_size(name, least, most):
    assert least < count(shapes_of(get_config(name))) < most


def test_fused_projection_and_oblong_images_are_derived(config):
    fused = dataclasses.replace(
        config, gemma=dataclasses.replace(config.gemma, num_kv_heads=4))
    shapes = shapes_of(fused)
    keep = {'action_dim': 3, 'action_horizon': 4, 'max_token_len': 12,
            'camera_keys': config.camera_keys}
    assert 'qkv_einsum' in shapes['PaliGemma']['llm']['layers']['attn']
    assert config_from_params(shapes, image_size=(13, 16), **keep) == fused
    with pytest.raises(ValueError, match='6 positions, expected a square number'):
        config_from_params(shapes, **keep)
    with pytest.raises(ValueError, match='6 positions, expected 16 for an image of'):
        config_from_params(shapes, image_size=(16, 32), **keep)


@pytest.mark.parametrize('change,message', [
    ({'dtype': 'float16'}, "dtype: 'float16', expected one of float32, bfloat16"),
    ({'camera_keys': ('b', 'a')}, 'camera_keys: .* expected distinct names in alphabetical'),
    ({'camera_keys': ()}, 'camera_keys: .* at least one'),
    ({'gemma': {'num_kv_heads': 3}}, 'gemma.num_kv_heads: 3, expected a divisor of num_heads = 4'),
    ({'siglip': {'num_heads': 5}}, 'siglip.num_heads: 5, expected a divisor of width = 24'),
    ({'siglip': {'image_size': (3, 8)}}, 'siglip.image_size: .* at least one patch'),
])
def test_impossible_sizes_are_refused(config, change, message):
    change = {key: dataclasses.replace(getattr(config, key), **value)
              if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset: 'huge', expected one of tiny, tabletop, mid"):
        get_config('huge')
