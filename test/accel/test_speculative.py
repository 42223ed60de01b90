"""Speculative decoding: the same tokens in fewer passes, whatever the drafter proposes."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from speculation_cases import (
    AFTER,
    BEFORE,
    COEFFICIENTS,
    EXACT,
    LENGTHS,
    NAMES,
    PREFIX,
    SMALL,
    TARGET,
    candidates,
    config,
    drafters,
    expect_same,
    grammar,
    greedy,
    host_grammar,
    ngram,
    options,
    oracle,
    padded,
    passes,
    plain,
    prefilled,
    quick_compilation,  # noqa: F401  (a fixture of each test)
    random_params,
    run,
    speculative,
    strict,  # noqa: F401  (a fixture of each test)
    target_params,
)

from ros_pi0_fast.accel.draft_model import (
    IMAGE_MAP,
    DraftModel,
    map_images,
    to_fast_form,
)
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.accel.drafter_oracle import OracleDrafter
from ros_pi0_fast.accel.flash_attention import flash
from ros_pi0_fast.accel.speculative import speculate
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.decode import DecodeOptions, Forced
from ros_pi0_fast.model.pi0_fast import Pi0Fast


def test_the_sequences_are_worth_comparing():
    """Several ids each, of more than one kind, and different ones for different seeds."""
    sequences = {tuple(plain(seed)[1]) for seed in range(5)}
    assert len(sequences) == 5 and min(map(len, sequences)) >= 7
    assert sum(len(set(sequence)) > 2 for sequence in sequences) >= 3


# --- the likeliest -------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'length'), [
    *itertools.product(NAMES, [4]),
    *itertools.product(['half', 'ngram', 'model', 'head'], [1, 2, 7])])
def test_tokens_are_those_of_greedy_decoding(name, length):
    for seed in range(5):
        found = run(seed, drafters(seed)[name], length)
        expected = plain(seed)[0]
        expect_same(found, expected)
        np.testing.assert_array_equal(found.cache.length, expected.cache.length)
        # An id for each pass, and one for each that was accepted but for what a chunk's end cuts.
        chosen = int(found.length[0])
        assert chosen <= found.step + found.accepted <= chosen + 1
        assert 0 <= found.accepted <= found.proposed <= length * (found.step - 1)


def test_tokens_are_the_same_with_the_whole_head_and_attention_by_blocks():
    model, params = dataclasses.replace(TARGET, attend=flash), target_params()
    hidden, cache, _ = prefilled(3)
    found = speculative(model, params, hidden, cache, options=options(4), drafter=ngram(),
                        head=model.head(params), candidates=candidates(3), grammar=grammar())
    expect_same(found, plain(3)[0])


@pytest.mark.parametrize('around', [(BEFORE, AFTER[:0]), (BEFORE[:0], AFTER)])
def test_forced_ids_come_around_the_chosen_ones(around):
    forced = Forced(before=around[0], after=around[1])
    for seed in range(3):
        hidden, cache, _ = prefilled(seed)
        expected = greedy(TARGET, target_params(), hidden, cache, options=EXACT, forced=forced,
                          candidates=candidates(seed), grammar=grammar())
        found = run(seed, ngram(), 4, forced=forced)
        expect_same(found, expected)
        chosen = int(found.length[0]) - len(around[0]) - len(around[1])
        fed = PREFIX + len(around[0]) + chosen - 1
        assert found.cache.length[0] == fed
        # All that come before cost one pass, those after none.
        extra = 1 if len(around[0]) else 0
        assert chosen <= found.step - extra + found.accepted <= chosen + 1


@functools.cache
def free(seed, eos=None, max_ids=20):
    hidden, cache, _ = prefilled(seed)
    return greedy(TARGET, target_params(), hidden, cache,
                  options=DecodeOptions(max_ids=max_ids, eos_id=eos))


@pytest.mark.parametrize(('length', 'eos_at'), [(4, 5), (7, None)])
def test_free_decoding_ends_with_eos_or_at_the_limit(length, eos_at):
    """The drafter knows what comes, and goes on beyond the end."""
    beyond = np.asarray(free(0).tokens[0])
    eos = None if eos_at is None else int(beyond[eos_at])
    end = len(beyond) if eos is None else 1 + list(beyond).index(eos)
    drafter = OracleDrafter(ids=jnp.asarray(beyond), count=jnp.asarray(99, jnp.int32),
                            right=jnp.asarray(9, jnp.int32))
    found = run(0, drafter, length, changes={'max_ids': len(beyond), 'eos_id': eos},
                candidates=None, grammar=None)
    expect_same(found, free(0, eos))
    assert found.length[0] == end and found.step == passes(end, length + 1)
    np.testing.assert_array_equal(found.cache.length, PREFIX + end - 1)


def test_k_slots_more_than_greedy_decoding_needs_are_enough():
    """Refused ids go into slots behind the last that counts, where there are just as many."""
    length, expected = 7, free(2)
    most = expected.tokens.shape[1]
    always = OracleDrafter(ids=expected.tokens[0], count=jnp.asarray(99, jnp.int32),
                           right=jnp.asarray(0, jnp.int32))
    found = run(2, always, length, PREFIX + most - 1 + length, {'max_ids': most},
                candidates=None, grammar=None)
    expect_same(found, expected)
    assert found.step == most


# --- a draft model -------------------------------------------------------------------------


def test_the_target_itself_as_the_draft_is_always_right():
    """Whatever is rolled back, fed again or forced before, both have the same in their caches."""
    llm = jax.tree.map(lambda *leaves: jnp.stack(leaves),
                       *target_params()['PaliGemma']['llm']['layers'])
    params = {'PaliGemma': {'llm': {**target_params()['PaliGemma']['llm'], 'layers': llm}}}
    drafter = DraftModel(params=to_fast_form(TARGET, params), model=TARGET)
    for seed in range(3):
        hidden, cache, prefix = prefilled(seed)
        found = speculative(
            TARGET, target_params(), hidden, cache, options=options(4), drafter=drafter,
            prefix=prefix.replace(before=BEFORE), candidates=candidates(seed), grammar=grammar(),
            forced=Forced(before=BEFORE, after=AFTER))
        chosen = int(found.length[0]) - len(BEFORE) - len(AFTER)
        assert found.accepted == found.proposed
        assert found.step == passes(1 + chosen, 5)  # That which feeds BEFORE chooses, too.


@functools.cache
def close_draft():
    """Return a draft that is often right: the target, after its weights were shaken."""
    rng = np.random.default_rng(5)
    shaken = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.2 * np.std(leaf) * rng.normal(size=leaf.shape),
                                        jnp.float32), target_params())
    return DraftModel(params=shaken, model=TARGET)


@functools.partial(jax.jit, static_argnums=0)
def outputs(model, params, prefix, ids):
    """Return the output [n, d] at each of ids [n] after a prefix, from the beginning."""
    cache = model.init_cache(params, 1, PREFIX + 1 + len(ids))
    images = map_images(params, prefix.images[None])
    prompt = model.embed_tokens(params, prefix.prompt[None])
    _, cache = model.prefill(params, jnp.concatenate([images, prompt], axis=1),
                             jnp.array([PREFIX]), cache)
    return model.decode_step(params, ids[None], cache)[0][0]


def expected_counts(seed, drafter, length):
    """Return passes and accepted ids, by drafting from the beginning for each proposal."""
    columns, host, known = plain(seed)[1], host_grammar(), np.asarray(candidates(seed))
    head = np.asarray(drafter.model.head(drafter.params, candidates(seed)))
    done, steps, accepted = 1, 1, 0
    while done < len(columns):
        ids = list(columns[:done])
        for _ in range(min(length, len(columns) - done)):
            state, left = 0, COEFFICIENTS
            for i in ids:
                state, left = host.next_state[state, i], left - host.count[state, i]
            hidden = outputs(drafter.model, drafter.params, prefilled(seed)[2],
                             padded(known[ids]))[len(ids) - 1]
            allowed = host.allowed(state, left, EXACT.max_ids - len(ids))
            if not allowed.any():  # The draft believes that the chunk is complete.
                break
            ids.append(int(np.argmax(np.where(allowed, head @ hidden, -np.inf))))
        agreed = np.cumprod(np.array(ids[done:]) == columns[done:len(ids)]).sum()
        steps, accepted, done = steps + 1, accepted + agreed, done + agreed + 1
    return steps, accepted


@pytest.mark.parametrize('name', ['close', 'small'])
def test_a_draft_proposes_what_it_would_from_the_beginning(name):
    """Rolling its cache back and feeding it what was missing loses and leaves nothing."""
    drafter = close_draft() if name == 'close' else drafters(0)['model']
    share = []
    for seed in range(3):
        found = run(seed, drafter, 4)
        assert (found.step, found.accepted) == expected_counts(seed, drafter, 4)
        share.append(found.accepted / found.proposed)
    assert IMAGE_MAP in drafter.params or 0.1 < np.mean(share) < 0.9


# --- what it costs -------------------------------------------------------------------------


@pytest.mark.parametrize('length', LENGTHS)
def test_passes_are_as_many_as_the_accepted_ids_allow(length):
    run(0, oracle(plain(0)[1], 0), length)
    compiled = speculative._cache_size()
    for seed, right in itertools.product(range(3), range(length + 1)):
        ids = len(plain(seed)[1])
        found = run(seed, oracle(plain(seed)[1], right), length)
        whole, rest = divmod(ids - 1, right + 1)
        assert found.step == passes(ids, right + 1)
        assert found.accepted == whole * right + min(rest, right)
    assert speculative._cache_size() == compiled


def test_a_chunk_that_is_said_again_needs_the_fewest_passes():
    for seed in range(5):
        ids = len(plain(seed)[1])
        found = run(seed, drafters(seed)['same chunk'], 7)
        assert found.step == passes(ids, 8)
        assert run(seed, drafters(seed)['no chunk'], 7).proposed == 0


@pytest.mark.parametrize(('attend', 'drafter'), [(folded, 'model'), (flash, 'model'),
                                                 (folded, 'ngram')])
def test_caches_are_written_in_place(attend, drafter):
    """The loop takes over the prefill's buffers; neither cache is ever copied."""
    capacity = 600  # Several blocks of flash attention.
    model = Pi0Fast(config(depth=2), attend=attend)
    small = dataclasses.replace(SMALL, attend=attend)
    params = jax.eval_shape(functools.partial(random_params, model), jax.random.key(0))
    hidden, _, prefix = prefilled(0)
    cache = jax.eval_shape(lambda params: model.init_cache(params, 1, capacity), params)
    drafter = drafters(0)[drafter]
    if isinstance(drafter, DraftModel):
        drafter = drafter.replace(model=small)

    def decode(params, drafter, hidden, cache):
        return speculate(model, params, hidden, cache, drafter=drafter, options=options(4),
                         prefix=prefix, candidates=known, grammar=tables)

    known, tables = candidates(0), grammar()
    jax.config.update('jax_disable_most_optimizations', False)
    compiled = jax.jit(decode, donate_argnums=3).lower(
        params, drafter, hidden, cache).compile()
    buffers = sum(4 * leaf.size for leaf in jax.tree.leaves(cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= buffers
    drafted = len(prefix.images) + len(prefix.prompt) + EXACT.max_ids + 4
    text = compiled.as_text()
    for shape in (f'f32[1,{capacity},1,8]', f'f32[1,{drafted},1,4]'):
        assert shape in text or isinstance(drafter, NgramDrafter)
        assert not re.findall(rf'= {re.escape(shape)}\S* copy\(.*', text)


def test_what_means_nothing_is_refused():
    hidden, cache, _ = prefilled(0)
    with pytest.raises(ValueError, match='draft_length: 0, expected at least 1'):
        options(0)
    with pytest.raises(ValueError, match='temperature: -1, expected 0 or more'):
        options(1, temperature=-1.0)
    with pytest.raises(ValueError, match='hidden: 2 rows, expected one'):
        speculate(TARGET, {}, jnp.repeat(hidden, 2, axis=0), cache, options=options(1),
                  drafter=ngram())
    with pytest.raises(ValueError, match='key: None, expected one'):
        speculate(TARGET, {}, hidden, cache, options=options(1, temperature=0.5),
                  drafter=ngram())
