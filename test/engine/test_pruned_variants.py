"""Pruning in the engine: what is kept, what is remembered, and that nothing else changes."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from ros_pi0_fast.accel.pruning import PruningError
from ros_pi0_fast.accel.pruning_file import FOLDER, load_pruner, save_pruner
from ros_pi0_fast.accel.pruning_scores import LearnedScorer
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.pruning import PrunedPrefill
from ros_pi0_fast.engine.variant import Variant, VariantError

pytestmark = pytest.mark.usefixtures('quick_compilation')
SCORER = LearnedScorer(heads=2, head_dim=4, hidden=8)
HALF = Variant(pruning=True)
QUARTER = Variant(pruning=True, keep_ratio=0.25)
IMAGE_TOKENS = 32
"""Two cameras of 4 x 4."""


@pytest.fixture(scope='module')
def with_pruner(folder, tmp_path_factory):
    """Return a checkpoint that has a pruner below."""
    copy = tmp_path_factory.mktemp('pruned') / 'checkpoint'
    shutil.copytree(folder, copy)
    save_pruner(copy / FOLDER, SCORER, SCORER.init(jax.random.key(0), IMAGE_TOKENS, 48), {})
    return copy


@pytest.fixture(scope='module')
def trained(with_pruner, profile):
    return load_policy(with_pruner, profile)


def swap(engine, variant):
    engine.request(variant=variant)
    assert engine.wait(120) and not engine.failure


def kept(chunk):
    return sum(chunk.stats.kept_tokens.values())


@pytest.mark.usefixtures('one_bucket')
def test_it_is_swapped_in_and_out_and_leaves_nothing_behind(trained, observations):
    engine, (seen,) = Engine(*trained), observations(1)
    before = engine.infer(seen)
    assert before.stats.kept_tokens == {'base_0_rgb': 16, 'wrist_0_rgb': 16}
    swap(engine, HALF)
    half = engine.infer(seen)
    assert half.valid and kept(half) == 16 and half.stats.variant == 'pruning=true'
    assert half.stats.prefix_tokens == 16 + half.stats.prompt_tokens
    swap(engine, QUARTER)
    assert kept(engine.infer(seen)) == 8
    swap(engine, Variant())
    after = engine.infer(seen)
    np.testing.assert_array_equal(after.token_ids, before.token_ids)
    assert kept(after) == 32 and engine.infer(seen).stats.variant == 'default'


@pytest.mark.usefixtures('one_bucket')
def test_keeping_everything_gives_the_same_tokens(policy, trained, observations):
    plain, seen = Engine(*policy), observations(5)
    for loaded in (policy, trained):
        engine = Engine(*loaded, variant=Variant(pruning=True, keep_ratio=1.0))
        for each in seen:
            np.testing.assert_array_equal(engine.infer(each).token_ids,
                                          plain.infer(each).token_ids)


@pytest.mark.usefixtures('one_bucket')
@pytest.mark.parametrize('by_history', [False, True])
def test_what_is_remembered_is_taken_over_and_lost_with_a_frame(
        policy, trained, observations, monkeypatch, by_history):
    engine = Engine(*(policy if by_history else trained), variant=HALF)
    seen = observations(3)
    engine.infer(seen[0])
    before = engine.memory.pruning.state
    engine.infer(seen[1])
    assert before.tokens.is_deleted() and before.scores.is_deleted()
    assert int(engine.memory.pruning.state.frames) == 2
    decode = engine._active.decoding.arguments

    def fail(*arguments):
        raise RuntimeError('the device is gone')

    monkeypatch.setattr(engine._active.decoding, 'arguments', fail)
    with pytest.raises(RuntimeError, match='gone'):
        engine.infer(seen[2])
    assert engine.memory.pruning.state is None
    monkeypatch.setattr(engine._active.decoding, 'arguments', decode)
    chunk = engine.infer(seen[2])
    assert chunk.valid and int(engine.memory.pruning.state.frames) == 1
    assert kept(chunk) == (32 if by_history else 16)


def test_nothing_is_compiled_after_the_warm_up(trained, observations):
    engine = Engine(*trained, variant=Variant(pruning=True, adaptive=True))
    engine.warm_up()
    before = engine.compilations
    counts = {kept(engine.infer(each)) for each in observations(20)}
    assert counts <= {8, 12, 16} and engine.compilations == before


@pytest.mark.usefixtures('one_bucket')
@pytest.mark.parametrize('fields', [
    {}, {'unrolled_layers': False, 'in_place_cache': False, 'matrix_weights': False},
    {'quantized_cache': 'int8', 'quantized_weights': 'int8'}, {'constant_prefix': False}],
    ids=str)
def test_without_training_the_first_frame_is_whole_and_others_go_by_its_attention(
        policy, observations, fields):
    engine = Engine(*policy, variant=Variant(pruning=True, keep_ratio=0.25, **fields))
    plain = Engine(*policy, variant=Variant(**fields))
    first, other = observations(2)
    chunk = engine.infer(first)
    assert kept(chunk) == 32
    np.testing.assert_array_equal(chunk.token_ids, plain.infer(first).token_ids)
    assert kept(engine.infer(first)) == kept(engine.infer(first)) == 8
    # A new instruction, and a picture of something else, start anew.
    assert kept(engine.infer(dataclasses.replace(first, instruction='push it'))) == 32
    assert kept(engine.infer(dataclasses.replace(first, instruction='push it'))) == 8
    assert kept(engine.infer(dataclasses.replace(other, instruction='push it'))) == 32


@pytest.mark.usefixtures('one_bucket')
def test_frames_that_went_by_unpruned_are_not_remembered(policy, observations):
    engine, (seen,) = Engine(*policy, variant=HALF), observations(1)
    assert [kept(engine.infer(seen)) for _ in range(2)] == [32, 16]
    swap(engine, Variant())
    engine.infer(seen)
    swap(engine, HALF)
    assert [kept(engine.infer(seen)) for _ in range(2)] == [32, 16]


@pytest.mark.usefixtures('one_bucket')
def test_what_is_to_be_forgotten_is_not_remembered(policy, observations):
    engine, (seen,) = Engine(*policy, variant=HALF), observations(1)
    assert [kept(engine.infer(seen)) for _ in range(2)] == [32, 16]
    engine.forget()
    assert [kept(engine.infer(seen)) for _ in range(2)] == [32, 16]


@pytest.mark.usefixtures('one_bucket')
def test_cameras_that_the_robot_lacks_are_left_out(with_pruner, profile, observations):
    camera = {'wrist_0_rgb': profile.cameras['wrist_0_rgb']}
    blind = dataclasses.replace(profile, cameras=camera, absent_cameras=('base_0_rgb',))
    engine = Engine(*load_policy(with_pruner, blind), variant=HALF)
    plain = Engine(*load_policy(with_pruner, blind))
    seen = observations(1)[0]
    seen = dataclasses.replace(seen, images={'wrist_0_rgb': seen.images['wrist_0_rgb']})
    stats = engine.infer(seen).stats
    assert stats.kept_tokens == {'wrist_0_rgb': 8}
    assert stats.prefix_tokens == 8 + stats.prompt_tokens
    assert plain.infer(seen).stats.prefix_tokens == 32 + stats.prompt_tokens
    stage, = {key[0] for key, _ in engine.compiler.executables()
              if isinstance(key[0], PrunedPrefill)}
    assert stage.pruner.cameras == (False, True)


def test_a_pruner_of_another_policy_is_refused(with_pruner, folder, profile, tmp_path):
    _, weights = load_pruner(with_pruner / FOLDER, tokens=IMAGE_TOKENS, width=48)
    wrong = tmp_path / 'wrong'
    shutil.copytree(folder, wrong)
    save_pruner(wrong / FOLDER, SCORER, weights | {'place_bias': np.zeros(8)}, {})
    with pytest.raises(PruningError, match=r'pruner\.json: tokens is 8, expected 32'):
        Engine(*load_policy(wrong, profile))
    (wrong / FOLDER / 'weights.npz').unlink()
    with pytest.raises(PruningError, match=r'wrong/pruner: is no pruner'):
        Engine(*load_policy(wrong, profile))


@pytest.mark.parametrize(('fields', 'text'), [
    ({'keep_ratio': 0.0}, r'pruning\.keep_ratio: 0, expected 0\.05 to 1'),
    ({'pruning': True, 'packed_prefix': False, 'flash_attention': False},
     r'pruning\.enabled: true, expected engine\.packed_prefix to be true with it')])
def test_what_cannot_be_is_named(fields, text):
    with pytest.raises(VariantError, match=text):
        Variant(**fields)
