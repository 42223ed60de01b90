"""Drafting never loses: its length follows measured costs and what was accepted."""

import numpy as np
import pytest

from ros_pi0_fast.accel.draft_length import (
    LENGTHS,
    RETRY,
    DraftLength,
    acceptance_of,
    expected_ids,
)

PASS_MS = {0: 1.0, 1: 1.1, 2: 1.2, 4: 1.4, 8: 1.8}
IDS = 24


@pytest.mark.parametrize('length', LENGTHS)
def test_acceptance_is_found_from_what_was_accepted(length):
    for acceptance in (0.0, 0.3, 0.9, 1.0):
        accepted = expected_ids(acceptance, length) - 1
        assert acceptance_of(accepted, length) == pytest.approx(acceptance, abs=1e-6)
    assert expected_ids(1.0, length) == length + 1


def drive(chunks, acceptance, costs=PASS_MS):
    """Return the lengths chosen and the time taken, of chunks that go as expected."""
    rng = np.random.default_rng(0)
    decide, chosen, total = DraftLength((0, *LENGTHS)), [], 0.0
    for length, ms in costs.items():
        decide.calibrate(length, ms)
    for _ in range(chunks):
        length = decide.choose()
        passes, ids, accepted = 0, 0, 0
        while ids < IDS:
            right = int(np.cumprod(rng.random(length) < acceptance).sum()) if length else 0
            passes, ids, accepted = passes + 1, ids + right + 1, accepted + right
        decide.record(length, passes=passes, accepted=accepted, ms=passes * costs[length])
        chosen.append(length)
        total += passes * costs[length]
    return chosen, total


def test_a_drafter_that_is_always_wrong_is_given_up_and_tried_again():
    chosen, total = drive(300, 0.0)
    assert chosen[0] > 0 and not any(chosen[20:RETRY])
    tries = [i for i, length in enumerate(chosen) if i >= 20 and length]
    assert tries and np.all(np.diff(tries) >= RETRY)
    without = 300 * IDS * PASS_MS[0]
    assert total < 1.05 * without


def test_a_middling_drafter_that_costs_more_than_it_brings_is_given_up_at_once():
    costs = {0: 0.19, 1: 0.33, 2: 0.40, 4: 0.60, 8: 1.00}  # The head's, on two cores.
    for acceptance in (0.4, 0.5, 0.6):
        chosen, total = drive(128, acceptance, costs)
        assert sum(map(bool, chosen[:RETRY])) <= 3
        assert total < 1.03 * 128 * IDS * costs[0], acceptance


def test_a_good_drafter_is_used_for_long_guesses():
    chosen, total = drive(100, 0.95)
    assert set(chosen[20:]) == {8} and total < 0.45 * 100 * IDS


def test_what_costs_too_much_is_not_drafted_whatever_is_accepted():
    chosen, _ = drive(60, 0.9, costs={0: 1.0, **dict.fromkeys(LENGTHS, 20.0)})
    assert not any(chosen)


def test_a_middling_drafter_gets_a_middling_length():
    chosen, total = drive(200, 0.6)
    assert set(chosen[50:]) <= {1, 2, 4} and total < 200 * IDS


def test_a_length_that_was_asked_for_is_kept():
    decide = DraftLength((4,))
    decide.record(4, passes=20, accepted=0, ms=1e6)
    assert decide.choose() == 4
