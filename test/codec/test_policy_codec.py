import dataclasses
import json

import numpy as np
import pytest

from ros_pi0_fast.codec.fast import MalformedChunkError, UnencodableChunkError
from ros_pi0_fast.codec.grammar import START
from ros_pi0_fast.codec.policy_codec import ObservationError, PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.types import Observation

ACTION_TOLERANCE = 1e-4
"""Of the golden data's README; float32 actions leave 1e-6."""


@pytest.fixture(scope='module')
def codec(profile, contract, norm_stats, text, fast):
    return PolicyCodec(profile=profile, contract=contract, norm_stats=norm_stats, text=text,
                       fast=fast)


@pytest.fixture
def observation():
    rng = np.random.default_rng(0)
    return Observation(
        images={key: rng.integers(0, 256, (48, 64, 3), np.uint8)
                for key in ('base_0_rgb', 'wrist_0_rgb')},
        state=np.array([0.1, -0.2, 0.3, 0.4, 1.0], np.float32), instruction='Touch the red cube')


@pytest.fixture
def actions(codec, observation, chunks):
    """Return actions in robot units whose normalized form is a chunk that FAST was fitted on."""
    deltas = codec.norm_stats.actions.unnormalize(chunks[3], 'quantile')
    return deltas + np.where(codec.profile.actions.delta_mask, observation.state, 0)


@pytest.fixture(scope='module')
def libero(golden, repository):
    folder = golden / 'policy_libero'
    profile = RobotProfile.load(repository / 'config/robots/libero.yaml')
    codec = PolicyCodec.from_checkpoint(
        folder / 'checkpoint', profile, text_tokenizer=folder / 'paligemma_tokenizer.model',
        fast_tokenizer=folder / 'fast_tokenizer')
    examples = json.loads((folder / 'description.json').read_text())['examples']
    return codec, examples, np.load(folder / 'examples.npz')


def golden_observation(libero, index):
    _, examples, arrays = libero
    raw = f'{index}/obs/observation/'
    return Observation(
        images={'base_0_rgb': arrays[raw + 'image'],
                'left_wrist_0_rgb': arrays[raw + 'wrist_image']},
        state=arrays[raw + 'state'], instruction=examples[index]['prompt'])


def test_golden_prompts_are_exact(libero):
    codec, examples, arrays = libero
    assert len(examples) == 9
    for index, example in enumerate(examples):
        encoded = codec.encode(golden_observation(libero, index))
        expected = arrays[f'{index}/model_in/tokenized_prompt']
        assert len(encoded.prompt_ids) == example['n_prompt_tokens']
        np.testing.assert_array_equal(encoded.prompt_ids, expected[:example['n_prompt_tokens']])
        np.testing.assert_array_equal(encoded.normalized_state, np.float32(
            arrays[f'{index}/model_in/state']))


def test_golden_actions_from_recorded_tokens(libero):
    codec, examples, arrays = libero
    decoded = 0
    for index, example in enumerate(examples):
        encoded = codec.encode(golden_observation(libero, index))
        for dtype in ('float32', 'bfloat16'):
            tokens = arrays[f'{index}/{dtype}/tokens']
            if example['actions_all_zero_normalized']:
                with pytest.raises(MalformedChunkError, match=r'35 FAST ids stand for 48 coeffi.*'
                                   r'expected 70 \(10 x 7\)'):
                    codec.decode(tokens, encoded)
                continue
            found = codec.decode(tokens, encoded)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, arrays[f'{index}/{dtype}/actions'], rtol=0,
                                       atol=ACTION_TOLERANCE)
            decoded += 1
    assert decoded == 16


def test_golden_training_examples_are_exact(libero):
    codec, examples, arrays = libero
    compared = 0
    for index, example in enumerate(examples):
        if not example['in_training_set']:
            continue
        observation = golden_observation(libero, index)
        raw = arrays[f'{index}/train/actions_raw']
        np.testing.assert_array_equal(codec.normalize_actions(raw, observation.state),
                                      arrays[f'{index}/train/actions'])
        found = codec.encode_example(observation, raw)
        for ours, theirs in (('tokens', 'tokenized_prompt'), ('ar_mask', 'token_ar_mask'),
                             ('token_mask', 'tokenized_prompt_mask'),
                             ('loss_mask', 'token_loss_mask')):
            np.testing.assert_array_equal(getattr(found, ours), arrays[f'{index}/train/{theirs}'])
        compared += 1
    assert compared == 6


def test_round_trip(codec, observation, actions):
    example = codec.encode_example(observation, actions)
    assert example.tokens.dtype == np.int32
    assert example.images['base_0_rgb'].shape == (64, 64, 3)
    prompt_length = int((example.token_mask & ~example.loss_mask).sum())
    learned = example.tokens[example.loss_mask]
    np.testing.assert_array_equal(learned[:3], codec.action_prefix_ids)
    np.testing.assert_array_equal(learned[-2:], codec.end_ids)
    np.testing.assert_array_equal(np.flatnonzero(example.ar_mask), np.flatnonzero(
        example.loss_mask))
    encoded = codec.encode(observation)
    np.testing.assert_array_equal(example.tokens[:prompt_length], encoded.prompt_ids)
    decoded = codec.decode(learned, encoded)
    # Half a FAST step (0.05) in all coefficients, in units of the statistics' range of about 1.
    assert np.linalg.norm(decoded - actions) <= np.sqrt(50) * 0.05 / 2 * 1.01


def test_what_surrounds_a_chunk_does_not_count(codec, observation, actions):
    example = codec.encode_example(observation, actions)
    encoded = codec.encode(observation)
    learned = example.tokens[example.loss_mask]
    prefix, chunk, end = learned[:3], learned[3:-2], learned[-2:]
    expected = codec.decode(learned, encoded)
    blank, bar, word = (codec.text.encode(t) for t in (' ', '|', ' the'))
    pads = np.zeros(20, np.int32)
    for ids in ([chunk], [prefix, chunk], [chunk, end], [prefix, chunk, bar, chunk, word],
                [prefix, chunk, end[1:], pads], [prefix, chunk, end, word], [chunk, pads],
                [word, prefix, chunk, end], [prefix, blank, chunk, blank, end],
                [prefix, chunk, bar, pads, chunk]):
        np.testing.assert_array_equal(codec.decode(np.concatenate(ids), encoded), expected)


def test_malformed_sequences_are_refused_with_the_reason(codec, observation, actions):
    example = codec.encode_example(observation, actions)
    encoded = codec.encode(observation)
    learned = example.tokens[example.loss_mask]
    prefix, chunk, end = learned[:3], learned[3:-2], learned[-2:]
    word, pads = codec.text.encode(' the'), np.zeros(3, np.int32)
    number = len(chunk)
    for ids, reason in (
            ([], '0 FAST ids stand for 0 coefficients, expected 50 (10 x 5)'),
            ([end], "found '|' before the FAST ids, expected 'Action: '"),
            ([end[1:], chunk], '0 FAST ids stand for 0 coefficients'),
            ([prefix], '0 FAST ids stand for 0 coefficients'),
            ([prefix, end, chunk], "found 'Action: |' before the FAST ids"),
            ([prefix[:2], chunk], "found 'Action:' before the FAST ids, expected 'Action: '"),
            ([prefix, prefix, chunk], "found 'Action: Action: ' before the FAST ids"),
            ([prefix, chunk[:-1], end], 'coefficients, expected 50 (10 x 5)'),
            ([prefix, chunk, chunk[:1], end], 'coefficients, expected 50 (10 x 5)'),
            ([prefix, chunk, word, end],
             f"id {word[0]} (' the') at {number + 3} is no FAST id (640 to 895), "
             f'after {number} of them'),
            ([prefix, chunk[:4], pads, chunk[4:], end], 'is no FAST id (640 to 895), after 4 of'),
            ([prefix, chunk[:4], [1024], chunk[4:]], "id 1024 ('[1024]') at 7 is no FAST id"),
            ([prefix, [-1], chunk], 'before the FAST ids'),
            ([prefix, chunk, [900]], "id 900 ('<seg004>')")):
        with pytest.raises(MalformedChunkError) as error:
            codec.decode(np.concatenate([np.asarray(i, np.int32) for i in ids])
                         if ids else np.zeros(0, np.int32), encoded)
        assert reason in str(error.value)


def test_random_ids_never_decode_to_something_else_than_the_grammar_allows(codec, observation):
    rng = np.random.default_rng(0)
    encoded = codec.encode(observation)
    decoded = 0
    for _ in range(300):
        ids = codec.fast_to_model(rng.integers(0, codec.fast.vocab_size, rng.integers(1, 60)))
        count = codec.grammar.count[START, codec.model_to_fast(ids)].sum()
        if count == 50:
            assert np.isfinite(codec.decode(ids, encoded)).all()
            decoded += 1
        else:
            with pytest.raises(MalformedChunkError):
                codec.decode(ids, encoded)
    assert decoded > 0


def test_id_maps(codec):
    fast_ids = np.arange(codec.fast.vocab_size)
    model_ids = codec.fast_to_model(fast_ids)
    assert model_ids[0] == 1024 - 1 - 128
    np.testing.assert_array_equal(codec.model_to_fast(model_ids), fast_ids)
    assert codec.is_fast(np.arange(1024)).sum() == codec.fast.vocab_size
    assert codec.is_fast(model_ids).all()


def test_absent_cameras_are_not_in_the_images(codec, observation, libero):
    assert list(codec.encode(observation).images) == ['base_0_rgb', 'wrist_0_rgb']
    assert list(libero[0].encode(golden_observation(libero, 0)).images) == [
        'base_0_rgb', 'left_wrist_0_rgb']


@pytest.mark.parametrize(('changes', 'message'), [
    ({'images': {'base_0_rgb': np.zeros((4, 4, 3), np.uint8)}},
     'images: found no wrist_0_rgb, expected base_0_rgb, wrist_0_rgb'),
    ({'images': {k: np.zeros((4, 4, 3), np.uint8) for k in ('base_0_rgb', 'wrist_0_rgb', 'x')}},
     'images: found x, expected base_0_rgb, wrist_0_rgb'),
    ({'images': {k: np.zeros((4, 4, 3)) for k in ('base_0_rgb', 'wrist_0_rgb')}},
     r'images: base_0_rgb: found float64 \[4, 4, 3\], expected uint8 \[h, w, 3\]'),
    ({'state': np.zeros(4, np.float32)}, r'state: found shape \[4\], expected \[5\]'),
    ({'state': np.array([0, 0, np.nan, 0, 0])}, 'state: found NaN or infinity for elbow'),
    ({'instruction': 'qz' * 60},
     r'instruction: the prompt has \d+ tokens, expected at most 80 \(max_token_len\)'),
])
def test_observations_that_do_not_fit(codec, observation, changes, message):
    with pytest.raises(ObservationError, match=message):
        codec.encode(dataclasses.replace(observation, **changes))


def test_examples_that_must_not_be_learned(codec, observation, actions):
    with pytest.raises(UnencodableChunkError, match='no entry for'):
        codec.encode_example(observation, actions + 100)
    long = dataclasses.replace(observation, instruction='qz' * 28)
    with pytest.raises(UnencodableChunkError, match=r'expected 80 \(max_token_len\) in all'):
        codec.encode_example(long, actions)
    with pytest.raises(ValueError, match=r'actions: found shape \(9, 5\), expected \(10, 5\)'):
        codec.encode_example(observation, actions[:-1])


def test_z_score(profile, contract, norm_stats, text, fast, observation, chunks):
    codec = PolicyCodec(
        profile=dataclasses.replace(profile, normalization='z-score'),
        contract=dataclasses.replace(contract, normalization='z-score'),
        norm_stats=norm_stats, text=text, fast=fast)
    deltas = chunks[3] * norm_stats.actions.std + norm_stats.actions.mean
    actions = deltas + np.array([0.1, -0.2, 0.3, 0.4, 0.0])
    example = codec.encode_example(observation, actions)
    decoded = codec.decode(example.tokens[example.loss_mask], codec.encode(observation))
    # Half a FAST step (0.05) in all coefficients, in standard deviations.
    assert np.linalg.norm(decoded - actions) <= (
        np.sqrt(50) * 0.05 * norm_stats.actions.std.max() * 1.01)
