"""Pruning: what is kept, that the rest behaves as if the others had never been, what it saves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner, PruningError, PruningState
from ros_pi0_fast.accel.pruning_attention import Recorder, attention_of_actions, gated
from ros_pi0_fast.accel.pruning_baselines import (
    AttentionScorer,
    RandomScorer,
    UniformScorer,
    dispersed,
)
from ros_pi0_fast.accel.pruning_overlay import OUTLINE, draw_kept
from ros_pi0_fast.accel.pruning_prefill import pack_pruned, prefill_pruned
from ros_pi0_fast.accel.pruning_scores import LearnedScorer, TrainingFreeScorer
from ros_pi0_fast.model.attention import Visible, reference
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.decode import DecodeOptions, greedy
from ros_pi0_fast.model.gemma import Tokens
from ros_pi0_fast.model.pi0_fast import Pi0Fast

pytestmark = pytest.mark.usefixtures('quick_compilation')
SIZE, BUCKET, LENGTH, CAPACITY = 32, 8, 6, 64
FLOAT = 2e-5
"""Sums over other numbers of tokens are rounded in another order."""
MODEL = Pi0Fast(Pi0FastConfig(
    siglip=SiglipConfig(width=24, depth=1, mlp_dim=40, num_heads=3, patch_size=(4, 4),
                        image_size=(16, 16)),
    gemma=GemmaConfig(width=32, depth=3, mlp_dim=48, num_heads=4, num_kv_heads=1, head_dim=8,
                      vocab_size=60),
    action_dim=3, action_horizon=4, max_token_len=12, first_token_offset=0,
    camera_keys=('base_0_rgb', 'wrist_0_rgb')))
SCORERS = {
    'learned': LearnedScorer(heads=2, head_dim=4, hidden=8), 'free': TrainingFreeScorer(),
    'uniform': UniformScorer(grid=(4, 4)), 'random': RandomScorer(),
    'attention': AttentionScorer()}


@functools.lru_cache
def compiled(pruner: AdaptiveVisualPruner):
    return jax.jit(functools.partial(prefill_pruned, MODEL, pruner))


@functools.lru_cache
def compiled_ranking(pruner: AdaptiveVisualPruner):
    return jax.jit(pruner.rank)


@pytest.fixture(scope='module')
def params():
    return jax.jit(lambda key: MODEL.unroll(MODEL.init(key)))(jax.random.key(0))


@pytest.fixture(scope='module')
def images():
    return jax.random.normal(jax.random.key(1), (SIZE, 32))


@pytest.fixture(scope='module')
def prompt():
    return jnp.arange(3, 3 + BUCKET, dtype=jnp.int32)


def make(name: str, **fields) -> tuple[AdaptiveVisualPruner, dict]:
    scorer = SCORERS[name]
    weights = scorer.init(jax.random.key(2), SIZE, 32) if name == 'learned' else {}
    return AdaptiveVisualPruner(scorer=scorer, **fields), weights


def run(pruner, weights, params, images, prompt, state=None, reset=False):
    state = pruner.init_state(SIZE, 32) if state is None else state
    return compiled(pruner)(
        params, weights, images, prompt, jnp.int32(LENGTH), state, reset,
        MODEL.init_cache(params, 1, CAPACITY))


def rank(pruner, weights, images, state=None, reset=False):
    """Rank without a network: all but one of the prompt's words count."""
    words = jax.random.normal(jax.random.key(5), (4, images.shape[1]))
    state = pruner.init_state(*images.shape) if state is None else state
    return compiled_ranking(pruner)(weights, images, words, jnp.int32(3), state, reset)


def attended(pruner, ranking, paid=None) -> PruningState:
    paid = jnp.arange(1.0, SIZE + 1) if paid is None else paid
    return pruner.attend(ranking.state, ranking, paid / paid.sum())


@pytest.mark.parametrize('name', SCORERS)
def test_each_method_keeps_the_budget_and_those_by_history_everything_at_first(
        name, params, images, prompt):
    pruner, weights = make(name, keep_ratio=0.375)
    first = run(pruner, weights, params, images, prompt)
    by_history = name in ('free', 'attention')
    assert int(first.ranking.count) == (32 if by_history else 12)
    assert int(first.cache.length[0]) == int(first.ranking.count) + LENGTH
    second = run(pruner, weights, params, images, prompt, attended(pruner, first.ranking))
    assert int(second.ranking.count) == int(second.ranking.kept.sum()) == 12
    np.testing.assert_array_equal(np.sort(second.ranking.rank), np.arange(SIZE))


@pytest.mark.parametrize('original', [True, False])
def test_keeping_everything_changes_nothing(original, params, images, prompt):
    pruner, weights = make('learned', keep_ratio=1.0, original_positions=original)
    ours = run(pruner, weights, params, images, prompt)
    embeddings = jnp.concatenate([images, MODEL.embed_tokens(params, prompt[None])[0]])[None]
    hidden, cache = MODEL.prefill(params, embeddings, jnp.array([SIZE + LENGTH]),
                                  MODEL.init_cache(params, 1, CAPACITY), last_only=True)
    np.testing.assert_allclose(ours.hidden, hidden, atol=FLOAT)
    options = DecodeOptions(max_ids=10, eos_id=None)
    np.testing.assert_array_equal(
        greedy(MODEL, params, ours.hidden, ours.cache, options=options).tokens,
        greedy(MODEL, params, hidden, cache, options=options).tokens)


def test_pruned_tokens_are_as_if_hidden_where_positions_are_the_original_ones(
        params, images, prompt):
    pruner, weights = make('learned', keep_ratio=0.5)
    ours = run(pruner, weights, params, images, prompt)
    embeddings = jnp.concatenate([images, MODEL.embed_tokens(params, prompt[None])[0]])[None]
    seen = jnp.concatenate([ours.ranking.kept, jnp.arange(BUCKET) < LENGTH])
    size = SIZE + BUCKET
    hidden, _ = MODEL._run(params, embeddings, Tokens(
        positions=jnp.arange(size)[None],
        visible=Visible(dense=jnp.broadcast_to(seen, (1, size, size)))),
        MODEL.init_cache(params, 1, CAPACITY))
    np.testing.assert_allclose(ours.hidden[:, 0], hidden[:, SIZE + LENGTH - 1], atol=FLOAT)
    packed, _ = make('learned', keep_ratio=0.5, original_positions=False)
    other = run(packed, weights, params, images, prompt)
    assert np.abs(other.hidden - ours.hidden).max() > 100 * FLOAT


def test_the_threshold_chooses_the_smallest_budget_that_holds_what_is_needed(
        params, images, prompt):
    pruner, weights = make('learned', adaptive=True, memory=0.0)
    first = run(pruner, weights, params, images, prompt).ranking.scores
    scores = np.sort(first)[::-1]
    assert pruner.counts(SIZE) == (8, 12, 16)
    for needed, count in ((0, 8), (8, 8), (9, 12), (12, 12), (13, 16), (32, 16)):
        low = scores[needed] if needed < SIZE else -np.inf
        high = scores[needed - 1] if needed else np.inf
        threshold = {32: scores[-1] - 1, 0: scores[0] + 1}.get(needed, (low + high) / 2)
        found = run(pruner, weights | {'threshold_bias': jnp.float32(threshold)}, params, images,
                    prompt)
        assert (int(found.ranking.needed), int(found.ranking.count)) == (needed, count)
        assert int(found.cache.length[0]) == count + LENGTH


def test_a_batch_gets_what_each_of_its_robots_gets_alone(params, images, prompt):
    pruner, weights = make('learned', adaptive=True)
    weights = weights | {'threshold_bias': jnp.float32(0.3)}
    both = jnp.stack([images, images[::-1] * jnp.linspace(0.5, 3, SIZE)[:, None]])
    alone = [run(pruner, weights, params, each, prompt) for each in both]
    words = jnp.broadcast_to(MODEL.embed_tokens(params, prompt[None]), (2, BUCKET, 32))
    states = jax.tree.map(lambda x: jnp.stack([x, x]), pruner.init_state(SIZE, 32))
    packed = jax.jit(lambda *xs: pack_pruned(pruner, *xs))(
        weights, both, words, jnp.full(2, LENGTH), states, jnp.zeros(2, bool))
    hidden, _ = MODEL.prefill(params, packed.embeddings, packed.lengths,
                              MODEL.init_cache(params, 2, CAPACITY), last_only=True,
                              positions=packed.positions)
    for row, one in enumerate(alone):
        np.testing.assert_array_equal(packed.rankings.kept[row], one.ranking.kept)
        np.testing.assert_allclose(hidden[row], one.hidden[0], atol=FLOAT)


def test_scores_are_averaged_until_the_instruction_or_the_picture_is_another(images):
    pruner, weights = make('learned', memory=0.5)
    first = rank(pruner, weights, images)
    near = images + 0.05 * jax.random.normal(jax.random.key(7), images.shape)
    fresh = rank(pruner, weights, near).scores
    second = rank(pruner, weights, near, first.state)
    np.testing.assert_allclose(second.scores, (first.scores + fresh) / 2, atol=FLOAT)
    assert int(second.state.since) == 2
    other_instruction = rank(pruner, weights, near, first.state, True)
    np.testing.assert_allclose(other_instruction.scores, fresh, atol=FLOAT)
    jumped = rank(pruner, weights, images[::-1], first.state)
    assert (int(jumped.state.since), int(jumped.state.frames)) == (1, 2)


def test_near_duplicates_of_a_better_token_come_after_others():
    pruner, _ = make('learned', duplicate=0.9, duplicate_cost=100.0)
    tokens = jax.random.normal(jax.random.key(3), (6, 64))
    tokens = tokens.at[1].set(tokens[0] + 0.01)
    rank = np.asarray(pruner.order(tokens, jnp.array([6.0, 5, 4, 3, 2, 1])))
    np.testing.assert_array_equal(rank, [0, 5, 1, 2, 3, 4])
    plain = dataclasses.replace(pruner, duplicate=1.0)
    np.testing.assert_array_equal(plain.order(tokens, jnp.array([6.0, 5, 4, 3, 2, 1])),
                                  np.arange(6))


def test_attention_is_remembered_for_kept_tokens_and_pruned_ones_can_come_back(images):
    pruner, _ = make('attention', keep_ratio=0.25, attention_memory=0.5, memory=0.0)
    state = attended(pruner, rank(pruner, {}, images))
    ranking = rank(pruner, {}, images, state)
    np.testing.assert_array_equal(np.flatnonzero(ranking.kept), np.arange(24, 32))
    # The kept tokens turn out to be nothing but for the first: 24 stays, others have their turn.
    state = attended(pruner, ranking, jnp.zeros(SIZE).at[0].set(1.0))
    np.testing.assert_allclose(state.attention.sum(), 1, rtol=1e-5)
    ranking = rank(pruner, {}, images, state)
    np.testing.assert_array_equal(np.flatnonzero(ranking.kept), [17, 18, 19, 20, 21, 22, 23, 24])


def test_attention_after_decoding_is_that_of_one_pass_over_everything(params, images, prompt):
    embeddings = jnp.concatenate([images, MODEL.embed_tokens(params, prompt[None])[0]])[None]
    length = jnp.array([SIZE + LENGTH])
    hidden, cache = MODEL.prefill(params, embeddings, length,
                                  MODEL.init_cache(params, 1, CAPACITY), last_only=True)
    decoded = greedy(MODEL, params, hidden, cache,
                     options=DecodeOptions(max_ids=9, eos_id=None))
    found = jax.jit(lambda cache: attention_of_actions(
        MODEL, params, decoded.tokens, jnp.array([7]), cache, length, SIZE, layers=(1,)))(
        decoded.cache)
    ids = jnp.concatenate([prompt[:LENGTH], decoded.tokens[0]])[None]
    whole = jnp.concatenate([images[None], MODEL.embed_tokens(params, ids)], axis=1)
    count = whole.shape[1]
    ends = jnp.maximum(length[0], 1 + jnp.arange(count))[None]
    actions = (jnp.arange(count) >= length[0]) & (jnp.arange(count) < length[0] + 7)
    recorder = Recorder(reference, (1,), SIZE, actions[None].astype(jnp.float32))
    dataclasses.replace(MODEL, attend=recorder)._run(
        params, whole, Tokens(positions=jnp.arange(count)[None], visible=Visible(end=ends)), None)
    np.testing.assert_allclose(found, recorder.mean, atol=FLOAT)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    assert found.std() > 1e-4


def test_gates_hide_keys_and_have_gradients_where_they_are_closed():
    keys = jax.random.split(jax.random.key(4), 3)
    q, k, v = (0.5 * jax.random.normal(key, (1, 5, n, 8)) for key, n in zip(
        keys, (4, 2, 2), strict=True))
    visible = Visible(end=jnp.full((1, 5), 5))
    gates = jnp.array([[1.0, 0, 1, 0, 1]])
    hidden = reference(q, k, v, Visible(dense=jnp.broadcast_to(gates > 0, (1, 5, 5))))
    np.testing.assert_allclose(gated(gates)(q, k, v, visible, score_dtype=jnp.float32), hidden,
                               atol=1e-6)

    def total(gates):
        return jnp.sum(gated(gates)(q, k, v, visible, score_dtype=jnp.float32) ** 2)

    slope = jax.grad(total)(gates)[0, 1]
    step = gates.at[0, 1].set(1e-3)
    np.testing.assert_allclose((total(step) - total(gates)) / 1e-3, slope, rtol=0.02)


def test_uniform_is_spread_and_random_differs_from_frame_to_frame(images):
    assert np.array_equal(dispersed(4, 4)[::2, ::2] < 4, np.ones((2, 2), bool))
    assert sorted(dispersed(3, 5).ravel()) == list(range(15))
    pruner, _ = make('uniform', keep_ratio=0.25, duplicate=1.0)
    kept = np.asarray(rank(pruner, {}, images).kept).reshape(2, 2, 2, 2, 2)
    assert (kept.sum(axis=(2, 4)) == 1).all()
    pruner, _ = make('random', keep_ratio=0.25)
    first = rank(pruner, {}, images)
    second = rank(pruner, {}, images, first.state)
    assert (first.kept != second.kept).any()


def test_a_change_of_frame_or_threshold_compiles_nothing_anew(params, images, prompt):
    pruner, weights = make('learned', adaptive=True)
    state, counts = None, set()
    for threshold in (-9.0, 0.0, 9.0):
        weights = weights | {'threshold_bias': jnp.float32(threshold)}
        ranking = run(pruner, weights, params, images, prompt, state).ranking
        state = ranking.state
        counts.add(int(ranking.count))
    assert counts >= {8, 16}
    # A first state, made on the host, and those that came from the device.
    assert compiled(pruner)._cache_size() <= 2


@pytest.mark.parametrize(('field', 'value', 'expected'), [
    ('keep_ratio', 0.0, 'keep_ratio: 0, expected above 0 to 1'),
    ('keep_ratio', 1.5, 'keep_ratio: 1.5, expected above 0 to 1'),
    ('memory', 1.0, 'memory: 1, expected 0 to below 1'),
    ('budgets', (0.5, 0.25), r'budgets: \(0.5, 0.25\), expected ascending'),
    ('budgets', (), r'budgets: \(\), expected ascending')])
def test_what_cannot_be_is_refused(field, value, expected):
    with pytest.raises(PruningError, match=expected):
        AdaptiveVisualPruner(**{field: value})


def test_the_overlay_shows_what_was_kept():
    images = np.full((2, 9, 8, 3), 200, np.uint8)
    kept = np.zeros(8, bool)
    kept[[0, 7]] = True
    picture = draw_kept(images, kept, (2, 2), scale=2)
    assert picture.shape == (18, 32, 3) and picture.dtype == np.uint8
    assert (picture[0, 0] == OUTLINE).all() and (picture[3, 3] == 200).all()
    assert (picture[12, 3] == 60).all() and (picture[17, 20] == 60).all()
    assert (picture[12, 28] == 200).all()
    with pytest.raises(ValueError, match=r'kept: shape \(8,\), expected \(12,\)'):
        draw_kept(images, kept, (2, 3))
