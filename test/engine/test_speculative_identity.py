"""Speculation by the shipped drafters gives the ids of plain decoding, and never loses."""

import dataclasses

import jax
import numpy as np
import pytest

from ros_pi0_fast.accel.draft_file import FOLDER, flatten, save_drafter
from ros_pi0_fast.accel.drafter_head import HeadSize, init_head
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.evaluation.benchmark import recorded_observations
from ros_pi0_fast.evaluation.random_policy import random_observations, random_policy

DRAFTERS = ('head', 'previous_chunk', 'ngram')
LENGTHS = (1, 2, 4, 8)
COMPILE_LIMIT_S = 600


def infer_all(engine, seen, variant):
    """Return the ids of each observation, and how many were guessed and right."""
    engine.request(variant=variant)
    assert engine.wait(COMPILE_LIMIT_S) and not engine.failure
    chunks = [engine.infer(observation) for observation in seen]
    stats = [chunk.stats for chunk in chunks]
    return ([chunk.token_ids for chunk in chunks], sum(each.target_passes for each in stats),
            sum(each.accepted_tokens for each in stats))


def expect_identical(policy, seen, lengths, least):
    """Compare each drafter's ids with plain ones; its ids a pass are at least as given."""
    engine = Engine(*policy)
    expected, passes, _ = infer_all(engine, seen, Variant())
    for drafter in DRAFTERS:
        for length in lengths:
            found, fewer, accepted = infer_all(engine, seen, Variant(
                speculative=True, drafter=drafter, draft_length=length))
            same = sum(map(np.array_equal, found, expected))
            print(f'{drafter}, {length}: {same} of {len(seen)} identical, '
                  f'{passes / fewer:.2f} ids a pass, {accepted} guesses right')
            assert same == len(seen), (drafter, length)
            assert passes / fewer >= least[drafter], (drafter, length)


@pytest.fixture(scope='module')
def shipped(profile, repository):
    return load_policy(repository / 'checkpoints' / 'tabletop', profile)


def test_a_few_recorded_observations(shipped):
    expect_identical(shipped, recorded_observations(12), (4,),
                     {'head': 1.5, 'previous_chunk': 1.0, 'ngram': 1.2})


@pytest.mark.slow
def test_500_recorded_observations(shipped):
    expect_identical(shipped, recorded_observations(500), LENGTHS,
                     {'head': 1.2, 'previous_chunk': 1.0, 'ngram': 1.1})


@pytest.mark.slow
def test_100_observations_of_random_weights(tmp_path):
    """The head guesses at random, the table knows chunks of other observations."""
    checkpoint, codec = random_policy('mid')
    seen = random_observations(codec, 110, prompt_tokens=60)
    checkpoint = dataclasses.replace(checkpoint, folder=tmp_path)
    columns, config = codec.fast.vocab_size, checkpoint.config
    size = HeadSize(columns=columns, coefficients=config.action_dim * config.action_horizon,
                    hidden=64, depth=2)
    save_drafter(tmp_path / FOLDER, 'head',
                 flatten(init_head(config.gemma, size, jax.random.key(0))),
                 {'hidden': 64, 'depth': 2}, {})
    engine = Engine(checkpoint, codec)
    chunks = [codec.model_to_fast(codec.chunk_ids(engine.infer(observation).token_ids))
              for observation in seen[100:]]
    table = NgramDrafter.build(chunks, columns)
    arrays = {f'keys{i}': keys for i, keys in enumerate(table.keys)}
    arrays |= {f'following{i}': ids for i, ids in enumerate(table.following)}
    save_drafter(tmp_path / FOLDER, 'ngram', arrays, {'columns': columns}, {})
    expect_identical((checkpoint, codec), seen[:100], LENGTHS, dict.fromkeys(DRAFTERS, 1.0))


@pytest.mark.slow
def test_guesses_at_random_cost_nothing_after_a_few_chunks(shipped):
    """At most 5 % of the time of decoding, after the first 20 chunks."""
    checkpoint, codec = shipped
    seen = recorded_observations(220)
    plain, guessing = Engine(checkpoint, codec), Engine(checkpoint, codec)
    head = guessing._speculation.drafters['head']
    rng = np.random.default_rng(0)
    guessing._speculation.drafters['head'] = head.replace(weights=jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype), head.weights))
    infer_all(guessing, seen[:20], Variant(speculative=True, drafter='head'))
    times = [[engine.infer(observation).stats.decode_ms for engine in (plain, guessing)]
             for observation in seen[20:]]
    expected, found = np.mean(np.sort(times, axis=0)[:-10], axis=0)
    print(f'{found:.2f} ms, without guesses {expected:.2f} ms')
    assert found < 1.05 * expected
