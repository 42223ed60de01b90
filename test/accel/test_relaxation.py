"""Relaxed acceptance keeps what it promises: bounded changes, by joint, never of a gripper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import idct

from ros_pi0_fast.accel.relaxation import Relaxation
from ros_pi0_fast.model.decode import Progress

HORIZON, JOINTS, GRIPPER, SCALE = 6, 3, 2, 10.0
SLOPES = np.array([0.5, 2.0, 1.0])
IDS = [*(chr(c).encode() for c in range(12)), b'ab', b'ac', b'\xc3', b'\xa9']
"""Single coefficients 0 … 11, two pairs, and the halves of a character of two bytes."""


def relaxation(tolerance):
    return Relaxation.build(IDS, horizon=HORIZON, scale=SCALE, slopes=SLOPES, grippers=[GRIPPER],
                            tolerance=tolerance)


def at(place, state=0):
    return Progress(state=jnp.asarray(state, jnp.int32),
                    remaining=jnp.asarray(HORIZON * JOINTS - place, jnp.int32))


def change(tables, proposed, own, progress):
    as_id = jnp.asarray([proposed, own], jnp.int32)
    return np.asarray(jax.jit(lambda a, b, p: tables.change(a, b, p))(*as_id, progress))


@pytest.mark.parametrize('place', range(HORIZON * JOINTS))
def test_the_bound_is_the_largest_change_of_an_action(place):
    frequency, joint = divmod(place, JOINTS)
    coefficients = np.zeros((HORIZON, JOINTS))
    coefficients[frequency, joint] = 3 / SCALE
    actions = idct(coefficients, axis=0, norm='ortho') * SLOPES
    found = change(relaxation(1.0), 7, 4, at(place))
    if joint == GRIPPER:
        assert np.isinf(found[GRIPPER])
        return
    np.testing.assert_allclose(found, np.abs(actions).max(axis=0), rtol=1e-6)


def test_ids_of_other_sizes_cannot_stand_for_one_another():
    tables = relaxation(100.0)
    assert np.all(np.isinf(change(tables, 12, 4, at(0))))  # Two coefficients for one.
    assert np.all(np.isinf(change(tables, 14, 4, at(0))))  # Half a character.
    assert np.all(np.isinf(change(tables, 5, 4, at(0, state=1))))  # Inside of one.
    assert np.all(change(tables, 4, 4, at(0)) == 0)
    np.testing.assert_allclose(change(tables, 12, 13, at(3))[[0, 2]], 0)  # The second of a pair.
    assert change(tables, 12, 13, at(3))[1] > 0


def accept(tolerance, choice, proposed, used=None):
    tables = relaxation(tolerance)
    progress = Progress(state=jnp.zeros((len(choice),), jnp.int32),
                        remaining=HORIZON * JOINTS - jnp.arange(len(choice), dtype=jnp.int32))
    count, used = jax.jit(lambda *arguments: tables.accept(*arguments))(
        jnp.asarray(choice, jnp.int32), jnp.asarray(proposed, jnp.int32),
        jnp.asarray([p >= 0 for p in proposed]), progress,
        tables.unused() if used is None else used)
    return int(count), np.asarray(used)


def test_a_tolerance_of_nothing_is_exact():
    assert accept(0.0, [1, 2, 3], [1, 2, 3])[0] == 3
    assert accept(0.0, [1, 2, 3], [1, 3, 3])[0] == 1
    assert accept(0.0, [1, 2, 3], [1, -1, 3])[0] == 1


def test_changes_of_a_chunk_add_up_to_the_tolerance_at_most():
    one = change(relaxation(1.0), 5, 4, at(0))[0]  # A step of joint 0's mean.
    count, used = accept(1.5 * one, [4, 4, 4, 4], [5, 4, 4, 4])
    assert count == 4 and used[0] == pytest.approx(one)
    # Joint 0 again, in its next coefficient, of which a step changes up to √2 times as much.
    assert accept(1.5 * one, [4, 4, 4, 4], [5, 4, 4, 5])[0] == 3
    assert accept(2.5 * one, [4, 4, 4, 4], [5, 4, 4, 5])[0] == 4
    assert accept(1.5 * one, [4], [5], used=jnp.asarray([one, 0.0, 0.0]))[0] == 0


def test_grippers_are_never_changed():
    assert accept(1e9, [4, 4, 4], [5, 5, 5])[0] == 2
