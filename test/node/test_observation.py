"""Inputs become an observation only when all are there, whole, fresh and close together."""

import numpy as np
import pytest

from ros_pi0_fast.node.observation import Freshness, ObservationAssembler, ObservationRefused

S = 10**9
NAMES = ['base_yaw', 'shoulder', 'elbow', 'wrist_pitch', 'gripper']
PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def inputs(tabletop_profile):
    result = ObservationAssembler(tabletop_profile, Freshness(
        max_observation_age_s=0.5, max_camera_skew_s=0.1))
    result.update_image('base_0_rgb', PICTURE, 10 * S)
    result.update_image('wrist_0_rgb', PICTURE + 1, 10 * S + 5)
    result.update_joints(NAMES, [1, 2, 3, 4, 0.5], 10 * S)
    result.update_instruction(' touch the red cube ')
    return result


def refused(inputs, now_ns=10 * S):
    with pytest.raises(ObservationRefused) as caught:
        inputs.assemble(now_ns)
    assert inputs.refusals[caught.value.kind] > 0
    return str(caught.value)


def test_all_there(inputs):
    observation = inputs.assemble(10 * S + 100)
    assert observation.instruction == 'touch the red cube'
    assert observation.stamp_ns == 10 * S
    np.testing.assert_array_equal(observation.state, np.float32([1, 2, 3, 4, 0.5]))
    assert observation.images['wrist_0_rgb'].max() == 1


def test_joints_come_in_any_order_split_and_with_others(inputs):
    inputs.update_joints(['gripper', 'elbow', 'left_wheel'], [0.25, 30, 9], 10 * S)
    inputs.update_joints(['shoulder'], [20], 10 * S)
    np.testing.assert_array_equal(inputs.assemble(10 * S).state, np.float32([1, 20, 30, 4, 0.25]))


@pytest.mark.parametrize(('names', 'positions', 'words'), [
    (NAMES, [1, 2], 'bad joint state: found 2 positions for 5 names'),
    (['elbow'], [float('nan')], 'bad joint state: elbow is nan, expected a finite number'),
    (['elbow'], [float('inf')], 'bad joint state: elbow is inf'),
    (['shoulder', 'elbow'], [0, -1e39], 'bad joint state: elbow is -1e[+]39')])
def test_broken_joint_states_change_nothing(inputs, names, positions, words):
    with pytest.raises(ObservationRefused, match=words):
        inputs.update_joints(names, positions, 11 * S)
    np.testing.assert_array_equal(inputs.assemble(10 * S).state, np.float32([1, 2, 3, 4, 0.5]))
    assert inputs.refusals == {'bad joint state': 1}


def test_joint_states_of_other_joints_are_ignored_whatever_is_in_them(inputs):
    inputs.update_joints(['left_wheel', 'right_wheel'], [], 11 * S)  # They have velocities only.
    assert not inputs.refusals


def test_an_instruction_is_new_where_it_says_something_else(inputs):
    assert not inputs.update_instruction('touch the red cube')
    assert inputs.update_instruction('touch the blue cube')


def test_what_is_missing_is_named(tabletop_profile):
    empty = ObservationAssembler(tabletop_profile, Freshness(
        max_observation_age_s=1, max_camera_skew_s=1))
    assert refused(empty) == 'missing camera: nothing for base_0_rgb on image/base yet'
    empty.update_image('base_0_rgb', PICTURE, 10 * S)
    assert 'wrist_0_rgb on image/wrist' in refused(empty)
    empty.update_image('wrist_0_rgb', PICTURE, 10 * S)
    empty.update_joints(NAMES[:3], [0, 0, 0], 10 * S)
    assert refused(empty) == ('missing joints: no position of wrist_pitch, gripper on '
                              'joint_states yet')
    empty.update_joints(NAMES[3:], [0, 0], 10 * S)
    assert refused(empty).startswith('no instruction: ')
    empty.update_instruction('go')
    assert empty.assemble(10 * S).instruction == 'go'
    assert empty.refusals == {'missing camera': 2, 'missing joints': 1, 'no instruction': 1}


def test_a_blank_instruction_withdraws_the_one_before(inputs):
    with pytest.raises(ObservationRefused, match='empty instruction: found a blank text'):
        inputs.update_instruction('  \n')
    assert refused(inputs).startswith('no instruction: ')


def test_old_inputs_are_refused(inputs):
    assert inputs.assemble(10 * S + S // 2)
    assert refused(inputs, 10 * S + S // 2 + 10).startswith(
        'stale camera: base_0_rgb is 0.500 s old, expected at most 0.5 s')
    inputs.update_image('base_0_rgb', PICTURE, 11 * S)
    inputs.update_image('wrist_0_rgb', PICTURE, 11 * S)
    assert refused(inputs, 11 * S).startswith('stale joint: base_yaw is 1.000 s old')


def test_inputs_from_the_future_are_refused(inputs):
    assert refused(inputs, 9 * S).startswith(
        'stale camera: base_0_rgb is 1.000 s ahead of the clock')


def test_cameras_far_apart_are_refused(inputs):
    inputs.update_image('base_0_rgb', PICTURE, 10 * S + S // 5)
    assert refused(inputs, 10 * S + S // 5).startswith(
        'camera skew: pictures are 0.200 s apart, expected at most 0.1 s')


def test_late_pictures_are_refused_but_a_new_clock_is_not(inputs):
    with pytest.raises(ObservationRefused, match=r'out of order: base_0_rgb is 50.0 ms older'):
        inputs.update_image('base_0_rgb', PICTURE + 9, 10 * S - S // 20)
    assert inputs.assemble(10 * S).images['base_0_rgb'].max() == 0
    inputs.update_image('base_0_rgb', PICTURE + 9, 2 * S)
    inputs.update_image('wrist_0_rgb', PICTURE, 2 * S)
    inputs.update_joints(NAMES, [0] * 5, 2 * S)
    assert inputs.assemble(2 * S).images['base_0_rgb'].max() == 9


def test_late_joints_are_refused_whole_but_a_new_clock_is_not(inputs):
    inputs.update_joints(['elbow'], [30], 10 * S + S // 10)
    with pytest.raises(ObservationRefused, match=r'out of order: elbow is 50.0 ms older'):
        inputs.update_joints(NAMES, [9] * 5, 10 * S + S // 20)
    np.testing.assert_array_equal(inputs.assemble(10 * S).state, np.float32([1, 2, 30, 4, 0.5]))
    inputs.update_joints(['shoulder'], [20], 10 * S + S // 20)  # Late for the elbow, not for it.
    np.testing.assert_array_equal(inputs.assemble(10 * S).state, np.float32([1, 20, 30, 4, 0.5]))
    inputs.update_joints(NAMES, [0] * 5, 2 * S)
    inputs.update_image('base_0_rgb', PICTURE, 2 * S)
    inputs.update_image('wrist_0_rgb', PICTURE, 2 * S)
    assert not inputs.assemble(2 * S).state.any()


def test_what_became_too_old_while_it_waited_is_refused(inputs):
    observation = inputs.assemble(10 * S)
    inputs.check_fresh(observation, 10 * S + S // 2)
    with pytest.raises(ObservationRefused,
                       match=r'stale observation: waited until it was 0.600 s old'):
        inputs.check_fresh(observation, 10 * S + 6 * S // 10)
    assert inputs.refusals == {'stale observation': 1}


def test_what_answers_a_withdrawn_instruction_is_refused(inputs):
    observation = inputs.assemble(10 * S)
    inputs.check_wanted(observation)
    with pytest.raises(ObservationRefused):
        inputs.update_instruction('')
    for check in (lambda: inputs.check_wanted(observation),
                  lambda: inputs.check_fresh(observation, 10 * S)):
        with pytest.raises(ObservationRefused, match='no instruction: withdrawn before'):
            check()
    inputs.update_instruction('touch the blue cube')
    with pytest.raises(ObservationRefused, match='old instruction: replaced before'):
        inputs.check_wanted(observation)
    inputs.update_instruction('touch the red cube')
    inputs.check_fresh(observation, 10 * S)
