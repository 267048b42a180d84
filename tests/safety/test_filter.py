"""What may be sent: every bound of `limit` and of the filter's memory, exactly."""

import numpy as np
import pytest

from edgevla.robots.safety import (
    CLIPPING,
    LEAST_SHARE,
    SLOW_START_FROM_S,
    TRAINED_SPEED_MARGIN,
    Caps,
    Reason,
    SafetyFilter,
    limit,
    make_caps,
)


def vector(*values):
    return np.array(values, np.float32)


CAPS = Caps(vector(-100, 0), vector(100, 100), vector(200, 300), vector(50, 75))


def filter_at(*goal):
    made = SafetyFilter(CAPS, 0.01)
    made.begin(vector(*goal))
    return made


@pytest.mark.parametrize(
    ("beyond", "is_clipped"), [(0.0, False), (0.0015, False), (0.01, True), (0.1, True), (1.9, True)]
)
def test_less_than_a_thousandth_of_a_step_is_rounding_and_more_is_clipping(beyond, is_clipped):
    """A step here is 2 units."""
    _, bits = limit(vector(2.0 + beyond, 0), vector(0, 0), CAPS, CAPS.speed, 0.01)
    assert list(bits) == [Reason.RATE if is_clipped else 0, 0]


def test_a_step_of_no_length_is_clipping_beyond_a_millionth():
    still = vector(0, 0)
    assert list(limit(vector(1e-7, 0), still, CAPS, still, 0.01)[1]) == [0, 0]
    goal, bits = limit(vector(0.001, 0), still, CAPS, still, 0.01)
    assert list(bits) == [Reason.RATE, 0]
    assert goal[0] == 0


def test_the_way_back_is_as_long_as_the_way_out():
    goal, bits = limit(vector(-90, 50), vector(0, 53.0), CAPS, CAPS.speed, 0.01)
    np.testing.assert_allclose(goal, [-2.0, 50.0], rtol=1e-6)
    assert list(bits) == [Reason.RATE, 0]
    assert goal.dtype == np.float32


def test_both_reasons_are_told_of_a_joint_with_both():
    _, bits = limit(vector(200, 50), vector(0, 50), CAPS, CAPS.speed, 0.01)
    assert list(bits) == [Reason.LIMIT | Reason.RATE, 0]


def test_what_is_counted_as_clipping_is_limit_and_speed():
    assert CLIPPING == Reason.LIMIT | Reason.RATE == 6


def test_what_is_refused_is_a_copy_of_the_last_goal():
    last = vector(3, 4)
    goal, bits = limit(vector(np.nan, 0), last, CAPS, CAPS.speed, 0.01)
    goal[:] = 99
    assert list(last) == [3, 4]
    assert list(bits) == [Reason.NOT_FINITE] * 2


def test_slow_is_the_share_of_the_profile_and_never_faster_than_training():
    high = vector(100, 100)
    made = make_caps(-high, high, vector(200, 400), np.array([False, False]), 0.25, vector(20, 1000))
    np.testing.assert_allclose(made.speed, [20 * TRAINED_SPEED_MARGIN, 400])
    np.testing.assert_allclose(made.slow_speed, [30, 100])
    plain = make_caps(-high, high, vector(200, 400), np.array([False, True]), 0.25)
    np.testing.assert_allclose(plain.speed, [200, 400])
    least = make_caps(-high, high, vector(200, 400), np.array([False, True]), 0.25, vector(0, 0))
    np.testing.assert_allclose(least.speed, [200 * LEAST_SHARE, 400])
    assert (TRAINED_SPEED_MARGIN, LEAST_SHARE, SLOW_START_FROM_S) == (1.5, 0.05, 0.25)


def test_the_filter_needs_a_first_goal_and_keeps_its_own_copy():
    made = SafetyFilter(CAPS, 0.01)
    assert made.last_goal is None
    assert made.is_approaching
    first = vector(1, 2)
    made.begin(first)
    first[:] = 99
    assert list(made.last_goal) == [1, 2]


@pytest.mark.parametrize(("far", "is_slow"), [(50.0, False), (50.5, True)])
def test_a_first_goal_within_a_quarter_second_is_near(far, is_slow):
    made = filter_at(0, 50)
    goal, bits = made.allow(vector(far, 50))
    assert goal[0] == pytest.approx(0.5 if is_slow else 2.0)
    assert bits[0] == (Reason.SLOW_START if is_slow else Reason.RATE)
    assert made.is_approaching is is_slow


def test_one_far_joint_makes_the_whole_first_way_slow():
    goal, _ = filter_at(0, 0).allow(vector(1.5, 100))
    np.testing.assert_allclose(goal, [0.5, 0.75])


def test_the_slow_way_ends_when_every_joint_has_arrived_and_not_before():
    made = filter_at(0, 50)
    for _ in range(159):
        made.allow(vector(80, 50))
        assert made.is_approaching
    for _ in range(2):
        made.allow(vector(80, 50))
    assert made.last_goal[0] == 80
    assert not made.is_approaching


def test_homing_is_slow_whatever_the_distance_and_leaves_no_slowness_behind():
    made = filter_at(0, 50)
    made.allow(vector(1, 50))
    goal, bits = made.allow(vector(40, 50), is_slow=True)
    assert goal[0] == pytest.approx(1.5)
    assert bits[0] == Reason.SLOW_START
    assert not made.is_approaching
    goal, bits = made.allow(vector(40, 50))
    assert goal[0] == pytest.approx(3.5)
    assert bits[0] == Reason.RATE


def test_a_slow_goal_outside_the_limits_still_says_so():
    _, bits = filter_at(0, 50).allow(vector(300, 50))
    assert list(bits) == [Reason.LIMIT | Reason.SLOW_START, 0]


def test_a_limit_that_is_reached_slowly_is_not_called_slow():
    made = filter_at(99.9, 50)
    made.allow(vector(99.9, 50))
    _, bits = made.allow(vector(101, 50), is_slow=True)
    assert list(bits) == [Reason.LIMIT, 0]


def test_a_goal_of_another_shape_is_not_the_first_one():
    made = filter_at(0, 50)
    _, bits = made.allow(vector(1, 2, 3))
    assert set(bits) == {Reason.NOT_FINITE}
    goal, bits = made.allow(vector(90, 50))
    assert goal[0] == pytest.approx(0.5)
    assert bits[0] == Reason.SLOW_START


def test_no_wish_is_no_first_goal():
    made = filter_at(0, 50)
    goal, bits = made.allow(None)
    assert list(goal) == [0, 50]
    assert list(bits) == [0, 0]
    assert made.is_approaching
