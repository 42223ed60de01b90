"""An openpi user points the engine at the folder that openpi wrote and gets openpi's actions."""

import json

import numpy as np
import pytest

from ros_pi0_fast.codec.contract import ContractError
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import REFERENCE, Variant
from ros_pi0_fast.types import Observation

ACTIONS = 1e-4
"""Tolerance of the reference data's README."""


@pytest.fixture(scope='module')
def examples(golden):
    folder = golden / 'policy_libero'
    told = json.loads((folder / 'description.json').read_text('utf-8'))['examples']
    with np.load(folder / 'examples.npz') as file:
        arrays = {name: file[name] for name in file.files if 'float32' in name or 'obs' in name}
    return [(entry, Observation(
        images={'base_0_rgb': arrays[f'{i}/obs/observation/image'],
                'left_wrist_0_rgb': arrays[f'{i}/obs/observation/wrist_image']},
        state=arrays[f'{i}/obs/observation/state'], instruction=entry['prompt']),
        arrays[f'{i}/float32/tokens'], arrays[f'{i}/float32/actions'])
        for i, entry in enumerate(told)]


def load(golden, repository, profile='libero'):
    folder = golden / 'policy_libero'
    return load_policy(
        folder / 'checkpoint',
        RobotProfile.load(repository / 'config' / 'robots' / f'{profile}.yaml'),
        text_tokenizer=folder / 'paligemma_tokenizer.model',
        fast_tokenizer=folder / 'fast_tokenizer')


@pytest.mark.parametrize('variant', [Variant(), REFERENCE], ids=lambda variant: variant.name)
def test_decoding_freely_gives_its_tokens_and_actions(golden, repository, examples, variant):
    engine = Engine(*load(golden, repository), variant=variant, malformed='reject')
    for told, observation, tokens, actions in examples:
        chunk = engine.infer(observation)
        np.testing.assert_array_equal(chunk.token_ids, tokens[:told['n_output_tokens']])
        # Where openpi returned zeros for a malformed sequence, there is no chunk here.
        assert chunk.valid != told['actions_all_zero_normalized']
        if chunk.valid:
            np.testing.assert_allclose(chunk.actions, actions, atol=ACTIONS)
        else:
            assert chunk.actions.shape == (0, 7) and chunk.reason.startswith('malformed: ')


def test_constrained_it_differs_only_where_openpi_returned_zeros(golden, repository, examples):
    engine = Engine(*load(golden, repository))
    for told, observation, tokens, actions in examples:
        chunk = engine.infer(observation)
        assert chunk.valid and chunk.actions.shape == (10, 7)
        if not told['actions_all_zero_normalized']:
            length = told['n_output_tokens'] - 2  # '|' and EOS need not be decoded.
            np.testing.assert_array_equal(chunk.token_ids, tokens[:length])
            np.testing.assert_allclose(chunk.actions, actions, atol=ACTIONS)


def test_another_robot_is_refused(golden, repository):
    with pytest.raises(ContractError, match=r'asset_id: profile .*droid\.yaml says droid'):
        load(golden, repository, 'droid')
