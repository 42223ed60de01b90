"""Recorded bags become training data: the same observations and labels as in the simulation."""

import numpy as np
import pytest

from ros_pi0_fast.evaluation.bag_reader import BagError, BagReader
from ros_pi0_fast.sim import record
from ros_pi0_fast.sim.expert import expert_chunk
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.training.bags import LABELS, main, read_states
from ros_pi0_fast.training.data import Frames


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    record.main(['--episodes', '2', '--seed', '40', '--out', str(folder)])
    return folder / 'shard_0000'


def test_a_shard_has_what_the_simulation_showed(bag, tabletop_profile, tmp_path, capsys,
                                                repository):
    main([str(bag), '--out', str(tmp_path), '--profile',
          str(repository / 'config/robots/tabletop.yaml'), '--orders', '3'])
    frames = Frames.load(tmp_path / 'expert_shard_0000.npz')
    assert f'{len(frames)} observations of 1 bags' in capsys.readouterr().out
    table = Tabletop(40, 'reach')
    seen = table.observe()
    first = frames.observation(0)
    for key, picture in seen.images.items():
        np.testing.assert_array_equal(first.images[key], picture)
    np.testing.assert_array_equal(first.state, seen.state)
    assert list(frames.instructions[0]) == [seen.instruction] * 3
    np.testing.assert_array_equal(frames.chunks[0], np.repeat(expert_chunk(table)[None], 3, 0))
    assert len(set(frames.instructions[:, 0])) == 2 and np.isnan(frames.places).all()


def test_every_label_has_the_observation_of_its_stamp(bag, tabletop_profile):
    with BagReader(bag, tabletop_profile) as reader:
        moments = list(reader.moments(LABELS))
        assert not reader.assembler.refusals
    assert len(moments) == len(read_states(bag, tabletop_profile)) > 10
    for moment in moments:
        assert moment.observation.stamp_ns == moment.time_ns and not moment.reason


def test_what_the_node_would_refuse_has_a_reason(bag, tabletop_profile):
    with BagReader(bag, tabletop_profile) as reader:
        first = next(iter(reader.moments('/image/base')))
    assert first.observation is None
    assert first.reason.startswith('missing camera: nothing for wrist_0_rgb')


def test_what_is_not_there_is_named(bag, tabletop_profile, tmp_path):
    with pytest.raises(BagError, match='nowhere: is not there, expected a rosbag2'):
        BagReader(tmp_path / 'nowhere', tabletop_profile)
    with BagReader(bag, tabletop_profile) as reader, pytest.raises(
            BagError, match=r'has no /expert/chunk \(near: /expert/action_chunk\); it has /'):
        next(reader.moments('/expert/chunk'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BagError, match='empty: cannot be read as a rosbag2'):
        BagReader(tmp_path / 'empty', tabletop_profile)


def test_a_bag_that_is_cut_off_is_named(bag, tabletop_profile, tmp_path):
    cut = tmp_path / 'cut'
    cut.mkdir()
    for path in bag.iterdir():
        data = path.read_bytes()
        (cut / path.name).write_bytes(
            data if path.suffix == '.yaml' else data[:2 * len(data) // 3])
    with pytest.raises(BagError, match='cut: '), BagReader(cut, tabletop_profile) as reader:
        list(reader.moments(LABELS))


def test_labels_for_another_robot_are_refused(bag, tabletop_profile, monkeypatch):
    import dataclasses
    shorter = dataclasses.replace(tabletop_profile, actions=dataclasses.replace(
        tabletop_profile.actions, horizon=5))
    with pytest.raises(BagError, match='label 1: 10 x 5, valid True, absolute True; expected 5 x'):
        read_states(bag, shorter)
