"""Fine-tuning starts from a checkpoint, of openpi too, and keeps its tokenizers and statistics."""

import dataclasses

import jax
import numpy as np
import pytest

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.codec.transforms import to_absolute
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.training.config import Start, get_run
from ros_pi0_fast.training.data import Frames
from ros_pi0_fast.training.policy_training import PolicyTraining
from ros_pi0_fast.weights.checkpoint import load_checkpoint

STEPS = 40


@pytest.fixture(scope='module')
def openpi(golden, repository):
    """A checkpoint that openpi wrote, with random weights, and the robot that it is for."""
    folder = golden / 'policy_libero'
    start = Start(checkpoint=folder / 'checkpoint',
                  text_tokenizer=folder / 'paligemma_tokenizer.model',
                  fast_tokenizer=folder / 'fast_tokenizer')
    return start, repository / 'config' / 'robots' / 'libero.yaml'


@pytest.fixture(scope='module')
def tuned(openpi, tmp_path_factory):
    """What comes of fine-tuning it on a few frames."""
    start, profile_file = openpi
    work = tmp_path_factory.mktemp('finetune')
    profile = RobotProfile.load(profile_file)
    codec = PolicyCodec.from_checkpoint(start.checkpoint, profile,
                                        text_tokenizer=start.text_tokenizer,
                                        fast_tokenizer=start.fast_tokenizer)
    make_frames(codec, 8).save(work / 'shards' / 'expert_0000000.npz')
    run = get_run('smoke')
    run = dataclasses.replace(
        run, start=start, expert_episodes=0, augment=None, capacity=64,
        loop=dataclasses.replace(run.loop, steps=STEPS, batch_size=4, ema_decay=0.9),
        dagger=dataclasses.replace(run.dagger, rounds=0))
    training = PolicyTraining(run, work, profile=profile_file, workers=0)
    state = training.train()
    assert training.finished(state)
    training.export(state, work / 'out')
    records = training.loop.metrics.read()
    training.loop.close()
    return work / 'out', codec, records


def make_frames(codec, count):
    rng = np.random.default_rng(0)
    profile = codec.profile
    states = rng.normal(size=(count, profile.state_dim)).astype(np.float32)
    slope = rng.uniform(-0.4, 0.4, (count, 1, profile.action_dim))
    normalized = slope * np.linspace(0, 1, profile.horizon)[:, None]
    deltas = codec.norm_stats.actions.unnormalize(normalized, profile.normalization)
    chunks = np.stack([to_absolute(delta, state, profile.actions.delta_mask)
                       for delta, state in zip(deltas, states, strict=True)])
    images = {key: rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
              for key in profile.cameras}
    return Frames(images=images, states=states, chunks=chunks[:, None].astype(np.float32),
                  instructions=np.full((count, 1), 'put the cup down'),
                  places=np.full((count, 1, len(images), 2), np.nan, np.float32),
                  seeds=np.zeros(count, np.int64))


def test_it_learns_from_where_the_checkpoint_was(tuned, openpi):
    folder, _, records = tuned
    assert records[-1]['loss'] < 0.7 * records[0]['loss']
    start, profile_file = openpi
    profile = RobotProfile.load(profile_file)
    before = jax.tree.leaves(load_checkpoint(start.checkpoint, profile).params)
    after = jax.tree.leaves(load_checkpoint(folder, profile).params)
    # A network from nothing shares no number with it; a few steps move each a little.
    moved = [float(np.abs(a - b).max()) for a, b in zip(after, before, strict=True)]
    assert 0 < max(moved) < 0.2


def test_tokenizers_and_statistics_are_kept(tuned, openpi):
    folder, codec, _ = tuned
    _, kept = load_policy(folder, RobotProfile.load(openpi[1]))
    for name in ('mean', 'std', 'q01', 'q99'):
        for which in ('state', 'actions'):
            np.testing.assert_array_equal(getattr(getattr(kept.norm_stats, which), name),
                                          getattr(getattr(codec.norm_stats, which), name))
    assert kept.fast.id_bytes == codec.fast.id_bytes
    assert kept.contract.first_token_offset == 1  # As openpi decodes.


def test_the_result_runs(tuned, openpi):
    folder, codec, _ = tuned
    engine = Engine(*load_policy(folder, RobotProfile.load(openpi[1])))
    chunk = engine.infer(make_frames(codec, 1).observation(0))
    assert chunk.valid and chunk.actions.shape == (10, 7)


def test_a_tokenizer_that_is_not_there_is_named(openpi, tmp_path):
    start = dataclasses.replace(openpi[0], text_tokenizer=tmp_path / 'none.model')
    run = dataclasses.replace(get_run('smoke'), start=start)
    with pytest.raises(ValueError, match=r'none\.model: is not there, expected a tokenizer'):
        PolicyTraining(run, tmp_path, profile=openpi[1], workers=0)
