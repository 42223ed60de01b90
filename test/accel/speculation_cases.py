"""A target so small that it can be decoded in every way, and drafters of all kinds for it."""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.draft_model import (
    DraftModel,
    init_draft,
    to_fast_form,
)
from ros_pi0_fast.accel.drafter_head import HeadDrafter, HeadSize, init_head
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.accel.drafter_oracle import OracleDrafter
from ros_pi0_fast.accel.drafter_previous_chunk import PreviousChunkDrafter
from ros_pi0_fast.accel.drafters import Prefix, Proposal
from ros_pi0_fast.accel.speculative import SpeculativeOptions, speculate
from ros_pi0_fast.codec.grammar import FastGrammar
from ros_pi0_fast.model import decode
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.decode import DecodeOptions, GrammarTables
from ros_pi0_fast.model.pi0_fast import Pi0Fast

# Ids of one and two characters, and the two halves of a character of two bytes.
ID_BYTES = [b'a', b'b', b'ab', 'é'.encode()[:1], 'é'.encode()[1:], b'abba']
COEFFICIENTS = 20
LENGTHS = (1, 2, 4, 7)
PREFIX = 6
CAPACITY = PREFIX + 2 * COEFFICIENTS + 3 + max(LENGTHS)
SCALE = 3.0
EXACT = DecodeOptions(max_ids=2 * COEFFICIENTS, eos_id=None)
BEFORE, AFTER = jnp.array([3, 4, 5], jnp.int32), jnp.array([6, 1], jnp.int32)

greedy = jax.jit(decode.greedy, static_argnames=('model', 'options'))
speculative = jax.jit(speculate, static_argnames=('model', 'options'))


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion('strict'):
        yield


@pytest.fixture(autouse=True)
def quick_compilation():
    """Networks this small take longer to optimize than to run."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def config(**gemma) -> Pi0FastConfig:
    sizes = {'width': 32, 'depth': 1, 'mlp_dim': 48, 'num_heads': 4, 'num_kv_heads': 1,
             'head_dim': 8, 'vocab_size': 60}
    return Pi0FastConfig(
        siglip=SiglipConfig(width=24, depth=1, mlp_dim=40, num_heads=3, patch_size=(4, 8),
                            image_size=(8, 16)),
        gemma=GemmaConfig(**{**sizes, **gemma}), action_dim=2, action_horizon=10,
        max_token_len=12, camera_keys=('base_0_rgb',))


TARGET = Pi0Fast(config(), attend=folded)
SMALL = Pi0Fast(config(width=16, depth=1, mlp_dim=24, head_dim=4), attend=folded)


@functools.cache
def target_params():
    return random_params(TARGET, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def random_params(model, key):
    """With weights as they are initialized, a network repeats itself."""
    return jax.tree.map(lambda leaf: SCALE * leaf, model.unroll(model.init(key)))


@functools.cache
def draft_params():
    return SMALL, jax.jit(lambda key: to_fast_form(SMALL, init_draft(SMALL, 32, key)))(
        jax.random.key(1))


@functools.cache
def head():
    size = HeadSize(columns=len(ID_BYTES), coefficients=COEFFICIENTS, hidden=24, depth=1)
    weights = init_head(TARGET.config.gemma, size, jax.random.key(2))
    return HeadDrafter(weights=weights, gemma=TARGET.config.gemma,
                       first_token_offset=TARGET.config.first_token_offset)


@functools.cache
def host_grammar():
    return FastGrammar.build(ID_BYTES, COEFFICIENTS)


def tables(host):
    return GrammarTables(count=jnp.asarray(host.count), next_state=jnp.asarray(host.next_state),
                         shortest=jnp.asarray(host.shortest))


@functools.cache
def grammar():
    return tables(host_grammar())


@functools.cache
def prefilled(seed, capacity=CAPACITY):
    """Return what a prefill left, output and cache, and what it was of."""
    rng = np.random.default_rng(seed)
    prefix = Prefix(images=jnp.asarray(3 * rng.normal(size=(4, 32)), jnp.float32),
                    prompt=jnp.asarray(rng.integers(6, 60, 3), jnp.int32),
                    prompt_length=jnp.asarray(2, jnp.int32), before=jnp.zeros((0,), jnp.int32))
    return *prefill(target_params(), prefix, capacity), prefix


@functools.partial(jax.jit, static_argnums=2)
def prefill(params, prefix, capacity):
    prompt = TARGET.embed_tokens(params, prefix.prompt[None])[0]
    return TARGET.prefill(
        params, jnp.concatenate([prefix.images, prompt])[None], jnp.array([PREFIX]),
        TARGET.init_cache(params, 1, capacity), last_only=True)


def candidates(seed):
    ids = np.random.default_rng(seed).permutation(60)[:len(ID_BYTES)]
    return jnp.asarray(ids, jnp.int32)


@functools.cache
def plain(seed):
    """Return greedy decoding's state under the grammar, and the columns it chose."""
    state = greedy(TARGET, target_params(), *prefilled(seed)[:2], options=EXACT,
                   candidates=candidates(seed), grammar=grammar())
    where = {int(model_id): column for column, model_id in enumerate(candidates(seed))}
    ids = np.asarray(state.tokens[0, :int(state.length[0])])
    return state, np.array([where[int(i)] for i in ids], np.int32)


def padded(ids):
    """Give sequences one length for all inferences, so that one executable serves them."""
    ids = np.asarray(ids, np.int32)
    return jnp.asarray(np.pad(ids, (0, EXACT.max_ids - len(ids))))


def oracle(columns, right):
    return OracleDrafter(ids=padded(columns), count=jnp.asarray(len(columns), jnp.int32),
                         right=jnp.asarray(right, jnp.int32))


def previous(columns):
    return PreviousChunkDrafter(ids=padded(columns), count=jnp.asarray(len(columns), jnp.int32))


@functools.cache
def ngram():
    """Return a table of what the seeds after the first say."""
    return NgramDrafter.build([plain(seed)[1] for seed in range(1, 8)], len(ID_BYTES))


@flax.struct.dataclass
class Constant:
    """Proposes the same ids again and again, whether the grammar allows them or not."""

    ids: jax.Array

    def start(self, prefix, rules, length, key):
        return ()

    def propose(self, state, so_far, rules, length):
        return Proposal(ids=self.ids[:length]), state


NAMES = ('right', 'wrong', 'half', 'same chunk', 'shifted', 'other chunk', 'no chunk', 'ngram',
         'nothing', 'gap', 'forbidden', 'first', 'model', 'head')


@functools.cache
def drafters(seed):
    """Return drafters of each kind, good and bad, by name."""
    columns = plain(seed)[1]
    rng = np.random.default_rng(seed)
    model, params = draft_params()
    return {
        'right': oracle(columns, 7), 'wrong': oracle(columns, 0), 'half': oracle(columns, 2),
        'same chunk': previous(columns), 'shifted': previous(columns[3:]),
        'other chunk': previous(rng.permutation(columns)), 'no chunk': previous(columns[:0]),
        'ngram': ngram(),
        'nothing': Constant(jnp.full((7,), -1, jnp.int32)),
        'gap': Constant(jnp.array([int(columns[1]), -1, 0, 0, 0, 0, 0], jnp.int32)),
        'forbidden': Constant(jnp.full((7,), 4, jnp.int32)),
        'first': Constant(jnp.zeros((7,), jnp.int32)),
        'model': DraftModel(params=params, model=model), 'head': head()}


def options(length, **changes):
    return SpeculativeOptions(**{**dataclasses.asdict(EXACT), 'draft_length': length, **changes})


def run(seed, drafter, length, capacity=CAPACITY, changes=None, **arguments):
    hidden, cache, prefix = prefilled(seed, capacity)
    return speculative(
        TARGET, target_params(), hidden, cache, options=options(length, **(changes or {})),
        drafter=drafter, prefix=prefix, **{'candidates': candidates(seed), 'grammar': grammar(),
                                           **arguments})


def expect_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.length, expected.length)
    assert found.tokens.dtype == expected.tokens.dtype
    assert found.length.dtype == expected.length.dtype


def passes(ids, per_pass):
    """Return the passes for so many ids, the first of which the prefill gave."""
    return 1 + math.ceil((ids - 1) / per_pass)
