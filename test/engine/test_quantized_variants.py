"""Weights of few bits are a variant like others: live, and as a checkpoint of their own."""

import shutil

import jax
import numpy as np
import pytest

from ros_pi0_fast.accel.quantization import Scheme
from ros_pi0_fast.accel.quantized_checkpoint import quantize_checkpoint, tree_bytes
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant, VariantError
from ros_pi0_fast.weights.errors import CheckpointError

pytestmark = pytest.mark.usefixtures('quick_compilation')
INT8 = Variant(quantized_weights='int8', quantized_cache='int8')
INT4 = Variant(quantized_weights='int4')


@pytest.fixture(scope='module')
def with_int4(folder, tmp_path_factory):
    """Return a checkpoint that has int4 weights of its own below."""
    copy = tmp_path_factory.mktemp('quantized') / 'checkpoint'
    shutil.copytree(folder, copy)
    quantize_checkpoint(folder, copy / 'int4', Scheme(weights='int4', group_size=None,
                                                      keep_int8=('PaliGemma/img/head/kernel',)))
    return copy


@pytest.mark.usefixtures('one_bucket')
def test_they_are_swapped_in_between_chunks(policy, observations):
    engine, (seen,) = Engine(*policy), observations(1)
    wide = tree_bytes(engine.params)
    before = engine.infer(seen)
    engine.request(variant=INT8)
    assert engine.wait(120) and not engine.failure
    chunk = engine.infer(seen)
    assert chunk.valid and chunk.stats.variant == 'quantized_weights=int8,quantized_cache=int8'
    assert tree_bytes(engine.params) < 0.5 * wide  # Patches and positions stay wide.
    assert engine.weight_bytes == wide + tree_bytes(engine.params)
    engine.request(variant=Variant())
    np.testing.assert_array_equal(engine.infer(seen).token_ids, before.token_ids)


@pytest.mark.usefixtures('one_bucket')
def test_stored_weights_are_used_as_they_are(with_int4, profile, observations):
    beside = Engine(*load_policy(with_int4, profile), variant=INT4)
    alone = Engine(*load_policy(with_int4 / 'int4', profile), variant=INT4)
    head = beside.params['PaliGemma']['img']['head']['kernel']
    assert head.parts[0].bits == 8  # As stored; what rounding makes has 4 there.
    jax.tree.map(np.testing.assert_array_equal, beside.params, alone.params)
    for seen in observations(2):
        chunk = beside.infer(seen)
        assert chunk.valid
        np.testing.assert_array_equal(chunk.token_ids, alone.infer(seen).token_ids)


def test_what_is_not_stored_cannot_run(with_int4, profile):
    stored = load_policy(with_int4 / 'int4', profile)
    with pytest.raises(VariantError, match=r'quantization\.weights: none, expected int4, as .*'
                                           'has no other weights'):
        Engine(*stored)
    engine = Engine(*stored, variant=INT4)
    with pytest.raises(VariantError, match=r'quantization\.weights: int8, expected int4'):
        engine.check(INT8)


def test_weights_of_another_policy_are_refused(with_int4, profile, tmp_path):
    mixed = tmp_path / 'mixed'
    shutil.copytree(with_int4, mixed)
    shutil.move(mixed / 'int4', mixed / 'int8')
    with pytest.raises(CheckpointError, match=r'mixed/int8: int4 weights of .* expected int8'):
        load_policy(mixed, profile)


@pytest.mark.parametrize(('field', 'value', 'text'), [
    ('quantized_weights', 'int5', r"quantization\.weights: 'int5', expected one of none, int8"),
    ('quantized_cache', 'int4', r"quantization\.kv_cache: 'int4', expected one of none, int8")])
def test_values_that_there_are_not(field, value, text):
    with pytest.raises(VariantError, match=text):
        Variant(**{field: value})


@pytest.mark.parametrize(('needed', 'fields'), [
    ('engine.matrix_weights', {'matrix_weights': False, 'quantized_weights': 'int8'}),
    ('engine.in_place_cache', {'in_place_cache': False, 'quantized_cache': 'int8'})])
def test_what_they_need_is_named(needed, fields):
    with pytest.raises(VariantError, match=f': int8, expected {needed} to be true with it'):
        Variant(**fields)
