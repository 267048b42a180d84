"""Step by step: which share of torque a lowered arm has, by what its joints do."""

import pytest

from edgevla.robots.lowering import (
    CATCHING,
    FALLING_TICKS_S,
    FAST_TICKS_S,
    LONGEST_STEP_NS,
    LONGEST_TIMES,
    STEP_NS,
    STILL_NS,
    Lowering,
)
from edgevla.robots.profile import Escalation

RULE = Escalation(park_ms=4000, park_torque=0.4)
ONE = 0.4 * 50 / 4000
"""What one step takes away."""
T0 = 5_000_000_000
STILL = {"elbow": 2048}


class Arm:
    """One joint under one lowering; `after` so many ms it has moved by so many ticks."""

    def __init__(self, rule=RULE):
        self.now, self.tick = T0, 2048
        self.lowering = Lowering(rule, self.now)
        self.first = self.lowering.step(self.now, {"elbow": self.tick})

    def after(self, ms=50, moved=0):
        self.now += round(ms * 1e6)
        self.tick += moved
        return self.lowering.step(self.now, {"elbow": self.tick % 4096})


def test_the_numbers_are_what_they_were_measured_to_be():
    assert (STEP_NS, LONGEST_STEP_NS, STILL_NS) == (50_000_000, 100_000_000, 200_000_000)
    assert (FAST_TICKS_S, FALLING_TICKS_S, CATCHING, LONGEST_TIMES) == (284.0, 568.0, 4, 3)


def test_it_begins_at_once_with_the_profiles_share():
    arm = Arm()
    assert arm.first == 0.4
    assert not arm.lowering.is_over


def test_a_still_arm_gets_a_step_less_every_50_ms_and_nothing_in_between():
    arm = Arm()
    assert arm.after(49.999) is None
    assert arm.after(0.001) == pytest.approx(0.4 - ONE)
    assert arm.after() == pytest.approx(0.4 - 2 * ONE)


@pytest.mark.parametrize(("ms", "steps"), [(75, 1.5), (100, 2), (1000, 2)])
def test_whoever_was_held_up_does_not_make_up_for_more_than_two_steps(ms, steps):
    assert Arm().after(ms) == pytest.approx(0.4 - steps * ONE)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("moved", "change"), [(14, -1), (15, 0), (28, 0), (29, CATCHING)]
)  # ticks in 50 ms: 280, 300, 560 and 580 ticks/s
def test_a_sinking_arm_is_not_lowered_and_a_falling_one_is_caught(sign, moved, change):
    arm = Arm()
    for _ in range(20):
        share = arm.after()
    now = arm.after(moved=sign * moved)
    if change:
        assert now == pytest.approx(share + change * ONE)
    else:
        assert now is None


def test_exactly_the_fast_speed_is_not_fast_and_exactly_the_falling_one_not_falling():
    arm = Arm()
    arm.after()
    assert arm.after(250, moved=71) is not None  # 284 ticks/s
    arm = Arm()
    arm.after()
    assert arm.after(250, moved=142) is None  # 568 ticks/s


def test_a_caught_arm_never_gets_more_than_the_share_it_began_with():
    arm = Arm()
    arm.after()
    assert arm.after(moved=300) == pytest.approx(0.4)
    assert arm.after(moved=300) is None


def test_the_fastest_joint_counts_and_a_joint_that_is_not_read_is_not_waited_for():
    lowering = Lowering(RULE, T0)
    lowering.step(T0, {"a": 100, "b": 200})
    assert lowering.step(T0 + STEP_NS, {"a": 100, "b": 220}) is None
    assert lowering.step(T0 + 2 * STEP_NS, {"a": 100}) == pytest.approx(0.4 - ONE)
    # b again, over the two steps since it was read: 20 ticks in 100 ms are slow
    assert lowering.step(T0 + 3 * STEP_NS, {"b": 240}) == pytest.approx(0.4 - 2 * ONE)


def test_a_joint_that_was_never_read_before_has_no_speed():
    lowering = Lowering(RULE, T0)
    lowering.step(T0, {})
    assert lowering.step(T0 + STEP_NS, {"a": 3000}) == pytest.approx(0.4 - ONE)


def test_the_way_over_the_zero_of_a_turn_is_short():
    lowering = Lowering(RULE, T0)
    lowering.step(T0, {"a": 4094})
    assert lowering.step(T0 + STEP_NS, {"a": 2}) == pytest.approx(0.4 - ONE)
    assert lowering.step(T0 + 2 * STEP_NS, {"a": 4093}) == pytest.approx(0.4 - 2 * ONE)


def to_zero(arm):
    for n in range(1, 200):
        if arm.after() == 0.0:
            return n
    raise AssertionError("it never comes to zero")


@pytest.mark.parametrize("torque", [0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("steps", [6, 10, 50, 80])
def test_it_comes_to_exactly_zero_in_the_profiles_time(torque, steps):
    """What rounding leaves is nothing, and no step of its own."""
    assert to_zero(Arm(Escalation(park_ms=50 * steps, park_torque=torque))) == steps


def test_it_is_over_when_nothing_has_moved_for_four_steps_without_torque():
    arm = Arm()
    to_zero(arm)
    seen = []
    for _ in range(4):
        seen.append((arm.after(), arm.lowering.is_over))
    assert seen == [(None, False)] * 3 + [(None, True)]
    assert arm.after(moved=300) is None, "it is over"


def test_an_arm_that_falls_without_torque_is_caught_and_waited_for():
    arm = Arm()
    to_zero(arm)
    for _ in range(3):
        arm.after()
    assert arm.after(moved=40) == pytest.approx(CATCHING * ONE)
    assert not arm.lowering.is_over


def test_an_arm_that_sinks_without_torque_is_waited_for():
    arm = Arm()
    to_zero(arm)
    for _ in range(20):
        assert arm.after(moved=20) is None
        assert not arm.lowering.is_over
    for _ in range(3):
        arm.after()
        assert not arm.lowering.is_over
    arm.after()
    assert arm.lowering.is_over


def test_after_three_times_the_profiles_time_it_is_over_whatever_moves():
    arm = Arm()
    last = None
    while arm.now - T0 < 3 * 4_000_000_000 - STEP_NS:
        last = arm.after(moved=20)
        assert not arm.lowering.is_over
    assert last is None
    assert arm.after(moved=20) == 0.0
    assert arm.lowering.is_over
    assert arm.after() is None


def test_a_profile_without_any_torque_to_lower_at_is_over_at_once():
    arm = Arm(Escalation(park_ms=4000, park_torque=0.0))
    assert arm.first == 0.0
    assert arm.lowering.is_over


def test_two_reads_at_the_same_moment_divide_by_no_zero():
    lowering = Lowering(RULE, T0)
    assert lowering._fastest(T0, STILL) == 0.0
    lowering._seen["elbow"] = (2047, T0)
    assert lowering._fastest(T0, STILL) == 1e9
