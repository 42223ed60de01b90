"""The engine: every chunk that it calls valid is one, whatever the weights say."""

import dataclasses
import re
import time

import jax
import numpy as np
import pytest

from ros_pi0_fast.accel.flash_attention import flash
from ros_pi0_fast.codec.contract import ContractError
from ros_pi0_fast.codec.fast import MalformedChunkError
from ros_pi0_fast.codec.policy_codec import ObservationError
from ros_pi0_fast.engine.background import COMPILE_THREAD
from ros_pi0_fast.engine.choice import EngineError
from ros_pi0_fast.engine.compiler import (
    CompilationCacheError,
    Compiler,
    enable_persistent_cache,
)
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.parameters import MIB, MemoryLimitError
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.stages import Decode, Prefill, Resize
from ros_pi0_fast.engine.variant import LOSSLESS, REFERENCE, Variant, alone
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.weights.checkpoint import CheckpointError


@pytest.fixture(scope='module')
def engine(policy):
    return Engine(*policy)


def test_constrained_decoding_always_gives_a_chunk(engine, observations):
    for observation in observations(500):
        chunk = engine.infer(observation)
        assert chunk.valid and not chunk.reason
        assert chunk.actions.shape == (10, 5) and np.isfinite(chunk.actions).all()
        assert chunk.stamp_ns == observation.stamp_ns


def test_free_decoding_never_passes_off_what_is_no_chunk(policy, observations):
    _, codec = policy
    engine = Engine(*policy, malformed='reject', max_decode_tokens=40)
    valid = 0
    for observation in observations(500, seed=1):
        chunk = engine.infer(observation)
        encoded = codec.encode(observation)
        if chunk.valid:
            valid += 1
            np.testing.assert_array_equal(chunk.actions, codec.decode(chunk.token_ids, encoded))
            continue
        assert chunk.actions.shape == (0, 5)
        assert chunk.reason.startswith('malformed: ')
        with pytest.raises(MalformedChunkError):
            codec.decode(chunk.token_ids, encoded)
    assert valid < 500


@pytest.mark.usefixtures('one_bucket')
def test_the_switch_between_both_is_live(policy, observations):
    engine = Engine(*policy, max_decode_tokens=40)
    observation = observations(1)[0]
    before = engine.infer(observation)
    engine.request(malformed='reject')
    assert engine.wait(60)
    assert not engine.infer(observation).valid
    engine.request(malformed='constrain')
    np.testing.assert_array_equal(engine.infer(observation).actions, before.actions)


@pytest.mark.parametrize('variant', [REFERENCE, *map(alone, LOSSLESS), Variant(
    early_stop=False, matrix_weights=False)], ids=lambda v: v.name)
def test_lossless_variants_give_the_same_tokens(policy, engine, observations, variant):
    other = Engine(*policy, variant=variant)
    for observation in observations(30, seed=2):
        ours, theirs = engine.infer(observation), other.infer(observation)
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        assert theirs.stats.variant == variant.name != ours.stats.variant


def test_nothing_is_compiled_after_the_warm_up(policy, observations):
    engine = Engine(*policy)
    lines = []
    engine.warm_up(lines.append)
    assert len(lines) == len(engine.buckets) > 1
    before = engine.compilations
    for observation in observations(60, seed=3):
        engine.infer(observation)
    assert engine.compilations == before


def test_pictures_of_a_new_size_never_wait_for_the_compiler(policy, observations):
    engine = Engine(*policy)
    engine.warm_up()
    before = engine.compilations
    seen = observations(3, seed=4, size=(120, 160))
    chunks = [engine.infer(observation) for observation in seen]  # Resized on the host at first.
    deadline = time.monotonic() + 60
    while engine.compilations == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [made.thread for made in engine.compiler.log[before:]] == [COMPILE_THREAD]
    for chunk, observation in zip(chunks, seen, strict=True):
        np.testing.assert_array_equal(engine.infer(observation).token_ids, chunk.token_ids)
    assert engine.compilations == before + 1


def test_pictures_of_the_model_s_size_are_left_alone(policy, observations):
    engine = Engine(*policy)
    height, width = engine.model.config.siglip.image_size
    engine.infer(observations(1, size=(height, width))[0])
    assert not any(isinstance(key[0], Resize) for key, _ in engine.compiler.executables())


def test_executables_are_not_kept_where_jax_reads_them_back_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, '__version_info__', (0, 6, 0))
    monkeypatch.setattr(jax, '__version__', '0.6.0')
    with pytest.raises(CompilationCacheError, match=r'JAX 0\.6\.0, expected at least 0\.6\.1'):
        enable_persistent_cache(tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()
    before = jax.config.jax_enable_compilation_cache
    try:
        Compiler()
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update('jax_enable_compilation_cache', before)


def test_stage_times_add_up(engine, observations):
    stats = engine.infer(observations(1)[0]).stats
    stages = (stats.preprocess_ms + stats.vision_ms + stats.prefill_ms + stats.decode_ms
              + stats.postprocess_ms)
    assert min(stats.vision_ms, stats.prefill_ms, stats.decode_ms) > 0
    assert stages == pytest.approx(stats.total_ms, rel=0.05)
    assert stats.generated_tokens > stats.target_passes > 0


@pytest.mark.usefixtures('one_bucket')
def test_cameras_that_the_robot_lacks_are_black(policy, profile, observations, folder):
    base = {key: camera for key, camera in profile.cameras.items() if key == 'base_0_rgb'}
    blind = dataclasses.replace(profile, cameras=base, absent_cameras=('wrist_0_rgb',))
    engine, observation = Engine(*load_policy(folder, blind)), observations(1)[0]
    black = dict(observation.images, wrist_0_rgb=np.zeros((64, 64, 3), np.uint8))
    seen = {'base_0_rgb': observation.images['base_0_rgb']}
    np.testing.assert_array_equal(
        engine.infer(dataclasses.replace(observation, images=seen)).token_ids,
        Engine(*policy).infer(dataclasses.replace(observation, images=black)).token_ids)


def test_a_wrong_observation_is_named(engine, observations):
    observation = observations(1)[0]
    with pytest.raises(ObservationError, match='wrist_0_rgb'):
        engine.infer(dataclasses.replace(
            observation, images={'base_0_rgb': observation.images['base_0_rgb']}))
    with pytest.raises(ObservationError, match='found NaN or infinity for shoulder'):
        engine.infer(dataclasses.replace(
            observation, state=np.array([0, np.nan, 0, 0, 0], np.float32)))


def test_parameters_that_cannot_be_honoured_are_named(policy):
    with pytest.raises(EngineError, match="malformed: 'zeros', expected one of constrain, reject"):
        Engine(*policy, malformed='zeros')
    with pytest.raises(EngineError, match='max_decode_tokens: 2, expected at least'):
        Engine(*policy, max_decode_tokens=2)


def test_a_profile_that_does_not_fit_is_refused(folder, profile):
    with pytest.raises(ContractError, match='normalization'):
        load_policy(folder, dataclasses.replace(profile, normalization='z-score'))


def test_a_folder_without_weights_is_refused(folder, profile, tmp_path):
    (tmp_path / 'assets').symlink_to(folder / 'assets')
    (tmp_path / 'policy.json').symlink_to(folder / 'policy.json')
    with pytest.raises(CheckpointError, match='params'):
        load_policy(tmp_path, profile)


@pytest.mark.usefixtures('one_bucket')
def test_variants_are_compiled_in_the_background_and_swapped_between_chunks(policy, observations):
    engine, observation = Engine(*policy), observations(1)[0]
    engine.warm_up()
    before = engine.compilations
    expected = engine.infer(observation).token_ids
    engine.request(variant=REFERENCE)
    assert engine.pending == REFERENCE
    ran = []
    while engine.pending:
        chunk = engine.infer(observation)
        np.testing.assert_array_equal(chunk.token_ids, expected)
        ran.append(chunk.stats.variant)
    assert engine.infer(observation).stats.variant == 'reference'
    assert ran.count('default') > 3 and ran == sorted(ran)  # 'default' first, then 'reference'
    engine.request(variant=Variant())
    assert engine.infer(observation).stats.variant == 'default'  # It is still there.
    made = engine.compiler.log[before:]
    assert made and {compilation.thread for compilation in made} == {COMPILE_THREAD}
    assert not engine.failure


@pytest.mark.usefixtures('one_bucket')
def test_weights_beyond_the_limit_are_refused_and_what_runs_stays(policy, observations):
    size = Engine(*policy).weight_bytes / MIB
    engine, observation = Engine(*policy, memory_limit_mb=1.5 * size), observations(1)[0]
    with pytest.raises(MemoryLimitError, match=r'memory_limit_mb: .*, expected at least'):
        engine.check(REFERENCE)
    engine.check(Variant(early_stop=False))  # Of the same weights.
    engine.request(variant=REFERENCE)
    assert engine.wait(60)
    assert engine.failure.startswith('reference: MemoryLimitError: memory_limit_mb')
    assert engine.infer(observation).stats.variant == 'default' and engine.pending is None


@pytest.mark.usefixtures('one_bucket')
def test_weights_that_nothing_uses_make_room(policy, observations):
    size = Engine(*policy).weight_bytes / MIB
    engine, observation = Engine(*policy, memory_limit_mb=2.5 * size), observations(1)[0]
    for variant in (REFERENCE, alone('unrolled_layers'), Variant(), REFERENCE):
        engine.request(variant=variant)
        assert engine.wait(60) and not engine.failure
        assert engine.infer(observation).stats.variant == variant.name
        assert engine.weight_bytes <= 2.5 * size * MIB


@pytest.mark.usefixtures('one_bucket')
@pytest.mark.parametrize('attend', [folded, flash])
def test_the_cache_is_written_in_place(policy, attend):
    """The decoding loop takes over the prefill's buffers and copies none of them."""
    engine = Engine(*policy, variant=Variant(flash_attention=False))
    engine.attention.candidates = {'only': attend}
    engine.request(variant=Variant())
    assert engine.wait(60)
    compiled = next(made for key, made in engine.compiler.executables()
                    if isinstance(key[0], Decode))
    config = engine.model.config.gemma
    capacity = next(key[0].capacity for key, _ in engine.compiler.executables()
                    if isinstance(key[0], Prefill))
    buffers = 2 * config.depth * capacity * config.num_kv_heads * config.head_dim * 4
    assert compiled.memory_analysis().alias_size_in_bytes >= buffers
    shape = f'f32[1,{capacity},{config.num_kv_heads},{config.head_dim}]'
    copies = [line for line in compiled.as_text().splitlines()
              if re.search(rf'= {re.escape(shape)}\S* copy\(', line)]
    assert not copies
