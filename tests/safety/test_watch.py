"""What is measured is judged in time: how long each condition may hold, to the millisecond, whatever the clock says."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from edgevla.robots.profile import Limits
from edgevla.robots.safety import TORQUE_LOST_MS, Level, Reason, Watch, measured

MS = 1_000_000
LATE = 86_400_000 * MS
"""A clock that has run for a day: no rule may depend on when it began."""
LIMITS = Limits()


@dataclass(frozen=True)
class Servo:
    name: str = "elbow"
    temperature_c: float | None = 40.0
    voltage_v: float | None = 7.4
    load_percent: float | None = 10.0
    torque_on: bool | None = True
    faults: tuple[str, ...] = ()
    is_gripper: bool = False
    cure: str = "free the joint"
    restart: str = "switch the arm off and on"


class Judge:
    def __init__(self, names=("elbow", "gripper"), grippers=(False, True), limits=LIMITS):
        self.watch = Watch(limits, names, grippers, lambda silent: f"silent: {silent.tolist()}")
        self.n = len(names)

    def at(self, ms, servo=None, ages_ms=None, position=None, goal=None, torque=True):
        ages = np.array([0] * self.n if ages_ms is None else ages_ms) * 1000
        nothing = np.zeros(self.n, np.float32)
        position = nothing if position is None else np.array(position, np.float32)
        goal = nothing if goal is None else np.array(goal, np.float32)
        servos = [] if servo is None else [servo]
        return self.watch.look(position, ages, goal, servos, LATE + round(ms * MS), torque, 10_000)


def code(findings):
    return findings[0].code if findings else ""


LASTING = [
    (Servo(load_percent=-90.0), LIMITS.overload_ms, "overload"),
    (Servo(load_percent=90.0), LIMITS.overload_ms, "overload"),
    (Servo(voltage_v=4.49), LIMITS.voltage_ms, "voltage"),
    (Servo(voltage_v=14.01), LIMITS.voltage_ms, "voltage"),
    (Servo(torque_on=False), TORQUE_LOST_MS, "torque_lost"),
]


@pytest.mark.parametrize(("servo", "lasts_ms", "what"), LASTING)
def test_what_may_last_a_while_stops_at_its_end_and_not_a_millisecond_before(servo, lasts_ms, what):
    judge = Judge()
    assert judge.at(0, servo) == []
    assert judge.at(lasts_ms - 0.001, servo) == []
    found = judge.at(lasts_ms, servo)
    assert [(f.code, f.level) for f in found] == [(what, Level.STOP)]


@pytest.mark.parametrize(("servo", "lasts_ms", "what"), LASTING)
def test_what_was_over_meanwhile_counts_from_its_new_beginning(servo, lasts_ms, what):
    judge = Judge()
    judge.at(0, servo)
    judge.at(lasts_ms - 1, Servo())
    judge.at(lasts_ms, servo)
    assert judge.at(2 * lasts_ms - 1, servo) == []
    assert code(judge.at(2 * lasts_ms, servo)) == what


def test_each_servos_time_is_its_own():
    judge = Judge()
    judge.at(0, Servo(load_percent=95.0))
    judge.at(500, replace(Servo(load_percent=95.0), name="wrist"))
    judge.at(999, Servo(load_percent=95.0))
    assert judge.at(1100, replace(Servo(load_percent=95.0), name="wrist")) == []
    assert code(judge.at(1100, Servo(load_percent=95.0))) == "overload"


@pytest.mark.parametrize(
    "servo",
    [
        Servo(load_percent=89.99),
        Servo(voltage_v=4.5),
        Servo(voltage_v=14.0),
        Servo(temperature_c=59.99),
        Servo(torque_on=None),
        Servo("elbow", None, None, None, None),
        Servo(faults=("voltage",), voltage_v=None),
        Servo(faults=("overload", "over-current"), is_gripper=True),
        Servo(faults=("overload", "voltage"), is_gripper=True, voltage_v=None),
    ],
)
def test_what_is_within_its_limit_or_not_known_is_never_told(servo):
    judge = Judge()
    assert [f for ms in range(0, 5000, 500) for f in judge.at(ms, servo)] == []


@pytest.mark.parametrize(
    ("servo", "level", "what"),
    [
        (Servo(temperature_c=60.0), Level.WARN, "warm"),
        (Servo(temperature_c=64.99), Level.WARN, "warm"),
        (Servo(temperature_c=65.0), Level.STOP, "over_temperature"),
        (Servo(temperature_c=65.0, faults=("overload",)), Level.STOP, "over_temperature"),
        (Servo(faults=("overload",)), Level.STOP, "servo_fault"),
        (Servo(faults=("overload", "over-temperature"), is_gripper=True), Level.STOP, "servo_fault"),
        (Servo(faults=("voltage",)), Level.WARN, "voltage_reported"),
        (Servo(faults=("voltage",), temperature_c=61.0), Level.WARN, "voltage_reported"),
    ],
)
def test_some_things_are_told_at_once(servo, level, what):
    assert [(f.level, f.code) for f in Judge().at(0, servo)] == [(level, what)]


def test_a_servo_without_torque_is_no_loss_while_torque_is_off():
    judge = Judge()
    assert [judge.at(ms, Servo(torque_on=False), torque=False) for ms in (0, 1000, 2000)] == [[], [], []]


@pytest.mark.parametrize("ages_ms", [(10, 0), (0, 10)])
def test_an_age_of_one_tick_is_no_miss(ages_ms):
    judge = Judge()
    assert [judge.at(10 * n, ages_ms=ages_ms) for n in range(10)] == [[]] * 10


def test_three_misses_in_a_row_hold_and_two_do_not():
    judge = Judge()
    found = [
        code(judge.at(10 * n, ages_ms=(age, 0))) for n, age in enumerate((11, 21, 0, 11, 21, 31, 41, 0, 11))
    ]
    assert found == ["", "", "", "", "", "state_stale", "state_stale", "", ""]


@pytest.mark.parametrize(
    ("age_ms", "what", "level"),
    [
        (100, "", Level.GO),
        (100.001, "state_stale", Level.HOLD),
        (500, "state_stale", Level.HOLD),
        (500.001, "state_lost", Level.FAIL),
    ],
)
def test_the_age_of_a_position_holds_and_then_fails(age_ms, what, level):
    found = Judge().at(0, ages_ms=(0, age_ms))
    assert (code(found), found[0].level if found else Level.GO) == (what, level)
    if found:
        assert list(found[0].bits) == [0, Reason.STALE]
        assert found[0].bits.dtype == np.uint16


def test_the_oldest_joint_is_told_and_the_silent_ones_are_named():
    (found,) = Judge(("a", "b", "c"), (False,) * 3).at(0, ages_ms=(600, 0, 700))
    assert found.text.startswith("no position of a, c for 700 ms; silent: [True, False, True]")
    (found,) = Judge(("a", "b"), (False,) * 2).at(0, ages_ms=(120, 110))
    assert found.text == "no new position of any joint for 120 ms"
    (found,) = Watch(LIMITS, ["a"], [False]).look(
        np.zeros(1), np.array([600_000]), None, [], 0, False, 10_000
    )
    assert found.text == "no position of any joint for 600 ms; . The arm is held, parked and released"


def test_a_joint_that_does_not_follow_stops_after_its_time():
    judge = Judge()
    assert judge.at(0, goal=(25.1, 0)) == []
    assert judge.at(999.999, goal=(25.1, 0)) == []
    (found,) = judge.at(1000, goal=(25.1, 0))
    assert (found.code, found.level) == ("following_error", Level.STOP)
    assert list(found.bits) == [Reason.FOLLOWING, 0]
    assert found.bits.dtype == np.uint16
    assert "elbow is 25 from its goal" in found.text


@pytest.mark.parametrize(
    "more",
    [
        {"goal": (25.0, 0)},
        {"goal": (-25.0, 0)},
        {"goal": (0, 90)},  # a gripper's error is its grip
        {"goal": (90, 0), "ages_ms": (100, 0)},  # not known where it is
        {"goal": (90, 0), "torque": False},
        {"goal": (90, 0), "position": (80, 0)},
    ],
)
def test_no_error_that_means_nothing_stops(more):
    judge = Judge()
    found = [f.code for ms in (0, 1000, 2000) for f in judge.at(ms, **more)]
    assert "following_error" not in found


def test_a_position_of_50_ms_ago_is_known_well_enough_to_be_off():
    judge = Judge()
    judge.at(0, goal=(90, 0), ages_ms=(50, 0))
    found = judge.at(1000, goal=(90, 0), ages_ms=(50, 0))
    assert "following_error" in [f.code for f in found]


def test_a_limit_without_patience_stops_at_once_and_only_what_is_beyond_it():
    limits = replace(LIMITS, overload_ms=0, voltage_ms=0, following_ms=0)
    assert Judge(limits=limits).at(0, Servo()) == []
    assert code(Judge(limits=limits).at(0, Servo(load_percent=95.0))) == "overload"
    assert code(Judge(limits=limits).at(0, Servo(voltage_v=2.0))) == "voltage"
    assert code(Judge(limits=limits).at(0, goal=(90, 0))) == "following_error"


def test_the_error_of_the_second_joint_stops_too():
    judge = Judge(("a", "b"), (False, False))
    judge.at(0, goal=(0, -30))
    (found,) = judge.at(1000, goal=(0, -30))
    assert list(found.bits) == [0, Reason.FOLLOWING]


def test_where_nothing_is_sent_nothing_need_follow():
    judge = Judge()
    ages = np.zeros(2)
    for ms in (0, 2000):
        found = judge.watch.look(np.full(2, 90.0), ages, None, [], LATE + ms * MS, True, 10_000)
        assert found == []


def test_the_gravest_is_told_first():
    found = Judge().at(0, Servo(temperature_c=70.0), ages_ms=(600, 0))
    assert [f.level for f in found] == [Level.FAIL, Level.STOP]
    found = Judge().at(0, Servo(temperature_c=61.0), ages_ms=(200, 0))
    assert [f.level for f in found] == [Level.HOLD, Level.WARN]


def test_the_sentences_say_what_was_measured_and_the_limit():
    assert "servo elbow has 66 degC (limit 65)" in Judge().at(0, Servo(temperature_c=66.0))[0].text
    assert (
        "servo elbow reports overload; free the joint" in Judge().at(0, Servo(faults=("overload",)))[0].text
    )
    judge = Judge()
    judge.at(0, Servo(load_percent=-95.0))
    assert "pushes with 95 % for 1000 ms (limit 90 %)" in judge.at(1000, Servo(load_percent=-95.0))[0].text


def test_what_is_measured_of_a_servo_is_said_as_far_as_it_is_known():
    assert measured(Servo(load_percent=-52.0, temperature_c=41.0)) == " (load 52 %, 41 degC)"
    assert measured(Servo(load_percent=None)) == " (40 degC)"
    assert measured(Servo(temperature_c=None)) == " (load 10 %)"
    assert measured(Servo(load_percent=None, temperature_c=None)) == ""
