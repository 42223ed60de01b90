"""The whole chain without the simulator: frames, assets, loss, decoding back to actions.

A bright dot in the picture says where the arm should go and the instruction says by which of two
joints, so that a model that reads only one of them cannot get the loss down.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.batch_policy import BatchPolicy
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.sim.episodes import LabelledState
from ros_pi0_fast.training.assets import fit_assets
from ros_pi0_fast.training.data import DatasetError, Frames, encode_frames, encode_shards
from ros_pi0_fast.training.loop import LoopConfig, TrainLoop
from ros_pi0_fast.training.objective import next_token_loss
from ros_pi0_fast.training.workers import worker_pool
from ros_pi0_fast.types import Observation

SIZE = 16
MODEL = Pi0FastConfig(
    siglip=SiglipConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size=(8, 8),
                        image_size=(SIZE, SIZE)),
    gemma=GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=2, num_kv_heads=1, head_dim=32,
                      vocab_size=1024),
    action_dim=5, action_horizon=10, max_token_len=80, first_token_offset=0,
    camera_keys=('base_0_rgb', 'wrist_0_rgb'))
INSTRUCTIONS = ('turn left', 'turn right')


@pytest.fixture(scope='module')
def profile(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> RobotProfile:
    text = (repository / 'config/robots/tabletop.yaml').read_text()
    path = tmp_path_factory.mktemp('profile') / 'small.yaml'
    path.write_text(text.replace('image_size: [64, 64]', f'image_size: [{SIZE}, {SIZE}]'))
    return RobotProfile.load(path)


def make_frames(count: int) -> Frames:
    """Make frames of two orders each, which the instruction alone tells apart."""
    images, states, row, column = _make_pictures(np.random.default_rng(5), count)
    goal = np.repeat(states[:, None], 2, axis=1)
    goal[:, [0, 1], [0, 1]] += (column / SIZE - 0.5).astype(np.float32)[:, None]
    goal[..., 4] = (row > SIZE // 2)[:, None]
    ramp = np.linspace(0, 1, 10)[:, None]
    chunks = states[:, None, None] + ramp * (goal - states[:, None])[:, :, None]
    chunks[..., 4] = goal[..., None, 4]
    return Frames(images=images, states=states, chunks=chunks.astype(np.float32),
                  instructions=np.tile(INSTRUCTIONS, (count, 1)), seeds=np.arange(count),
                  places=np.full((count, 2, 2, 2), np.nan, np.float32))


def _make_pictures(rng: np.random.Generator, count: int) -> tuple:
    images = {key: rng.integers(0, 60, (count, SIZE, SIZE, 3)).astype(np.uint8)
              for key in MODEL.camera_keys}
    row, column = rng.integers(0, SIZE, (2, count))
    images['base_0_rgb'][np.arange(count), row, column] = 255
    return images, rng.uniform(-0.5, 0.5, (count, 5)).astype(np.float32), row, column


@pytest.fixture(scope='module')
def trained(profile: RobotProfile, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp('run')
    frames = make_frames(8)
    codec = fit_assets(folder, profile, frames, vocab_size=1024, fast_vocab_size=320,
                       fast_scale=10.0)
    model = Pi0Fast(MODEL)
    config = LoopConfig(steps=200, batch_size=8, learning_rate=3e-3, warmup_steps=20,
                        steps_per_dispatch=25, ema_decay=0.98, checkpoint_every=1000)
    loop = TrainLoop(config, next_token_loss(model, None), folder)
    state = loop.fit(loop.new_state(model.init(jax.random.key(0))),
                     loop.put(encode_frames(frames, codec)))
    loop.close()
    return folder, frames, codec, model, state, loop.metrics.read()


def test_loss_falls_and_actions_come_back(trained) -> None:
    # Only the instruction tells a frame's two orders apart, so it must have been read.
    _, frames, codec, model, state, records = trained
    assert records[0]['loss'] > 2.0
    assert records[-1]['loss'] < 0.05
    policy = BatchPolicy(model, state.ema, codec, batch=10)
    chunks = policy.plan([frames.observation(i, k) for i in range(len(frames)) for k in range(2)])
    assert all(chunk.valid for chunk in chunks)
    error = np.abs(np.stack([chunk.actions for chunk in chunks]) - np.concatenate(frames.chunks))
    # What remains is the rounding of FAST: half a step of 1/10 in a coefficient, in a joint
    # whose range is 1 rad, is 0.025 rad; in all ten coefficients rarely above 0.06.
    assert error.mean() < 0.02
    assert error.max() < 0.15


def test_decoding_equals_the_batch_whatever_its_size(trained) -> None:
    _, frames, codec, model, state, _ = trained
    observations = [frames.observation(i) for i in range(5)]
    alone = BatchPolicy(model, state.ema, codec, batch=1).plan(observations)
    together = BatchPolicy(model, state.ema, codec, batch=8).plan(observations)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_checkpointed_gradients_are_the_same(trained) -> None:
    _, frames, codec, model, _, _ = trained
    arrays = jax.tree.map(lambda x: x[:4], encode_frames(frames, codec))
    params = model.init(jax.random.key(1))

    def gradient(remat: str | None):
        loss = next_token_loss(dataclasses.replace(model, remat=remat), None)
        return jax.jit(jax.grad(lambda p: loss(p, arrays, jax.random.key(0))[0]))(params)

    plain, saved = gradient(None), gradient('nothing_saveable')
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    assert largest > 0.01
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_shards_encode_the_same_in_workers(trained, profile: RobotProfile,
                                           tmp_path: Path) -> None:
    folder, frames, codec, *_ = trained
    expected = encode_frames(frames, codec)
    halves = [Frames(images={k: v[part] for k, v in frames.images.items()},
                     **{name: getattr(frames, name)[part]
                        for name in ('states', 'chunks', 'instructions', 'places', 'seeds')})
              for part in (slice(0, 5), slice(5, 8))]
    paths = [tmp_path / f'{i}.npz' for i in range(2)]
    for path, half in zip(paths, halves, strict=True):
        half.save(path)
    with worker_pool(2) as run:
        parts = list(encode_shards(paths, folder, profile.source, run=run))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_frames_that_no_tokenizer_can_hold_are_an_error(trained) -> None:
    _, frames, codec, *_ = trained
    wild = dataclasses.replace(frames, chunks=frames.chunks + 100.0)
    with pytest.raises(DatasetError, match='16 of 16 orders cannot be encoded'):
        encode_frames(wild, codec)


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / 'bad.npz').write_bytes(b'nothing')
    with pytest.raises(DatasetError, match=r'bad\.npz'):
        Frames.load(tmp_path / 'bad.npz')


def test_observation_of_a_frame_is_what_was_stacked() -> None:
    observation = Observation(
        images={'base_0_rgb': np.full((4, 4, 3), 7, np.uint8)},
        state=np.arange(5, dtype=np.float32), instruction='touch the red cube')
    frames = Frames.stack([LabelledState(
        observation=observation, seed=3, chunks=np.zeros((2, 10, 5)), places=np.zeros((2, 1, 2)),
        instructions=('touch the red cube', 'pick up the blue cube'))])
    again = frames.observation(0)
    np.testing.assert_array_equal(again.images['base_0_rgb'], observation.images['base_0_rgb'])
    np.testing.assert_array_equal(again.state, observation.state)
    assert again.instruction == observation.instruction and frames.seeds[0] == 3
    assert frames.observation(0, 1).instruction == 'pick up the blue cube'


def test_an_order_that_no_tokenizer_can_hold_gives_its_place_to_another(trained) -> None:
    _, frames, codec, *_ = trained
    chunks = frames.chunks.copy()
    chunks[0, 1] += 100.0
    chunks[1] += 100.0
    found = encode_frames(dataclasses.replace(frames, chunks=chunks), codec, max_lost=0.5)
    expected = encode_frames(frames, codec)
    np.testing.assert_array_equal(found['tokens'][0], expected['tokens'][0, [0, 0]])
    np.testing.assert_array_equal(found['tokens'][1:], expected['tokens'][2:])
    np.testing.assert_array_equal(found['image/base_0_rgb'], expected['image/base_0_rgb'][
        [0, *range(2, 8)]])
