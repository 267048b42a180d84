"""From wanted to allowed: limits are relative to the last goal sent, every change has a reason, faults act in time."""

from dataclasses import dataclass

import numpy as np
import pytest

from edgevla.robots.profile import Limits
from edgevla.robots.safety import Level, Reason, SafetyFilter, Watch, limit, make_caps

DT_S = 0.01
LOW, HIGH = np.array([-100.0, 0.0], np.float32), np.array([100.0, 100.0], np.float32)
MAX_VELOCITY = np.array([200.0, 300.0], np.float32)
IS_GRIPPER = np.array([False, True])


def caps(trained=None):
    return make_caps(LOW, HIGH, MAX_VELOCITY, IS_GRIPPER, 0.25, trained)


def vector(*values):
    return np.array(values, np.float32)


def filter_at(*goal, trained=None):
    made = SafetyFilter(caps(trained), DT_S)
    made.begin(vector(*goal))
    return made


def test_an_allowed_goal_passes_untouched_and_without_a_reason():
    goal, bits = limit(vector(1.0, 50.5), vector(0.0, 50.0), caps(), MAX_VELOCITY, DT_S)
    np.testing.assert_array_equal(goal, [1.0, 50.5])
    assert not bits.any()


def test_a_step_is_limited_against_the_last_goal_sent_not_against_the_present_position():
    made = filter_at(0.0, 50.0)
    made.allow(vector(0.0, 50.0))
    steps = [made.allow(vector(90.0, 50.0))[0][0] for _ in range(3)]
    np.testing.assert_allclose(steps, [2.0, 4.0, 6.0], rtol=1e-5)  # 200 unit/s at 100 Hz, wherever the arm is


def test_limits_and_rate_each_have_their_bit():
    goal, bits = limit(vector(101.0, -5.0), vector(99.5, 0.0), caps(), MAX_VELOCITY, DT_S)
    assert (goal[0], goal[1]) == (100.0, 0.0)
    assert list(bits) == [Reason.LIMIT, Reason.LIMIT]
    _, bits = limit(vector(50.0, 0.0), vector(0.0, 0.0), caps(), MAX_VELOCITY, DT_S)
    assert list(bits) == [Reason.RATE, 0]


@pytest.mark.parametrize("bad", [vector(np.nan, 0.0), vector(0.0, np.inf), vector(1.0), np.zeros((2, 2))])
def test_what_is_not_finite_or_of_another_shape_holds_the_last_goal(bad):
    goal, bits = limit(bad, vector(3.0, 4.0), caps(), MAX_VELOCITY, DT_S)
    np.testing.assert_array_equal(goal, [3.0, 4.0])
    assert set(bits) == {int(Reason.NOT_FINITE)}


def test_training_narrows_the_speed_and_the_gripper_keeps_its_own():
    made = caps(trained=[40.0, 10.0])
    np.testing.assert_allclose(made.speed, [60.0, 300.0])  # 1.5 x 40; the gripper as the profile says
    np.testing.assert_allclose(
        caps(trained=[1000.0, 10.0]).speed, [200.0, 300.0]
    )  # never above the hard limit
    np.testing.assert_allclose(
        caps(trained=[0.0, 0.0]).speed[0], 10.0
    )  # a joint at rest in training may still move


def test_a_far_first_action_is_approached_slowly_then_at_full_speed():
    made = filter_at(0.0, 50.0)
    goal, bits = made.allow(vector(80.0, 50.0))
    assert goal[0] == pytest.approx(0.5)  # 0.25 x 200 unit/s
    assert bits[0] == Reason.SLOW_START
    for _ in range(200):
        goal, bits = made.allow(vector(80.0, 50.0))
    assert goal[0] == 80.0
    goal, bits = made.allow(vector(0.0, 50.0))  # arrived once: from now on the normal cap
    assert goal[0] == pytest.approx(78.0)
    assert bits[0] == Reason.RATE


def test_a_near_first_action_needs_no_slow_start():
    made = filter_at(0.0, 50.0)
    goal, bits = made.allow(vector(10.0, 50.0))
    assert goal[0] == pytest.approx(2.0)
    assert bits[0] == Reason.RATE


def test_no_wish_keeps_the_last_goal():
    made = filter_at(5.0, 6.0)
    goal, bits = made.allow(None)
    np.testing.assert_array_equal(goal, [5.0, 6.0])
    assert not bits.any()


def test_an_arm_found_outside_its_limits_comes_back_at_the_same_speed():
    goal, _ = limit(vector(0.0, 0.0), vector(120.0, 0.0), caps(), MAX_VELOCITY, DT_S)
    assert goal[0] == pytest.approx(118.0)


@dataclass
class Servo:
    name: str = "elbow"
    temperature_c: float | None = 40.0
    voltage_v: float | None = 7.4
    load_percent: float | None = 10.0
    torque_on: bool | None = True
    faults: tuple[str, ...] = ()
    is_gripper: bool = False
    cure: str = "free the joint, then switch the arm off and on"
    restart: str = "switch the arm off and on"


class Judge:
    """A watch over one elbow and one gripper, driven tick by tick."""

    def __init__(self):
        self.watch = Watch(Limits(), ["elbow", "gripper"], [False, True])
        self.now_ns = 0

    def look(self, ms=10, age_ms=(0, 0), position=(0.0, 0.0), goal=(0.0, 0.0), servo=None):
        self.now_ns += ms * 1_000_000
        ages = np.array(age_ms, np.uint32) * 1000
        servos = [servo or Servo()]
        found = self.watch.look(vector(*position), ages, vector(*goal), servos, self.now_ns, True, 10_000)
        return (found[0].level, found[0].code) if found else (Level.GO, "")

    def after(self, ms, **kwargs):
        for _ in range(ms // 10):
            last = self.look(**kwargs)
        return last


def test_three_ticks_without_a_value_hold_and_half_a_second_fails():
    judge = Judge()
    assert judge.look(age_ms=(12, 0)) == (Level.GO, "")
    assert judge.look(age_ms=(22, 0)) == (Level.GO, "")
    assert judge.look(age_ms=(32, 0)) == (Level.HOLD, "state_stale")
    assert judge.look(age_ms=(0, 0)) == (Level.GO, "")
    assert judge.look(age_ms=(501, 0)) == (Level.FAIL, "state_lost")


def test_a_blocked_joint_stops_after_its_time_and_a_gripping_gripper_does_not():
    judge = Judge()
    assert judge.after(900, position=(0.0, 0.0), goal=(40.0, 0.0)) == (Level.GO, "")
    assert judge.after(200, position=(0.0, 0.0), goal=(40.0, 0.0)) == (Level.STOP, "following_error")
    assert Judge().after(3000, position=(0.0, 60.0), goal=(0.0, 0.0)) == (Level.GO, "")


@pytest.mark.parametrize(
    ("servo", "ms", "expected"),
    [
        (Servo(temperature_c=61.0), 10, (Level.WARN, "warm")),
        (Servo(temperature_c=66.0), 10, (Level.STOP, "over_temperature")),
        (Servo(load_percent=-95.0), 900, (Level.GO, "")),
        (Servo(load_percent=-95.0), 1100, (Level.STOP, "overload")),
        (Servo(voltage_v=3.9), 100, (Level.GO, "")),
        (Servo(voltage_v=3.9), 300, (Level.STOP, "voltage")),
        (Servo(torque_on=False), 300, (Level.GO, "")),  # health is read servo by servo: it may be this old
        (Servo(torque_on=False), 600, (Level.STOP, "torque_lost")),
        (Servo(faults=("overload",)), 10, (Level.STOP, "servo_fault")),
        (Servo(faults=("overload",), is_gripper=True), 10, (Level.GO, "")),  # `GripRelief` judges it
        (Servo(faults=("over-temperature",), is_gripper=True), 10, (Level.STOP, "servo_fault")),
        (Servo(faults=("voltage",)), 10, (Level.WARN, "voltage_reported")),
        (Servo("elbow", None, None, None, None), 1000, (Level.GO, "")),
    ],
)
def test_heat_load_voltage_and_lost_torque_act_before_the_servo_does(servo, ms, expected):
    servo.name = "elbow"
    assert Judge().after(ms, servo=servo) == expected
