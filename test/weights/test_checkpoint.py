"""A checkpoint is loaded with the architecture that its shapes tell, and written whole."""

import dataclasses
import json

import numpy as np
import pytest

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ros_pi0_fast.weights.openpi import flatten


@pytest.fixture(scope='module')
def profile(repository):
    return RobotProfile.load(repository / 'config/robots/libero.yaml')


@pytest.fixture(scope='module')
def loaded(golden, profile):
    return load_checkpoint(golden / 'policy_libero/checkpoint', profile)


@pytest.fixture(scope='module')
def codec(golden, profile):
    folder = golden / 'policy_libero'
    return PolicyCodec.from_checkpoint(
        folder / 'checkpoint', profile, text_tokenizer=folder / 'paligemma_tokenizer.model',
        fast_tokenizer=folder / 'fast_tokenizer')


def test_architecture_of_an_openpi_checkpoint(golden, loaded, profile):
    told = json.loads((golden / 'policy_libero/description.json').read_text())
    config = loaded.config
    assert dataclasses.asdict(config.gemma) == told['gemma']
    assert config.siglip.image_size == (224, 224)
    assert config.siglip.patch_size == tuple(told['siglip']['patch_size'])
    assert (config.action_dim, config.action_horizon) == (7, 10)
    assert config.camera_keys == profile.camera_keys == tuple(told['camera_order'])
    assert config.first_token_offset == 1
    assert config.dtype == 'float32'
    assert loaded.contract is None


def test_dtype_is_of_parameters_and_activations(golden, profile):
    loaded = load_checkpoint(golden / 'policy_libero/checkpoint', profile, dtype='bfloat16')
    assert loaded.config.dtype == 'bfloat16'
    assert {leaf.dtype.name for leaf in flatten(loaded.params).values()} == {'bfloat16'}


def test_what_is_saved_needs_nothing_else(loaded, codec, profile, tmp_path):
    contract = dataclasses.replace(codec.contract, first_token_offset=0)
    codec = PolicyCodec(profile=dataclasses.replace(profile, first_token_offset=0),
                        contract=contract, norm_stats=codec.norm_stats, text=codec.text,
                        fast=codec.fast)
    folder = save_checkpoint(tmp_path / 'policy', loaded.params, codec)
    again = load_checkpoint(folder)
    assert again.contract == contract
    assert again.config == dataclasses.replace(loaded.config, first_token_offset=0)
    for name, leaf in flatten(loaded.params).items():
        np.testing.assert_array_equal(flatten(again.params)[name], leaf)
    other = PolicyCodec.from_checkpoint(folder, codec.profile)
    ids = np.arange(20)
    np.testing.assert_array_equal(other.fast_to_model(ids), codec.fast_to_model(ids))
    assert other.text.encode('push the cube').tolist() == codec.text.encode(
        'push the cube').tolist()


def test_an_openpi_checkpoint_needs_a_profile(golden):
    with pytest.raises(CheckpointError, match=r'checkpoint: no policy\.json, as in an openpi '
                       'checkpoint: a robot profile is needed'):
        load_checkpoint(golden / 'policy_libero/checkpoint')
