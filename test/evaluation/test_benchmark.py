"""The benchmark and the profile measure what they say, on the real engine."""

import json

import numpy as np
import pytest

from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import LOSSLESS, REFERENCE, Variant, VariantError, alone
from ros_pi0_fast.evaluation import benchmark
from ros_pi0_fast.evaluation.benchmark import (
    Row,
    measure,
    parse_variant,
    report,
    token_agreement,
)
from ros_pi0_fast.evaluation.machine import Machine
from ros_pi0_fast.evaluation.profile import profile, stage_table
from ros_pi0_fast.evaluation.random_policy import random_observations, random_policy


@pytest.fixture(scope='module')
def engine(random_checkpoint, tabletop_profile):
    return Engine(*load_policy(random_checkpoint, tabletop_profile), variant=REFERENCE)


@pytest.fixture(scope='module')
def observations(random_checkpoint, tabletop_profile):
    _, codec = load_policy(random_checkpoint, tabletop_profile)
    return random_observations(codec, 3, prompt_tokens=40)


def test_rows_and_json_say_the_same(engine, observations):
    rows = [Row(name=name, variant=parse_variant(name)) for name in ('reference', 'default')]
    measure(engine, rows, observations, runs=3)
    text = report('tabletop', rows, len(observations)).splitlines()
    data = json.loads(text[-1])
    assert data['preset'] == 'tabletop' and set(data['variants']) == {'reference', 'default'}
    reference, default = data['variants']['reference'], data['variants']['default']
    assert reference['ratio'] == 1 and default['tokens_identical'] is True
    assert default['ratio'] == pytest.approx(reference['total_ms'] / default['total_ms'])
    for row in rows:
        found = data['variants'][row.name]
        assert len(row.times['total_ms']) == 3
        assert found['total_ms'] == np.median(row.times['total_ms'])
        stages = (row.times[stage] for stage in ('vision_ms', 'prefill_ms', 'decode_ms'))
        for total, *parts in zip(row.times['total_ms'], *stages, strict=True):
            assert 0 < min(parts) < sum(parts) < total
        assert found['compile_s'] > 0 < found['peak_mb']
    assert text[1].startswith('reference ') and ' 3/3 ' in text[2]


def test_other_tokens_are_counted(engine, observations, monkeypatch):
    rows = [Row(name='reference', variant=REFERENCE), Row(name='default', variant=Variant())]
    real = Engine.infer

    def change(self, observation):
        chunk = real(self, observation)
        if chunk.stats.variant == 'default' and observation is observations[0]:
            object.__setattr__(chunk, 'token_ids', chunk.token_ids[:-1])
        return chunk

    monkeypatch.setattr(Engine, 'infer', change)
    measure(engine, rows, observations, runs=1)
    assert [row.identical for row in rows] == [3, 2]
    assert rows[0].agreement == 1 and 0.6 < rows[1].agreement < 1
    assert '"tokens_identical": false' in report('tabletop', rows, 3)


def test_agreement_counts_places():
    for ids, expected, agreement in (([1, 2, 3], [1, 2, 3], 1), ([1, 9, 3], [1, 2, 3], 2 / 3),
                                     ([1, 2], [1, 2, 3, 4], 0.5), ([7], [1, 2], 0)):
        assert token_agreement(np.array(ids), np.array(expected)) == pytest.approx(agreement)


def test_variants_by_name():
    assert parse_variant('quantization.weights=int4,quantized_cache=int8') == Variant(
        quantized_weights='int4', quantized_cache='int8')
    assert parse_variant('reference') == REFERENCE and parse_variant('default') == Variant()
    assert parse_variant('early_stop=false,cut_head=false') == Variant(early_stop=False,
                                                                       cut_head=False)
    for gain in LOSSLESS:
        changed = {name for name in LOSSLESS
                   if getattr(parse_variant(gain), name) != getattr(REFERENCE, name)}
        assert gain in changed and len(changed) <= 2 and parse_variant(gain) == alone(gain)
    with pytest.raises(ValueError, match="'turbo': expected field=value"):
        parse_variant('turbo')
    with pytest.raises(VariantError, match=r'expected engine\.unrolled_layers to be true'):
        parse_variant('unrolled_layers=false')


@pytest.mark.parametrize('length', [30, 41])
def test_prompts_have_the_length_that_was_asked_for(length):
    _, codec = random_policy('tiny')
    for observation in random_observations(codec, 3, prompt_tokens=length):
        assert len(codec.encode(observation).prompt_ids) == length
    with pytest.raises(ValueError, match='prompt_tokens: 500, expected a length between'):
        random_observations(codec, 1, prompt_tokens=500)


def test_weights_that_make_no_chunk_decode_as_many_ids_as_told():
    checkpoint, codec = random_policy('tiny')
    engine = Engine(checkpoint, codec, malformed='fixed', max_decode_tokens=7)
    chunk = engine.infer(random_observations(codec, 1, prompt_tokens=40)[0])
    assert len(chunk.token_ids) == 7 and chunk.stats.target_passes == 6
    assert not chunk.valid and chunk.reason.startswith('fixed: ')


def test_the_table_of_stages_compares_with_the_machine():
    from ros_pi0_fast.evaluation.profile import StageCost
    machine = Machine(device='test', copy=1e9, matrix_vector=1e9, matmul=1e12)
    table = stage_table({'prefill': 4.0, 'decode': 6.0},
                        {'prefill': StageCost(weight_bytes=1e6, operations=2e9),
                         'decode': StageCost(weight_bytes=3e6, operations=1e6)}, machine, 2)
    prefill, decode = (line.split() for line in table.splitlines()[1:3])
    # Operations bound the prefill (2 ms of 4), bytes the decoding (3 ms of 6).
    assert prefill[-2:] == ['2.00', '2.00'] and decode[-2:] == ['3.00', '2.00']
    assert decode[2] == '60.0%' and '2 passes of 3.00 ms' in table


def test_the_engine_s_stages_are_in_the_table(engine, observations, monkeypatch):
    monkeypatch.setattr('ros_pi0_fast.evaluation.machine.COPY_BYTES', 2**20)
    monkeypatch.setattr('ros_pi0_fast.evaluation.machine.MATMUL_SIZE', 128)
    engine.request(variant=Variant())
    assert engine.wait(120)
    engine.infer(observations[0])
    table = profile(engine, observations, 3)
    for stage in ('preprocess', 'vision', 'prefill', 'decode', 'total'):
        assert f'\n{stage} ' in table
    assert 'GB/s' in table and 'x floor' in table


def test_recorded_observations_are_no_evaluation_s():
    from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS
    seen = benchmark.recorded_observations(3)
    assert len(seen) == 3 and benchmark.RECORDED_SEED < EVALUATION_SEEDS
    assert seen[0].images['base_0_rgb'].shape == (64, 64, 3)
