"""The automaton against the decoder that it stands for."""

import numpy as np
import pytest

from ros_pi0_fast.codec.fast import FastTokenizer, MalformedChunkError
from ros_pi0_fast.codec.grammar import START, STATES, UNREACHABLE, FastGrammar

WALKS = 500


@pytest.fixture(scope='module', params=['fast', 'libero', 'adversarial', 'tabletop'])
def case(request, chunks):
    """Return tokenizer, horizon and dimension; adversarial: most characters take two ids."""
    if request.param == 'tabletop':
        return request.getfixturevalue('fast'), 10, 5
    if request.param == 'adversarial':
        wide = FastTokenizer.fit(chunks * 3, scale=200, vocab_size=300)
        assert wide.encode(chunks[0] * 3, strict=True).size > 60
        return wide, 10, 5
    golden = request.getfixturevalue('golden')
    if request.param == 'fast':
        return FastTokenizer.from_folder(golden / 'fast/tokenizer'), 16, 7
    return FastTokenizer.from_folder(golden / 'policy_libero/fast_tokenizer'), 10, 7


@pytest.fixture(scope='module')
def grammar(case):
    fast, horizon, dim = case
    return FastGrammar.build(fast.id_bytes, horizon * dim)


def walk(grammar, rng, ids_left=None):
    """Choose allowed ids at random until the chunk is complete."""
    state, remaining, ids = START, grammar.coefficients, []
    while remaining or state != START:
        left = UNREACHABLE - 1 if ids_left is None else ids_left - len(ids)
        choices = np.flatnonzero(grammar.allowed(state, remaining, left))
        assert choices.size, f'no way on from state {state} with {remaining} remaining'
        chosen = int(rng.choice(choices))
        ids.append(chosen)
        remaining -= grammar.count[state, chosen]
        state = grammar.next_state[state, chosen]
    return np.array(ids)


def test_any_walk_ends_in_a_chunk_of_the_right_size(case, grammar):
    fast, horizon, dim = case
    rng = np.random.default_rng(0)
    for _ in range(WALKS):
        ids = walk(grammar, rng)
        assert len(ids) <= grammar.max_ids
        assert fast.decode(ids, horizon, dim).shape == (horizon, dim)


@pytest.mark.parametrize('spare', [0, 1, 7])
def test_a_walk_keeps_within_the_ids_that_are_left(case, grammar, spare):
    fast, horizon, dim = case
    rng = np.random.default_rng(1)
    budget = int(grammar.shortest[START, horizon * dim]) + spare
    for _ in range(20):
        ids = walk(grammar, rng, ids_left=budget)
        assert len(ids) <= budget
        fast.decode(ids, horizon, dim)


def test_every_encoding_is_accepted(case, grammar):
    fast, horizon, dim = case
    rng = np.random.default_rng(2)
    accepted = 0
    for _ in range(200):
        chunk = np.cumsum(rng.normal(scale=0.1, size=(horizon, dim)), axis=0)
        ids = fast.encode(chunk.clip(-1, 1), strict=True)
        state, remaining = START, horizon * dim
        for chosen in ids:
            assert grammar.allowed(state, remaining)[chosen]
            remaining -= grammar.count[state, chosen]
            state = grammar.next_state[state, chosen]
        assert (state, remaining) == (START, 0)
        accepted += 1
    assert accepted == 200


def test_counts_agree_with_the_decoder_for_single_ids(case, grammar):
    fast, _, _ = case
    for token in range(fast.vocab_size):
        complete = grammar.count[START, token] >= 0 and grammar.next_state[START, token] == START
        if complete:
            assert len(fast.coefficients(np.array([token]))) == grammar.count[START, token]
        else:
            with pytest.raises(MalformedChunkError):
                fast.coefficients(np.array([token]))


def test_tables_are_ready_for_a_device(case, grammar):
    fast, horizon, dim = case
    for table in (grammar.count, grammar.next_state):
        assert table.shape == (STATES, fast.vocab_size)
        assert table.dtype == np.int32
    for table in (grammar.shortest, grammar.longest):
        assert table.shape == (STATES, horizon * dim + 1)
        assert table.dtype == np.int32
    np.testing.assert_array_equal(grammar.completable, grammar.shortest < UNREACHABLE)


def test_the_adversarial_tokenizer_cuts_characters(chunks):
    wide = FastTokenizer.fit(chunks * 3, scale=200, vocab_size=300)
    grammar = FastGrammar.build(wide.id_bytes, 50)
    assert (grammar.next_state[START] != START).any()
    assert (grammar.count[1:] >= 0).any()
    assert grammar.max_ids > 50


def test_every_character_of_unicode_is_a_path():
    # One id a byte: the automaton must accept exactly what Python's decoder does.
    grammar = FastGrammar.build([bytes([b]) for b in range(256)], 1)
    rng = np.random.default_rng(3)
    codes = {*range(0x800), 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF,
             *rng.integers(0x800, 0xD800, 500).tolist(), *rng.integers(0xE000, 0x110000, 500)}
    for code in codes:
        state, completed = START, 0
        for byte in chr(code).encode():
            assert grammar.count[state, byte] >= 0
            completed += grammar.count[state, byte]
            state = grammar.next_state[state, byte]
        assert (state, completed) == (START, 1)
    for bad in (b'\xc0\x80', b'\xed\xa0\x80', b'\xe0\x80\x80', b'\xf0\x80\x80\x80',
                b'\xf4\x90\x80\x80', b'\x80', b'\xff', b'\xc3\x41'):
        state = START
        for byte in bad:
            if grammar.count[state, byte] < 0:
                break
            state = grammar.next_state[state, byte]
        else:
            pytest.fail(f'{bad!r} was accepted')


def test_dead_ends_are_known_beforehand():
    # Pairs only, and a lead byte that nothing can follow: neither may be entered.
    grammar = FastGrammar.build([b'ab', b'abc', b'\xc3', b''], 5)
    assert grammar.completable[START].tolist() == [True, False, True, True, True, True]
    assert grammar.allowed(START, 5).tolist() == [True, True, False, False]
    assert grammar.allowed(START, 4).tolist() == [True, False, False, False]
    assert grammar.allowed(START, 3).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match='no sequence of the 1 FAST ids stands for exactly 5'):
        FastGrammar.build([b'ab'], 5)
