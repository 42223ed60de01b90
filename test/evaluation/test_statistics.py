"""Intervals of success rates."""

import pytest

from ros_pi0_fast.evaluation.statistics import rate_line, wilson_interval


@pytest.mark.parametrize(('successes', 'trials', 'low', 'high'), [
    # Wilson, without continuity correction: Newcombe, Statistics in Medicine 17 (1998), table I.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718)])
def test_published_intervals(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_all_or_nothing_mirror_each_other():
    low, high = wilson_interval(50, 50)
    assert high == pytest.approx(1.0)
    assert wilson_interval(0, 50) == pytest.approx((0.0, 1 - low), abs=1e-12)


@pytest.mark.parametrize(('successes', 'trials'), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f'{successes} successes of {trials} trials: expected'):
        wilson_interval(successes, trials)


def test_a_line_says_rate_interval_and_counts():
    assert rate_line('reach', 190, 200) == 'reach 95.0 % [91.0, 97.3] 190/200'
