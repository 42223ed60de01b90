"""Speculation in the engine: the same ids, whoever guesses and however badly."""

import json
import shutil

import jax
import numpy as np
import pytest

from ros_pi0_fast.accel.draft_file import FOLDER, DrafterError, flatten, save_drafter
from ros_pi0_fast.accel.drafter_head import HeadSize, init_head
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant, VariantError

HIDDEN = 24


@pytest.fixture(scope='module')
def with_drafters(folder, profile, tmp_path_factory):
    """Return a checkpoint with a head of random weights, and a table of a few chunks."""
    copy = tmp_path_factory.mktemp('drafters') / 'checkpoint'
    shutil.copytree(folder, copy)
    checkpoint, codec = load_policy(folder, profile)
    columns = codec.fast.vocab_size
    config = checkpoint.config
    size = HeadSize(columns=columns, coefficients=config.action_dim * config.action_horizon,
                    hidden=HIDDEN, depth=1)
    head = jax.jit(init_head, static_argnums=(0, 1))(config.gemma, size, jax.random.key(0))
    save_drafter(copy / FOLDER, 'head', flatten(head), {'hidden': HIDDEN, 'depth': 1}, {})
    rng = np.random.default_rng(0)
    table = NgramDrafter.build([rng.integers(columns, size=20) for _ in range(20)], columns)
    arrays = {f'keys{i}': keys for i, keys in enumerate(table.keys)}
    arrays |= {f'following{i}': ids for i, ids in enumerate(table.following)}
    save_drafter(copy / FOLDER, 'ngram', arrays, {'columns': columns}, {})
    return copy


@pytest.fixture(scope='module')
def engine(with_drafters, profile):
    return Engine(*load_policy(with_drafters, profile))


def switch(engine, **fields):
    engine.request(variant=Variant(speculative=True, **fields))
    assert engine.wait(240) and not engine.failure


@pytest.mark.parametrize(('drafter', 'length'), [
    ('head', 1), ('head', 4), ('ngram', 2), ('previous_chunk', 8), ('head', 0)])
def test_the_ids_are_those_of_the_default(engine, observations, drafter, length):
    seen = observations(6)
    engine.request(variant=Variant())
    expected = [engine.infer(observation) for observation in seen]
    switch(engine, drafter=drafter, draft_length=length)
    for observation, chunk in zip(seen, expected, strict=True):
        found = engine.infer(observation)
        np.testing.assert_array_equal(found.token_ids, chunk.token_ids)
        np.testing.assert_array_equal(found.actions, chunk.actions)
        stats = found.stats
        assert stats.draft_length == length or not length
        assert 0 <= stats.accepted_tokens <= stats.drafted_tokens
        assert stats.target_passes <= chunk.stats.target_passes
        assert stats.target_passes + stats.accepted_tokens in (
            chunk.stats.target_passes, chunk.stats.target_passes + 1)


def test_the_chunk_before_is_guessed_where_nothing_has_changed(engine, observations):
    seen, = observations(1)
    switch(engine, drafter='previous_chunk', draft_length=4)
    engine.infer(seen)
    again = engine.infer(seen)
    assert again.stats.accepted_tokens == again.stats.drafted_tokens > 0
    other = type(seen)(images=seen.images, state=seen.state, stamp_ns=seen.stamp_ns,
                       instruction='push the red cube to the blue mat')
    assert engine.infer(other).stats.drafted_tokens == 0


def test_freely_decoded_ids_are_not_guessed(engine, observations):
    seen, = observations(1)
    engine.request(variant=Variant(speculative=True), malformed='reject')
    assert engine.wait(240) and not engine.failure
    assert engine.infer(seen).stats.draft_length == 0
    engine.request(variant=Variant(), malformed='constrain')


def test_what_cannot_be_is_named(engine, policy):
    with pytest.raises(VariantError, match=r'speculative\.draft_length: 17, expected 0 to 16'):
        Variant(draft_length=17)
    with pytest.raises(VariantError, match=r"speculative\.drafter: 'oracle', expected one of hea"):
        Variant(drafter='oracle')
    with pytest.raises(VariantError, match=r'speculative\.enabled: true, expected engine\.in_pla'):
        Variant(speculative=True, in_place_cache=False, quantized_cache='none')
    plain = Engine(*policy)
    with pytest.raises(VariantError, match=r'speculative\.drafter: head, expected one that the '
                                           'checkpoint has: previous_chunk'):
        plain.check(Variant(speculative=True))
    engine.check(Variant(speculative=True))


@pytest.mark.parametrize(('change', 'text'), [
    ({'sizes': {'hidden': 25, 'depth': 1}},
     r'head\.json: is for another policy: block0/mlp_in: found \(48, 24\), expected \(48, 25\)'),
    ({}, r"head\.json: is no drafter: 'sizes'"),
])
def test_a_drafter_of_another_policy_is_refused(with_drafters, profile, tmp_path, change, text):
    copy = tmp_path / 'checkpoint'
    shutil.copytree(with_drafters, copy)
    (copy / FOLDER / 'head.json').write_text(json.dumps(change))
    with pytest.raises(DrafterError, match=text):
        Engine(*load_policy(copy, profile))
