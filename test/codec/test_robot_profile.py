import os
import re

import pytest
import yaml

from ros_pi0_fast.codec.robot_profile import ProfileError, RobotProfile


@pytest.fixture
def tabletop(repository):
    return yaml.safe_load((repository / 'config/robots/tabletop.yaml').read_text())


def write(folder, content):
    path = folder / 'robot.yaml'
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def change(content, key, value):
    *parents, last = key.split('.')
    for parent in parents:
        content = content[parent]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(('name', 'cameras', 'state_dim', 'action_dim', 'horizon', 'mask'), [
    ('tabletop', ('base_0_rgb', 'wrist_0_rgb'), 5, 5, 10, [True] * 4 + [False]),
    ('droid', ('base_0_rgb', 'base_1_rgb', 'wrist_0_rgb'), 8, 8, 10, [False] * 8),
    ('libero', ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb'), 8, 7, 10,
     [True] * 6 + [False]),
])
def test_shipped_profiles(repository, name, cameras, state_dim, action_dim, horizon, mask):
    profile = RobotProfile.load(repository / f'config/robots/{name}.yaml')
    assert profile.name == name
    assert profile.camera_keys == cameras
    assert (profile.state_dim, profile.action_dim, profile.horizon) == (
        state_dim, action_dim, horizon)
    assert list(profile.actions.delta_mask) == mask
    assert profile.normalization == 'quantile'


def test_openpi_facts_of_the_shipped_profiles(repository):
    droid = RobotProfile.load(repository / 'config/robots/droid.yaml')
    assert (droid.asset_id, droid.max_token_len, droid.image_size) == ('droid', 250, (224, 224))
    assert droid.absent_cameras == ('base_1_rgb',)
    libero = RobotProfile.load(repository / 'config/robots/libero.yaml')
    assert libero.asset_id == 'physical-intelligence/libero'
    assert (libero.max_token_len, libero.first_token_offset) == (180, 1)


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('speed', 3, "unknown key 'speed', expected one of name, asset_id, cameras"),
    ('actions.gain', 3, "unknown key 'actions.gain', expected one of names, mode"),
    ('cameras.base_0_rgb.encoding', 'rgb8', "unknown key 'cameras.base_0_rgb.encoding'"),
    ('asset_id', None, "key 'asset_id': found nothing, expected a non-empty text"),
    ('asset_id', '../../etc', "key 'asset_id': found '../../etc', expected a relative folder"),
    ('asset_id', '/etc', "key 'asset_id': found '/etc', expected a relative folder"),
    ('name', 7, "key 'name': found 7, expected a non-empty text"),
    ('normalization', 'minmax',
     "key 'normalization': found 'minmax', expected one of quantile, z-score"),
    ('control_rate_hz', 0, "key 'control_rate_hz': found 0, expected a number above 0"),
    ('control_rate_hz', True, "key 'control_rate_hz': found True, expected a number above 0"),
    ('control_rate_hz', float('nan'), "key 'control_rate_hz': found nan, expected a number"),
    ('control_rate_hz', '10 Hz', "key 'control_rate_hz': found '10 Hz', expected a number"),
    ('max_token_len', 80.0, "key 'max_token_len': found 80.0, expected an integer from 1 to"),
    ('image_size', [64], "key 'image_size': found [64], expected a list of 2 sizes"),
    ('image_size', [64, 0], "key 'image_size[1]': found 0, expected an item of a list of 2 size"),
    ('first_token_offset', 2, "key 'first_token_offset': found 2, expected an integer from 0"),
    ('cameras', {}, "key 'cameras': found {}, expected at least one camera"),
    ('cameras', ['base_0_rgb'], "key 'cameras': found ['base_0_rgb'], expected a mapping"),
    ('cameras.base_0_rgb.topic', 'image base',
     "key 'cameras.base_0_rgb.topic': found 'image base', expected a ROS topic name"),
    ('cameras.base_0_rgb.transport', 'h264',
     "key 'cameras.base_0_rgb.transport': found 'h264', expected one of raw, compressed"),
    ('absent_cameras', ['base_0_rgb'],
     "key 'absent_cameras': found 'base_0_rgb', expected a key that is not under 'cameras'"),
    ('state.joints', [], "key 'state.joints': found [], expected at least one name"),
    ('state.joints', ['a', 'a'], "key 'state.joints': found ['a', 'a'], expected names that all"),
    ('state.joints', ['a', 3], "key 'state.joints[1]': found 3, expected an item of a list of"),
    ('actions.mode', 'velocity', "key 'actions.mode': found 'velocity', expected one of delta, a"),
    ('actions.mode', 'absolute', 'expected all false where mode is absolute'),
    ('actions.delta_mask', None, "key 'actions.delta_mask': found nothing, expected a list of 5"),
    ('actions.delta_mask', [False] * 5, 'expected a true where mode is delta'),
    ('actions.delta_mask', [True, True, True, True, 0],
     "key 'actions.delta_mask[4]': found 0, expected an item of a list of 5 true or false"),
    ('state.joints', ['a', 'b', 'c'], 'expected true only in the first 3 (state.joints) dimens'),
    ('actions.gripper', [5], "key 'actions.gripper[0]': found 5, expected an item of a list of d"),
    ('actions.gripper', [4, 4], "key 'actions.gripper': found [4, 4], expected dimensions that"),
    ('actions.horizon', 0, "key 'actions.horizon': found 0, expected an integer from 1 to 1024"),
    ('actions.units', ['rad'] * 4, 'expected a list of 5 units (text, or 1 for none), not 4'),
    ('actions.units', ['rad'] * 4 + [True], "key 'actions.units[4]': found True, expected"),
    ('actions.limits.lower', [0.0] * 4, "key 'actions.limits.lower': found [0.0, 0.0, 0.0, 0.0]"),
    ('actions.limits.lower', [9.0] * 5,
     "key 'actions.limits.upper[0]': found 1.6, expected more than lower[0], 9.0"),
    ('actions.limits.upper', [10 ** 400] * 5, "key 'actions.limits.upper[0]'"),
])
def test_refused(tmp_path, tabletop, key, value, message):
    change(tabletop, key, value)
    path = write(tmp_path, tabletop)
    with pytest.raises(ProfileError, match=re.escape(message)) as error:
        RobotProfile.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(('content', 'message'), [
    ('name: !!python/object/apply:os.system ["true"]\n', 'could not determine a constructor'),
    ('name: a\nname: b\n', "found key 'name' twice, expected once"),
    ('1: a\n', 'found key 1, expected text'),
    ('- a\n- b\n', "found ['a', 'b'], expected a mapping of keys"),
    ('name: [', 'is not plain YAML'),
    ('', 'found None, expected a mapping of keys'),
    ('name: ' + 'a' * (1 << 20), 'found over 1048576 bytes'),
    ('[' * 5000, 'is not plain YAML'),
])
def test_no_plain_yaml(tmp_path, content, message):
    with pytest.raises(ProfileError, match=re.escape(message)):
        RobotProfile.load(write(tmp_path, content))


def test_only_regular_files(tmp_path):
    with pytest.raises(ProfileError, match='cannot be read: No such file'):
        RobotProfile.load(tmp_path / 'absent.yaml')
    with pytest.raises(ProfileError, match='expected a regular file'):
        RobotProfile.load(tmp_path)
    os.mkfifo(tmp_path / 'pipe.yaml')
    with pytest.raises(ProfileError, match=r'found prw.*expected a regular file'):
        RobotProfile.load(tmp_path / 'pipe.yaml')


def test_absolute_needs_no_mask_and_limits_may_be_left_out(tmp_path, tabletop):
    change(tabletop, 'actions.mode', 'absolute')
    change(tabletop, 'actions.delta_mask', None)
    change(tabletop, 'actions.limits', None)
    profile = RobotProfile.load(write(tmp_path, tabletop))
    assert profile.actions.delta_mask == (False,) * 5
    assert profile.actions.limits is None
