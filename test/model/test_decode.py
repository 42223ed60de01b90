"""Greedy decoding stops where it should, and under a grammar always completes the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.codec.grammar import FastGrammar
from ros_pi0_fast.model import decode
from ros_pi0_fast.model.decode import DecodeOptions, Forced, GrammarTables, Progress

# Ids of one and two characters, and the two halves of a character of two bytes.
ID_BYTES = [b'a', b'b', b'ab', 'é'.encode()[:1], 'é'.encode()[1:], b'abba']
COEFFICIENTS = 7

greedy = jax.jit(decode.greedy, static_argnames=('model', 'options'))


@pytest.fixture(scope='module')
def host_grammar():
    return FastGrammar.build(ID_BYTES, COEFFICIENTS)


@pytest.fixture(scope='module')
def grammar(host_grammar):
    g = host_grammar
    return GrammarTables(count=jnp.asarray(g.count), next_state=jnp.asarray(g.next_state),
                         shortest=jnp.asarray(g.shortest))


@pytest.fixture(scope='module')
def start(make):
    """Return a network and what its prefill left, four rows."""
    model, params = make()
    embeddings = 3 * jax.random.normal(jax.random.key(2), (4, 6, 32))
    lengths = jnp.array([6, 3, 4, 5])
    hidden, cache = jax.jit(lambda params: model.prefill(
        params, embeddings, lengths, model.init_cache(params, 4, 24), last_only=True))(params)
    return model, params, hidden, cache


def test_each_id_is_the_likeliest_and_each_pass_is_used(start):
    model, params, hidden, cache = start
    state = greedy(*start, options=DecodeOptions(max_ids=6, eos_id=None))
    step = jax.jit(model.decode_step)
    for i in range(6):
        expected = jnp.argmax(model.logits(params, hidden[:, -1]), axis=-1)
        np.testing.assert_array_equal(state.tokens[:, i], expected)
        hidden, cache = step(params, expected[:, None].astype(jnp.int32), cache)
    np.testing.assert_array_equal(state.length, [6] * 4)
    # The id chosen last was not fed in: five passes for six ids.
    np.testing.assert_array_equal(state.cache.length, np.array([6, 3, 4, 5]) + 5)
    assert not state.finished.any()


def test_a_row_ends_with_its_eos(start):
    free = np.asarray(greedy(*start, options=DecodeOptions(max_ids=8, eos_id=None)).tokens)
    eos = int(free[2, 3])
    state = greedy(*start, options=DecodeOptions(max_ids=8, eos_id=eos))
    for row in range(4):
        ends = np.flatnonzero(free[row] == eos)
        length = ends[0] + 1 if len(ends) else 8
        assert state.length[row] == length
        assert state.finished[row] == bool(len(ends))
        np.testing.assert_array_equal(state.tokens[row, :length], free[row, :length])
        np.testing.assert_array_equal(state.tokens[row, length:], 0)


def test_the_loop_stops_when_all_rows_are_finished(start):
    model, params, hidden, cache = start
    one = jax.tree.map(lambda x: x[2:3], (hidden, cache))
    free = greedy(model, params, *one, options=DecodeOptions(max_ids=8, eos_id=None))
    eos = int(free.tokens[0, 1])
    first = int(np.flatnonzero(np.asarray(free.tokens[0]) == eos)[0])
    state = greedy(model, params, *one, options=DecodeOptions(max_ids=8, eos_id=eos))
    assert state.step == first + 1
    assert state.cache.length[0] == 4 + first


@pytest.mark.parametrize('seed', range(8))
def test_under_a_grammar_every_chunk_is_complete(start, grammar, host_grammar, seed):
    model, params, hidden, cache = start
    candidates = jax.random.permutation(jax.random.key(seed), 60)[:6].astype(jnp.int32)
    hidden = hidden + jax.random.normal(jax.random.key(seed), hidden.shape)
    state = greedy(model, params, hidden, cache, candidates=candidates, grammar=grammar,
                   options=DecodeOptions(max_ids=host_grammar.max_ids))
    columns = {int(model_id): column for column, model_id in enumerate(candidates)}
    for row in range(4):
        ids = np.asarray(state.tokens)[row, :int(state.length[row])]
        text = b''.join(ID_BYTES[columns[int(i)]] for i in ids).decode('utf-8')
        assert len(text) == COEFFICIENTS
    assert state.finished.all()


def test_a_short_buffer_is_enough_if_any_sequence_fits(start, grammar, host_grammar):
    shortest = int(host_grammar.shortest[0, COEFFICIENTS])
    state = greedy(*start, candidates=jnp.arange(6), grammar=grammar,
                   options=DecodeOptions(max_ids=shortest))
    assert state.finished.all()


def test_allowed_ids_are_those_of_the_host(grammar, host_grammar):
    rng = np.random.default_rng(0)
    for _ in range(50):
        state, remaining = rng.integers(0, 8), rng.integers(0, COEFFICIENTS + 1)
        left = int(rng.integers(1, 9))
        progress = Progress(state=jnp.array([state]), remaining=jnp.array([remaining]))
        np.testing.assert_array_equal(
            progress.allowed(grammar, jnp.int32(left))[0],
            host_grammar.allowed(int(state), int(remaining), left))


def test_forced_ids_come_around_the_chosen_ones(start, grammar):
    model, params, _, cache = start
    candidates, options = jnp.arange(40, 46), DecodeOptions(max_ids=7, eos_id=None)
    before, after = jnp.array([3, 4, 5], jnp.int32), jnp.array([6, 1], jnp.int32)
    arguments = {'options': options, 'candidates': candidates, 'grammar': grammar}
    state = greedy(*start, **arguments, forced=Forced(before=before, after=after))
    fed, filled = model.decode_step(params, jnp.broadcast_to(before, (4, 3)), cache)
    chosen = greedy(model, params, fed[:, -1:], filled, **arguments)
    for row, length in enumerate(np.asarray(chosen.length)):
        ids = np.concatenate([before, chosen.tokens[row, :length], after])
        assert state.length[row] == len(ids)
        np.testing.assert_array_equal(state.tokens[row, :len(ids)], ids)
        assert not state.tokens[row, len(ids):].any()


def test_the_whole_head_chooses_as_its_rows_do(start, grammar):
    model, params, *_ = start
    arguments = {'options': DecodeOptions(max_ids=7, eos_id=None), 'grammar': grammar,
                 'candidates': jnp.arange(40, 46)}
    np.testing.assert_array_equal(
        greedy(*start, **arguments).tokens,
        greedy(*start, **arguments, head=model.head(params)).tokens)


@pytest.mark.parametrize('rows', [1, 5])
def test_the_likeliest_is_the_first_of_the_highest(rows):
    scores = np.random.default_rng(rows).integers(-3, 3, (rows, 40)).astype(np.float32)
    scores[:, ::7] = -np.inf
    np.testing.assert_array_equal(decode.likeliest(jnp.asarray(scores)), scores.argmax(-1))
    nothing = jnp.full((rows, 40), -jnp.inf)
    np.testing.assert_array_equal(decode.likeliest(nothing), np.zeros(rows))
    unknown = decode.likeliest(nothing.at[:, 3].set(jnp.nan))
    assert ((unknown >= 0) & (unknown < 40)).all()
