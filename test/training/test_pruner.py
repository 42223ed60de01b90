"""Training of a pruner on a policy with random weights: what it writes, and what runs with it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.pruning import PruningError
from ros_pi0_fast.accel.pruning_file import DECODER, FOLDER, load_decoder, load_pruner
from ros_pi0_fast.accel.pruning_scores import LearnedScorer
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.sim.episodes import EpisodeConfig
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.training import pruner
from ros_pi0_fast.training.collect import collect_expert
from ros_pi0_fast.training.config import RoundConfig
from ros_pi0_fast.training.dagger import SEEDS_A_ROUND
from ros_pi0_fast.training.data import Frames
from ros_pi0_fast.training.loop import LoopConfig
from ros_pi0_fast.training.pruner_objective import (
    PROGRESS,
    TEACHER,
    VISION,
    PrunerTerms,
    above_average,
    changed_decoder,
    pruner_loss,
)
from ros_pi0_fast.training.pruner_training import (
    FIRST_ROUND,
    PrunerRun,
    PrunerTraining,
    curriculum,
    load_all,
    load_frames,
    load_taught,
)
from ros_pi0_fast.weights.checkpoint import load_checkpoint

LOOP = LoopConfig(steps=40, batch_size=4, learning_rate=5e-3, warmup_steps=2, weight_decay=0.0,
                  ema_decay=0.5, steps_per_dispatch=10, checkpoint_every=1000)


@pytest.fixture(scope='module')
def run(random_checkpoint):
    return PrunerRun(name='test', checkpoint=random_checkpoint, loop=LOOP, frames=12, episodes=12,
                     stages=3, finetune=True,
                     terms=PrunerTerms(sparsity=0.1),
                     scorer=LearnedScorer(heads=2, head_dim=4, hidden=8))


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    collect_expert(range(12), folder, tasks=('reach',),
                   config=EpisodeConfig(first_look_only=1.0, orders=2))
    return folder


@pytest.fixture(scope='module')
def trained(run, shards, repository, random_checkpoint, tmp_path_factory):
    """Return a training that ended, its records, and the folder of the pruner."""
    work = tmp_path_factory.mktemp('pruner')
    training = PrunerTraining(run, work / 'state', load_checkpoint(random_checkpoint))
    taught = load_taught(training, shards, repository / 'config/robots/tabletop.yaml')
    records = []
    state = training.train(taught, report=records.append)
    training.export(state, work / FOLDER)
    training.loop.close()
    return training, records, work / FOLDER


def test_the_ratio_falls_from_everything_to_the_target(run):
    steps, progress = zip(*curriculum(run), strict=True)
    assert steps == (10, 20, 40) and progress == (0, 0.5, 1)


def test_tokens_are_kept_as_the_curriculum_says_and_attention_is_learned(trained):
    _, records, _ = trained
    assert [record['step'] for record in records] == [10, 20, 30, 40]
    kept = [record['kept'] for record in records]
    assert kept[0] == 1 and 0.6 < kept[1] < 0.8 and 0.25 <= kept[3] <= 0.5
    assert records[-1]['distillation'] < 0.8 * records[0]['distillation']


def test_attention_that_a_place_always_gets_need_not_be_distilled():
    seen = np.zeros((4, 2, 8), np.float32)
    seen[:, :, 0] = 0.6  # Where a policy leans on nothing in particular.
    seen[np.arange(4), :, 1 + np.arange(4)] = 0.3
    seen[:, :, 5:] = 0.1 / 3
    found = above_average(jnp.asarray(seen))
    expected = np.zeros_like(seen)
    expected[np.arange(4), :, 1 + np.arange(4)] = 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def at_the_start(training, shards, repository, frames):
    """Return a batch of the first frames, at the curriculum's end, and the first parameters."""
    taught = load_taught(training, shards, repository / 'config/robots/tabletop.yaml')
    rows = {name: jnp.asarray(array[:frames]) for name, array in taught.items()}
    return rows | {PROGRESS: jnp.ones((frames,))}, jax.tree.map(
        jnp.asarray, training.first_params())


def test_centred_terms_distil_that(trained, run, shards, repository):
    training, _, _ = trained
    rows, params = at_the_start(training, shards, repository, frames=4)

    def distillation(rows, **changes):
        loss = pruner_loss(training.model, training.pruner,
                           dataclasses.replace(run.terms, **changes), training._params)
        return float(jax.jit(loss)(params, rows, jax.random.key(0))[1]['distillation'])

    centred = distillation(rows, centred=True)
    assert centred == pytest.approx(distillation(
        rows | {TEACHER: above_average(rows[TEACHER])}), rel=1e-4)
    assert centred > 1.05 * distillation(rows)


def test_sparsity_may_count_what_the_threshold_counts(trained, run, shards, repository):
    training, _, _ = trained
    rows, params = at_the_start(training, shards, repository, frames=2)
    wanted = {}
    for counted in (False, True):
        terms = dataclasses.replace(run.terms, task=0.0, distillation=0.0, counted=counted)
        loss = pruner_loss(training.model, training.pruner, terms, training._params)
        (total, metrics), change = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            params, rows, jax.random.key(0))
        wanted[counted] = float(metrics['wanted'])
        off = wanted[counted] - (terms.fewest + terms.most) / 2
        assert float(total) == pytest.approx(terms.sparsity * off ** 2, rel=1e-4)
        # To a higher threshold if too many are above it.
        assert np.sign(float(change['pruner']['threshold_bias'])) == -np.sign(off)
    tokens = rows[VISION].shape[1] * 2 * rows['tokens'].shape[1]
    assert wanted[True] * tokens == pytest.approx(round(wanted[True] * tokens), abs=1e-2)
    assert wanted[True] != pytest.approx(wanted[False], abs=1e-3)


def test_a_decoder_that_learned_along_runs_where_tokens_are_pruned_and_only_there(
        trained, random_checkpoint, tabletop_profile):
    _, _, folder = trained
    plain, codec = load_policy(random_checkpoint, tabletop_profile)
    own = plain.params['PaliGemma']['llm']
    decoder = load_decoder(folder, own)
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), decoder, own)
    assert jax.tree.structure(decoder) == jax.tree.structure(own)
    assert all(0 < each < 0.2 for each in jax.tree.leaves(changed))
    engine = Engine(dataclasses.replace(plain, pruned_decoder=decoder), codec)
    seen = Tabletop(0).observe()
    expected = Engine(plain, codec).infer(seen).token_ids
    np.testing.assert_array_equal(engine.infer(seen).token_ids, expected)
    single = engine.weight_bytes
    engine.request(variant=Variant(pruning=True))
    assert engine.wait(120) and not engine.failure
    engine.infer(seen)
    weight = engine.params['PaliGemma']['llm']['final_norm']['scale']
    np.testing.assert_array_equal(weight, decoder['final_norm']['scale'])
    assert engine.weight_bytes == 2 * single  # It is told, and counts for memory_limit_mb.
    engine.request(variant=Variant(pruning=True, keep_ratio=1.0))
    assert engine.wait(120)
    np.testing.assert_array_equal(engine.infer(seen).token_ids, expected)


def test_what_cannot_be_used_is_named(trained, run, random_checkpoint, repository, tmp_path):
    _, _, folder = trained
    own = load_checkpoint(random_checkpoint).params['PaliGemma']['llm']
    other = {**own, 'final_norm': {'scale': np.zeros(3)}}
    with pytest.raises(PruningError, match=r'final_norm/scale: shape \(48,\), expected \(3,\)'):
        load_decoder(folder, other)
    (tmp_path / DECODER).write_bytes(b'nothing')
    with pytest.raises(PruningError, match='is no decoder'):
        load_decoder(tmp_path, own)
    collect_expert(range(2), tmp_path, tasks=('reach',),
                   config=EpisodeConfig(first_look_only=1.0, orders=2))
    with pytest.raises(ValueError, match='2 frames, expected at least a batch of 4'):
        load_frames(run, tmp_path, repository / 'config/robots/tabletop.yaml')


def test_a_round_without_states_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pruner.main(['--config', 'tabletop_dagger', '--earlier', str(tmp_path)])
    assert f'--earlier: {tmp_path} has no visited.npz' in capsys.readouterr().err
    (tmp_path / 'visited.npz').touch()
    with pytest.raises(SystemExit):
        pruner.main(['--config', 'smoke', '--earlier', str(tmp_path)])
    assert '--earlier: smoke visits no states' in capsys.readouterr().err


def test_it_goes_on_from_a_pruner_with_the_states_that_the_pruned_policy_gets_into(
        trained, run, shards, repository, random_checkpoint, tabletop_profile, tmp_path):
    _, _, start = trained
    again = dataclasses.replace(
        run, start=start, scorer=LearnedScorer(), orders=2, stages=1, dagger_tasks=('reach',),
        loop=dataclasses.replace(LOOP, steps=10, learning_rate=1e-4),
        dagger=RoundConfig(episodes=2, slots=2, label_every=5, max_lost=1.0))
    training = PrunerTraining(again, tmp_path, load_checkpoint(random_checkpoint))
    own = training.policy.params['PaliGemma']['llm']
    _, weights = load_pruner(start, tokens=training.model.config.num_image_tokens,
                             width=training.model.config.gemma.width)
    first = training.first_params()
    jax.tree.map(np.testing.assert_array_equal, first['pruner'], weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 changed_decoder(own, first['decoder']), load_decoder(start, own))
    profile = repository / 'config/robots/tabletop.yaml'
    everything = load_all(training, shards, profile, 0)
    visited = Frames.load(tmp_path / f'round{FIRST_ROUND}_000.npz')
    first_seed = FIRST_ROUND * SEEDS_A_ROUND
    assert set(visited.seeds) == {first_seed, first_seed + 1}
    new = len(everything['tokens']) - 12
    assert 0 < new <= len(visited)
    with_earlier = load_all(training, shards, profile, 0, earlier=[tmp_path])
    assert len(with_earlier['tokens']) == 12 + 2 * new
    training.export(training.train(everything), tmp_path / FOLDER)
    training.loop.close()
    record = json.loads((tmp_path / FOLDER / 'pruner.json').read_text('utf-8'))
    assert record['made']['config']['start'] == str(start)
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()),
                           load_decoder(tmp_path / FOLDER, own), load_decoder(start, own))
    assert all(each < 2e-3 for each in jax.tree.leaves(changed))
    assert max(jax.tree.leaves(changed)) > 0
