"""Recorded episodes hold what the robot publishes, and labels, in the order of time."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.expert import HORIZON, expert_chunk
from ros_pi0_fast.sim.record import TOPICS, main
from ros_pi0_fast.sim.tabletop import Tabletop


def read(bag):
    messages = defaultdict(list)
    with AnyReader([bag], default_typestore=bag_types()) as reader:
        for connection, time_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            messages[connection.topic].append((time_ns, message))
    return messages


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('record')
    main(['--episodes', '4', '--seed', '20', '--shard', '3', '--out', str(folder)])
    return folder


def test_episodes_are_dealt_to_bags(folder):
    bags = sorted(folder.iterdir())
    assert [bag.name for bag in bags] == ['shard_0000', 'shard_0001']
    assert [len(read(bag)['/instruction']) for bag in bags] == [3, 1]
    with pytest.raises(SystemExit, match='shard_0000 is there already'):
        main(['--episodes', '1', '--out', str(folder)])


def test_every_picture_has_its_state_command_and_label(folder):
    messages = read(folder / 'shard_0000')
    assert set(messages) == set(TOPICS)
    counts = Counter({topic: len(found) for topic, found in messages.items()})
    del counts['/instruction']
    assert len(set(counts.values())) == 1
    times = [[stamp_ns(message) for _, message in messages[topic]] for topic in counts]
    assert all(stamps == times[0] for stamps in times)
    assert times[0] == sorted(times[0])
    assert [time_ns for time_ns, _ in messages['/image/base']] == times[0]


def test_a_bag_says_what_the_simulation_showed(folder):
    messages = read(folder / 'shard_0000')
    table = Tabletop(20, 'reach')
    seen, label = table.observe(), expert_chunk(table)
    for key, topic in (('base_0_rgb', '/image/base'), ('wrist_0_rgb', '/image/wrist')):
        image = messages[topic][0][1]
        assert image.encoding == 'rgb8'
        np.testing.assert_array_equal(image.data.reshape(64, 64, 3), seen.images[key])
    joints = messages['/joint_states'][0][1]
    assert joints.name == list(arm.ACTION_NAMES)
    np.testing.assert_array_equal(joints.position.astype(np.float32), seen.state)
    chunk = messages['/expert/action_chunk'][0][1]
    np.testing.assert_array_equal(chunk.actions.reshape(HORIZON, 5), label)
    assert (chunk.valid, chunk.absolute, chunk.instruction) == (True, True, seen.instruction)
    assert chunk.control_period.nanosec == 100_000_000
    assert messages['/instruction'][0][1].data == seen.instruction
    command = messages['/joint_command'][0][1]
    np.testing.assert_array_equal(command.position.astype(np.float32), label[0])
