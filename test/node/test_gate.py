"""What is no whole, finite chunk in the limits of the robot does not leave."""

import dataclasses

import numpy as np
import pytest

from ros_pi0_fast.node.gate import release
from ros_pi0_fast.types import ActionChunk


def chunk(**changes):
    actions = np.full((10, 5), 0.5, np.float32)
    for place, value in changes.items():
        step, index = map(int, place[1:].split('_'))
        actions[step, index] = value
    return ActionChunk(actions=actions, valid=True, stamp_ns=7)


def refused(released):
    assert not released.chunk.valid and not released.clamped
    assert released.chunk.actions.shape == (0, 5) and released.chunk.stamp_ns == 7
    return released.chunk.reason


def test_what_is_right_leaves_as_it_is(tabletop_profile):
    released = release(chunk(), tabletop_profile, 'clamp')
    assert released.chunk.valid and not released.over_limits
    np.testing.assert_array_equal(released.chunk.actions, chunk().actions)


def test_actions_beyond_the_limits_are_clamped_and_flagged(tabletop_profile):
    released = release(chunk(a3_2=9, a4_0=-1.7), tabletop_profile, 'clamp')
    assert released.chunk.valid and released.clamped and released.over_limits
    np.testing.assert_array_equal(
        released.chunk.actions, chunk(a3_2=2.7, a4_0=-1.6).actions)


def test_or_refused_naming_the_worst(tabletop_profile):
    released = release(chunk(a3_2=9, a4_0=-1.7), tabletop_profile, 'refuse')
    assert released.over_limits
    assert refused(released) == (
        'over limits: elbow is 9 in step 3, expected -0.1 to 2.7 (action_limits)')


def test_a_robot_without_limits_gets_what_the_model_says(tabletop_profile):
    free = dataclasses.replace(tabletop_profile, actions=dataclasses.replace(
        tabletop_profile.actions, limits=None))
    released = release(chunk(a3_2=9), free, 'refuse')
    assert released.chunk.valid and released.chunk.actions[3, 2] == 9


@pytest.mark.parametrize('action_limits', ['clamp', 'refuse'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_leave(tabletop_profile, value, action_limits):
    assert refused(release(chunk(a9_4=value), tabletop_profile, action_limits)).startswith(
        'not finite: ')


def test_nor_what_a_float32_cannot_hold(tabletop_profile):
    actions = chunk().actions.astype(np.float64)
    actions[0, 0] = 1e39
    assert refused(release(dataclasses.replace(chunk(), actions=actions), tabletop_profile,
                           'clamp')).startswith('not finite: ')


def test_nor_chunks_of_another_shape(tabletop_profile):
    assert refused(release(dataclasses.replace(chunk(), actions=np.zeros((9, 5), np.float32)),
                           tabletop_profile, 'clamp')) == (
        'wrong shape: found (9, 5) actions, expected (10, 5)')


def test_nor_the_actions_of_a_chunk_that_is_not_valid(tabletop_profile):
    bad = dataclasses.replace(chunk(), valid=False, reason='malformed: cut off')
    assert refused(release(bad, tabletop_profile, 'clamp')) == 'malformed: cut off'
