"""Each mismatch between a robot and a checkpoint, with the exact words that the user reads."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from ros_pi0_fast.codec.build_tokenizers import build_text_model
from ros_pi0_fast.codec.contract import ContractError, PolicyContract, check_contract
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats, Stats
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.prompt import TextTokenizer
from ros_pi0_fast.codec.robot_profile import RobotProfile


@pytest.fixture
def checkpoint(tmp_path, contract, norm_stats, text, fast):
    """Return a checkpoint folder without weights."""
    contract.save(tmp_path)
    norm_stats.save(tmp_path / 'assets/tabletop')
    fast.save(tmp_path / 'assets/fast_tokenizer')
    (tmp_path / 'assets/paligemma_tokenizer.model').write_bytes(text.source.read_bytes())
    return tmp_path


def edit(checkpoint, **changes):
    path = checkpoint / 'policy.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(checkpoint, profile):
    with pytest.raises(ContractError) as error:
        PolicyCodec.from_checkpoint(checkpoint, profile)
    assert error.value.mismatches == (str(error.value),)
    return str(error.value)


def model(profile, **changes):
    facts = {
        'action_dim': profile.action_dim, 'action_horizon': profile.horizon,
        'camera_keys': profile.camera_keys, 'first_token_offset': 0,
        'gemma': SimpleNamespace(vocab_size=1024),
        'siglip': SimpleNamespace(patch_size=(8, 8), grid=(8, 8))}
    return SimpleNamespace(**{**facts, **changes})


def test_a_fitting_checkpoint_is_accepted(checkpoint, profile, contract):
    codec = PolicyCodec.from_checkpoint(checkpoint, profile)
    assert codec.contract == contract
    assert codec.contract.source == checkpoint / 'policy.json'
    check_contract(codec.contract, profile, codec.norm_stats, codec.text, codec.fast,
                   model(profile))


@pytest.mark.parametrize(('key', 'value', 'ours', 'theirs'), [
    ('asset_id', 'arm', 'tabletop', 'arm'),
    ('normalization', 'z-score', 'quantile', 'z-score'),
    ('state_dim', 8, '5', '8'),
    ('action_dim', 7, '5', '7'),
    ('action_horizon', 16, '10', '16'),
    ('delta_mask', [False] * 5, '[true, true, true, true, false]',
     '[false, false, false, false, false]'),
    ('camera_keys', ['base_0_rgb', 'left_wrist_0_rgb'], '["base_0_rgb", "wrist_0_rgb"]',
     '["base_0_rgb", "left_wrist_0_rgb"]'),
    ('max_token_len', 180, '80', '180'),
    ('image_size', [224, 224], '[64, 64]', '[224, 224]'),
    ('first_token_offset', 1, '0', '1'),
])
def test_profile_against_policy_file(checkpoint, profile, key, value, ours, theirs):
    edit(checkpoint, **{key: value})
    assert refusal(checkpoint, profile) == (
        f'{key}: profile {profile.source} says {ours}, '
        f'checkpoint {checkpoint / "policy.json"} says {theirs}')


def test_a_profile_may_leave_the_offset_to_the_checkpoint(checkpoint, profile):
    edit(checkpoint, first_token_offset=1)
    silent = dataclasses.replace(profile, first_token_offset=None)
    assert PolicyCodec.from_checkpoint(checkpoint, silent).contract.first_token_offset == 1


def test_a_camera_that_was_absent_in_training(checkpoint, profile):
    edit(checkpoint, absent_cameras=['wrist_0_rgb'])
    assert refusal(checkpoint, profile) == (
        f'absent_cameras: profile {profile.source} has camera wrist_0_rgb, '
        f'checkpoint {checkpoint / "policy.json"} says it was absent in training')


def test_text_tokenizer_against_policy_file(checkpoint, profile):
    edit(checkpoint, text_vocab_size=257152)
    assert refusal(checkpoint, profile) == (
        f'text_vocab_size: tokenizer {checkpoint / "assets/paligemma_tokenizer.model"} has 1024, '
        f'checkpoint {checkpoint / "policy.json"} says 257152')


def test_statistics_of_another_robot(checkpoint, profile, norm_stats):
    seven = Stats(mean=np.ones(7), std=np.ones(7), q01=np.zeros(7), q99=np.ones(7))
    path = checkpoint / 'assets/tabletop/norm_stats.json'
    dataclasses.replace(norm_stats, actions=seven).save(path)
    assert refusal(checkpoint, profile) == (
        f'action_dim: profile {profile.source} says 5, '
        f'checkpoint {path} has 7 numbers in norm_stats.actions')
    four = Stats(mean=np.ones(4), std=np.ones(4), q01=np.zeros(4), q99=np.ones(4))
    dataclasses.replace(norm_stats, state=four).save(path)
    assert refusal(checkpoint, profile) == (
        f'state_dim: profile {profile.source} says 5, '
        f'checkpoint {path} has 4 numbers in norm_stats.state')


def test_statistics_padded_with_zeros_are_accepted(checkpoint, profile, norm_stats):
    padded = Stats(**{f.name: np.pad(getattr(norm_stats.state, f.name), (0, 27))
                      for f in dataclasses.fields(Stats)})
    dataclasses.replace(norm_stats, state=padded).save(checkpoint / 'assets/tabletop')
    assert PolicyCodec.from_checkpoint(checkpoint, profile).norm_stats.state.dim == 32


def test_no_quantiles(checkpoint, profile, norm_stats):
    path = checkpoint / 'assets/tabletop/norm_stats.json'
    bare = dataclasses.replace(norm_stats.actions, q01=None, q99=None)
    dataclasses.replace(norm_stats, actions=bare).save(path)
    assert refusal(checkpoint, profile) == (
        f'normalization: profile {profile.source} says quantile, '
        f'checkpoint {path} has no q01 and q99 in norm_stats.actions')


def test_no_statistics_for_this_robot(checkpoint, profile):
    (checkpoint / 'assets/tabletop').rename(checkpoint / 'assets/arm')
    assert refusal(checkpoint, profile) == (
        f'asset_id: profile {profile.source} says tabletop, '
        f'checkpoint {checkpoint / "assets"} has arm')


def test_more_fast_ids_than_the_text_tokenizer_has_room_for(checkpoint, profile, chunks):
    small = checkpoint / 'small.model'
    small.write_bytes(build_text_model(vocab_size=600, fast_vocab_size=64))
    big = FastTokenizer.fit(chunks, scale=10, vocab_size=512)
    with pytest.raises(ContractError) as error:
        check_contract(None, dataclasses.replace(profile, first_token_offset=1),
                       NormStats.load(checkpoint / 'assets/tabletop'), TextTokenizer(small), big)
    assert str(error.value) == (
        f'vocabulary: FAST tokenizer  has 512 ids, text tokenizer {small} has room for 472 '
        '(600 pieces less 128 at the end)')


def test_fast_ids_over_the_marks(checkpoint, profile, chunks, text):
    big = FastTokenizer.fit(chunks, scale=10, vocab_size=300)
    big.save(checkpoint / 'assets/fast_tokenizer')
    assert refusal(checkpoint, profile) == (
        f'vocabulary: FAST tokenizer {checkpoint / "assets/fast_tokenizer"} has 300 ids, which '
        f'are model ids 596 to 895, text tokenizer '
        f'{checkpoint / "assets/paligemma_tokenizer.model"} needs ["|"] among them')


@pytest.mark.parametrize(('changes', 'message'), [
    ({'gemma': SimpleNamespace(vocab_size=257152)},
     'vocabulary: tokenizer {text} has 1024 pieces, the checkpoint has 257152 embedding rows'),
    ({'action_dim': 7},
     'action_dim: profile {profile} says 5, the model configuration says 7'),
    ({'action_horizon': 16},
     'action_horizon: profile {profile} says 10, the model configuration says 16'),
    ({'camera_keys': ('base_0_rgb',)},
     'camera_keys: profile {profile} says ["base_0_rgb", "wrist_0_rgb"], '
     'the model configuration says ["base_0_rgb"]'),
    ({'siglip': SimpleNamespace(patch_size=(14, 14), grid=(16, 16))},
     'image_size: profile {profile} says [64, 64], [4, 4] patches of [14, 14], '
     'the checkpoint has position embeddings for [16, 16]'),
    ({'first_token_offset': 1},
     'first_token_offset: checkpoint policy.json says 0, the model configuration says 1'),
])
def test_against_the_model(contract, profile, norm_stats, text, fast, changes, message):
    with pytest.raises(ContractError) as error:
        check_contract(contract, profile, norm_stats, text, fast, model(profile, **changes))
    assert str(error.value) == message.format(profile=profile.source, text=text.source)


def test_all_mismatches_are_told_at_once(checkpoint, profile):
    edit(checkpoint, action_horizon=16, normalization='z-score')
    with pytest.raises(ContractError) as error:
        PolicyCodec.from_checkpoint(checkpoint, profile)
    assert len(error.value.mismatches) == len(str(error.value).splitlines()) == 2


def test_openpi_checkpoint(golden, repository):
    folder = golden / 'policy_libero'
    tokenizers = {'text_tokenizer': folder / 'paligemma_tokenizer.model',
                  'fast_tokenizer': folder / 'fast_tokenizer'}
    libero = RobotProfile.load(repository / 'config/robots/libero.yaml')
    codec = PolicyCodec.from_checkpoint(folder / 'checkpoint', libero, **tokenizers)
    assert codec.contract.first_token_offset == 1
    for change, message in (
            ({'first_token_offset': 0},
             f'first_token_offset: profile {libero.source} says 0, '
             'an openpi checkpoint (no policy.json) says 1'),
            ({'normalization': 'z-score'},
             f'normalization: profile {libero.source} says z-score, '
             'an openpi checkpoint (no policy.json) says quantile'),
            ({'asset_id': 'droid'},
             f'asset_id: profile {libero.source} says droid, '
             f'checkpoint {folder / "checkpoint/assets"} has physical-intelligence/libero')):
        with pytest.raises(ContractError) as error:
            PolicyCodec.from_checkpoint(
                folder / 'checkpoint', dataclasses.replace(libero, **change), **tokenizers)
        assert str(error.value) == message


def test_file_round_trip(contract, tmp_path):
    contract.save(tmp_path / 'new')
    assert PolicyContract.load(tmp_path / 'new') == contract
    assert 'source' not in json.loads((tmp_path / 'new/policy.json').read_text())


@pytest.mark.parametrize(('changes', 'message'), [
    ({'gain': 1}, "unknown key 'gain', expected one of robot, asset_id, normalization"),
    ({'state_dim': '5'}, "key 'state_dim': found '5', expected int"),
    ({'state_dim': True}, "key 'state_dim': found True, expected int"),
    ({'delta_mask': [1, 0]}, r"key 'delta_mask': found \[1, 0\], expected list of bool"),
    ({'first_token_offset': 2}, "key 'first_token_offset': found 2, expected 0 or 1"),
    ({'fast_skip_tokens': -1}, "key 'fast_skip_tokens': found -1, expected 0 or more"),
])
def test_damaged_policy_files(checkpoint, changes, message):
    edit(checkpoint, **changes)
    with pytest.raises(ContractError, match=message) as error:
        PolicyContract.load(checkpoint)
    assert str(checkpoint / 'policy.json') in str(error.value)


def test_policy_files_that_are_none(tmp_path):
    path = tmp_path / 'policy.json'
    for content, message in (('{', 'is not JSON'), ('[]', r'found \[\], expected a mapping'),
                             ('{}', "key 'robot': found nothing, expected str")):
        path.write_text(content)
        with pytest.raises(ContractError, match=message):
            PolicyContract.load(path)
    with pytest.raises(ContractError, match='cannot be read: No such file'):
        PolicyContract.load(tmp_path / 'absent.json')
