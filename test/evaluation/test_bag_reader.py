"""Bags of any writer give the node's observations; of bad ones, what can be had."""

import dataclasses
import itertools

import cv2
import numpy as np
import pytest
from bag_tools import rewrite, stamp
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.evaluation.bag_actions import RecordedActions, find_actions
from ros_pi0_fast.evaluation.bag_reader import BagError, BagReader, Inputs
from ros_pi0_fast.sim import record
from ros_pi0_fast.sim.expert import expert_chunk
from ros_pi0_fast.sim.tabletop import Tabletop

INPUTS = ('/image/base', '/image/wrist', '/joint_states', '/instruction')


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    record.main(['--episodes', '2', '--seed', '41', '--out', str(folder)])
    return folder / 'shard_0000'


def ticks(path, profile, rate_hz=20.0, **inputs):
    with BagReader(path, profile, Inputs(**inputs), salvage=True) as reader:
        found = list(reader.ticks(rate_hz))
        return found, reader


def observations(path, profile, **inputs):
    return [tick.observation for tick in ticks(path, profile, **inputs)[0] if tick.observation]


def assert_same(found, expected):
    assert [each.stamp_ns for each in found] == [each.stamp_ns for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.instruction == other.instruction
        np.testing.assert_array_equal(one.state, other.state)
        for key, picture in other.images.items():
            np.testing.assert_array_equal(one.images[key], picture)


@pytest.fixture(scope='module')
def expected(bag, tabletop_profile):
    return observations(bag, tabletop_profile)


def test_each_new_observation_comes_once_at_the_rate(bag, tabletop_profile, expected):
    with BagReader(bag, tabletop_profile) as reader:
        stamps = [moment.stamp_ns for moment in reader.moments('/image/wrist')]
    assert [each.stamp_ns for each in expected] == stamps  # At 20 Hz each picture is seen.
    slow, reader = ticks(bag, tabletop_profile, 2.0)
    seen = [tick for tick in slow if tick.observation]
    assert all((tick.time_ns - slow[0].time_ns) % 500_000_000 == 0 for tick in slow)
    assert len(seen) < len(stamps) / 3
    # Between the episodes nothing is new, and the node refuses.
    assert reader.assembler.refusals['stale camera'] == len(slow) - len(seen) > 5


FORMS = [*itertools.product(
    (StoragePlugin.MCAP, StoragePlugin.SQLITE3), ('humble', 'jazzy'),
    (CompressionMode.NONE, CompressionMode.MESSAGE, CompressionMode.FILE)),
    (StoragePlugin.MCAP, 'jazzy', CompressionMode.STORAGE)]


@pytest.mark.parametrize(('storage', 'distribution', 'compression'), FORMS)
def test_who_wrote_a_bag_makes_no_difference(bag, tabletop_profile, expected, tmp_path, storage,
                                             distribution, compression):
    other = rewrite(bag, tmp_path / 'other', storage=storage, distribution=distribution,
                    compression=compression, version=8 if distribution == 'humble' else 9)
    assert_same(observations(other, tabletop_profile), expected)
    windows = []
    for path in (bag, other):
        with RecordedActions(path, '/joint_command', tabletop_profile) as actions:
            windows.append([actions.window(each.stamp_ns) for each in expected])
    np.testing.assert_array_equal(windows[0], windows[1])


def test_by_header_messages_come_at_their_stamps(bag, tabletop_profile, expected, tmp_path):
    def later(topic, time_ns, message):
        wait = {'/image/base': 180, '/image/wrist': 90, '/joint_states': 130}.get(topic, 0)
        return [(topic, time_ns + 50 * 10**9 + wait * 10**6, message)]

    late = rewrite(bag, tmp_path / 'late', change=later)
    assert_same(observations(late, tabletop_profile, by_header=True), expected)
    windows = []
    for path, stamps in ((bag, False), (late, True)):
        with RecordedActions(path, '/joint_command', tabletop_profile, stamps=stamps) as actions:
            windows.append([actions.window(each.stamp_ns) for each in expected])
    np.testing.assert_array_equal(windows[0], windows[1])
    found, reader = ticks(late, tabletop_profile)
    assert not any(tick.observation for tick in found)
    assert abs(reader.clocks_apart_s) > 49


def test_actions_are_those_of_the_rows_times(bag, tabletop_profile, expected):
    table, period = Tabletop(41, 'reach'), 100_000_000
    table.observe()
    with RecordedActions(bag, '/joint_command', tabletop_profile) as actions:
        first = actions.window(expected[0].stamp_ns)
    np.testing.assert_array_equal(first[0], expert_chunk(table)[0].astype(np.float32))
    with BagReader(bag, tabletop_profile) as reader:
        commands = {moment.stamp_ns: np.asarray(moment.message.position, np.float32)
                    for moment in reader.moments('/joint_command')}
    known = [commands.get(expected[0].stamp_ns + row * period) for row in range(10)]
    for row, command in enumerate(known):
        if command is None:
            assert np.isnan(first[row]).all()
        else:
            np.testing.assert_array_equal(first[row], command)
    assert sum(command is not None for command in known) > 3


def test_actions_of_another_robot_are_told(bag, tabletop_profile):
    actions = dataclasses.replace(tabletop_profile.actions,
                                  names=('a', 'shoulder', 'elbow', 'wrist_pitch', 'gripper'))
    with pytest.raises(BagError, match='/joint_command: found no a among base_yaw, shoulder'):
        RecordedActions(bag, '/joint_command',
                        dataclasses.replace(tabletop_profile, actions=actions))


def test_chunks_are_actions_until_the_next_one(bag, tabletop_profile, expected):
    """Row 0 of each label is what was commanded then: the newest chunk wins."""
    rows = []
    for topic in ('/joint_command', '/expert/action_chunk'):
        with RecordedActions(bag, topic, tabletop_profile) as actions:
            rows.append([actions.window(each.stamp_ns)[0] for each in expected])
    assert np.nanmax(np.abs(np.subtract(*rows))) < 0.25  # The expert planned anew each step.
    assert not np.isnan(rows[1]).any()


def test_topics_of_other_names_and_an_order_from_outside(bag, tabletop_profile, expected,
                                                         tmp_path):
    def rename(topic, time_ns, message):
        return [({'/image/base': '/camera/color/image_raw',
                  '/joint_states': '/arm/joint_states'}.get(topic, topic), time_ns, message)]

    other = rewrite(bag, tmp_path / 'other', change=rename,
                    keep=('/image/wrist',),
                    kinds={'/camera/color/image_raw': 'sensor_msgs/msg/Image',
                           '/arm/joint_states': 'sensor_msgs/msg/JointState'})
    with pytest.raises(BagError, match=r'has no /image/base \(of that type: /camera/color/'
                                       r'image_raw\), /joint_states \(near: /arm/joint_states\), '
                                       r'/instruction; it has /arm/joint_states, /camera'):
        BagReader(other, tabletop_profile)
    found = observations(other, tabletop_profile, instruction='touch it',
                         remaps={'/image/base': '/camera/color/image_raw',
                                 '/joint_states': '/arm/joint_states'})
    assert {each.instruction for each in found} == {'touch it'}
    assert_same([dataclasses.replace(each, instruction='') for each in found],
                [dataclasses.replace(each, instruction='') for each in expected])


def test_pictures_may_be_compressed_in_the_bag_and_change_their_size(bag, tabletop_profile,
                                                                     expected, tmp_path):
    types = bag_types().types
    sizes = itertools.cycle([(64, 64), (48, 80)])

    def compress(topic, time_ns, message):
        if topic != '/image/base':
            return [(topic, time_ns, message)]
        pixels = cv2.resize(message.data.reshape(64, 64, 3)[..., ::-1], next(sizes)[::-1])
        data = cv2.imencode('.png', pixels)[1].reshape(-1)
        return [('/base/compressed', time_ns, types['sensor_msgs/msg/CompressedImage'](
            header=message.header, format='png', data=data))]

    other = rewrite(bag, tmp_path / 'other', change=compress,
                    keep=('/image/wrist', '/joint_states', '/instruction'),
                    kinds={'/base/compressed': 'sensor_msgs/msg/CompressedImage'})
    found, reader = ticks(other, tabletop_profile, remaps={'/image/base': '/base/compressed'})
    found = [tick.observation for tick in found if tick.observation]
    assert reader.notes == ['/base/compressed is compressed in the bag, and raw in the profile']
    assert {each.images['base_0_rgb'].shape for each in found} == {(64, 64, 3), (48, 80, 3)}
    assert_same(found[:1], expected[:1])
    with pytest.raises(BagError, match=r'/joint_command: found sensor_msgs/msg/JointState, '
                                       r'expected sensor_msgs/msg/Image or'):
        BagReader(bag, tabletop_profile, Inputs(remaps={'/image/base': '/joint_command'}))
    with pytest.raises(BagError, match='one topic for two inputs'):
        BagReader(bag, tabletop_profile, Inputs(remaps={'/image/base': '/image/wrist'}))


def test_what_is_whole_of_a_bag_that_is_cut_off_is_read(tabletop_profile, tmp_path):
    record.main(['--episodes', '8', '--seed', '50', '--out', str(tmp_path)])
    whole = tmp_path / 'shard_0000'
    expected = observations(whole, tabletop_profile)
    data = (whole / 'shard_0000.mcap').read_bytes()
    cut = tmp_path / 'cut'
    cut.mkdir()
    (cut / 'cut.mcap').write_bytes(data[:2 * len(data) // 3])  # And no metadata.yaml.
    found, reader = ticks(cut, tabletop_profile)
    found = [tick.observation for tick in found if tick.observation]
    assert len(expected) / 3 < len(found) < len(expected)  # Of 3 MB, in blocks of 1 MiB.
    assert_same(found, expected[:len(found)])
    assert 'metadata.yaml is missing' in reader.file.damage[0]
    assert 'cut.mcap is cut off: its last' in reader.file.damage[1]
    (cut / 'cut.mcap').write_bytes(data[:30])
    with pytest.raises(BagError, match='cut: cannot be read as a rosbag2: found no whole record'):
        BagReader(cut, tabletop_profile, salvage=True)
    # With metadata.yaml, and the one file alone.
    rewritten = rewrite(whole, tmp_path / 'again')
    file = rewritten / 'again.mcap'
    file.write_bytes(file.read_bytes()[:len(data) // 2])
    for path in (rewritten, file):
        found = observations(path, tabletop_profile)
        assert 5 < len(found) < len(expected)
        assert_same(found, expected[:len(found)])


def test_unknown_types_elsewhere_do_not_matter(bag, tabletop_profile, expected, tmp_path):
    file = rewrite(bag, tmp_path / 'other', storage=StoragePlugin.SQLITE3, version=8)
    import sqlite3
    with sqlite3.connect(next(file.glob('*.db3'))) as base:
        base.execute("UPDATE topics SET type = 'acme_msgs/msg/Gripper' "
                     "WHERE name = '/expert/action_chunk'")
        base.execute('DELETE FROM message_definitions')
    text = (file / 'metadata.yaml').read_text('utf-8')
    (file / 'metadata.yaml').write_text(
        text.replace('ros_pi0_fast/msg/ActionChunk', 'acme_msgs/msg/Gripper'), 'utf-8')
    assert_same(observations(file, tabletop_profile), expected)
    with BagReader(file, tabletop_profile, salvage=True) as reader:
        assert find_actions(reader.file.topics) == '/joint_command'
        with pytest.raises(ValueError, match=r'--actions /expert/action_chunk: found '
                                             r'acme_msgs/msg/Gripper, expected one of /joint_'):
            find_actions(reader.file.topics, '/expert/action_chunk')
        assert not list(reader.file.messages(['/expert/action_chunk']))
        assert 'acme_msgs/msg/Gripper is neither known nor defined' in reader.file.damage[0]


def test_a_bag_without_duration_has_one_observation(bag, tabletop_profile, tmp_path):
    first = {}

    def at_once(topic, time_ns, message):
        if first.setdefault(topic, message) is not message:
            return []
        if hasattr(message, 'header'):
            message.header.stamp = stamp(10**9)
        return [(topic, 10**9, message)]

    found = observations(rewrite(bag, tmp_path / 'other', change=at_once, keep=INPUTS),
                         tabletop_profile)
    assert [each.stamp_ns for each in found] == [10**9]
