"""A gripper that pushes too hard is let go a little, once: where to, for how long, and when it ends the run."""

from dataclasses import dataclass

import numpy as np
import pytest

from edgevla.robots.grip import RELIEF_SHARE, STILL_MS, GripRelief
from edgevla.robots.profile import load_profile
from edgevla.robots.safety import Level, Reason

MS = 1_000_000
T0 = 9_000 * MS
JOINTS = load_profile("so101").joints
D, K = len(JOINTS), len(JOINTS) - 1
LOW, HIGH = np.full(D, -100.0), np.full(D, 100.0)
LITTLE = 200 * RELIEF_SHARE


@dataclass
class Servo:
    name: str = "gripper"
    faults: tuple[str, ...] = ("overload",)
    torque_on: bool | None = True
    load_percent: float | None = 80.0
    temperature_c: float | None = 41.0
    voltage_v: float | None = 7.4
    cure: str = ""
    restart: str = "switch the arm off and on"
    is_gripper: bool = True


def at(value):
    pose = np.zeros(D, np.float32)
    pose[K] = value
    return pose


class Gripper:
    """Stands at 50, told to go to `goal`."""

    def __init__(self, goal=0.0, present=50.0):
        self.relief, self.goal, self.present, self.now = GripRelief(JOINTS, LOW, HIGH), goal, present, T0

    def look(self, ms=0, goal=None, **servo):
        self.now += round(ms * MS)
        goal = self.goal if goal is None else goal
        found = self.relief.look([Servo(**servo)], at(goal), at(self.present), self.now)
        return [(f.level, f.code) for f in found]

    def bend(self, wanted, last=0.0):
        goal, bits = self.relief.bend(None if wanted is None else at(wanted), at(last))
        return goal[K], bits[K]


RELIEVED, ENDED = [(Level.WARN, "gripper_relieved")], [(Level.STOP, "gripper_overload")]


def test_it_is_let_go_by_two_hundredths_of_its_range_and_given_a_second():
    assert (RELIEF_SHARE, STILL_MS) == (0.02, 1000)


@pytest.mark.parametrize(
    ("goal", "held_at"), [(0.0, 50 - LITTLE), (100.0, 50 + LITTLE), (49.0, 49.0), (51.5, 51.5)]
)
def test_it_holds_where_it_is_lightly_in_the_direction_in_which_it_pushed(goal, held_at):
    gripper = Gripper(goal)
    assert gripper.look() == RELIEVED
    assert gripper.bend(goal) == (pytest.approx(held_at), Reason.SERVO)


def test_the_range_is_as_long_whichever_end_is_the_low_one():
    relief = GripRelief(JOINTS, HIGH, LOW)
    relief.look([Servo()], at(0.0), at(50.0), T0)
    assert relief.bend(at(0.0), at(0.0))[0][K] == pytest.approx(50 - LITTLE)


def test_it_stays_there_until_the_policy_opens_it():
    gripper = Gripper(0.0)
    gripper.look()
    assert gripper.bend(10.0) == (pytest.approx(46.0), Reason.SERVO)
    assert gripper.bend(46.0) == (pytest.approx(46.0), Reason.SERVO), "as light as it is"
    assert gripper.bend(46.5) == (46.5, 0)
    assert gripper.bend(0.0) == (0.0, 0), "that relief is over"


def test_a_gripper_that_pushed_outwards_is_opened_the_other_way():
    gripper = Gripper(100.0)
    gripper.look()
    assert gripper.bend(60.0) == (54.0, Reason.SERVO)
    assert gripper.bend(53.0) == (53.0, 0)


def test_no_wish_keeps_it_where_it_is_held():
    gripper = Gripper(0.0)
    gripper.look()
    assert gripper.bend(None, last=0.0) == (46.0, Reason.SERVO)


def test_the_other_joints_go_where_they_are_wanted_and_the_wish_is_not_changed():
    gripper = Gripper(0.0)
    gripper.look()
    wanted = np.arange(D, dtype=np.float32)
    bent, bits = gripper.relief.bend(wanted, at(0.0))
    assert list(bent[:K]) == list(range(K))
    assert list(bits[:K]) == [0] * K
    assert wanted[K] == K


def test_without_a_relief_every_wish_passes():
    relief = GripRelief(JOINTS, LOW, HIGH)
    wanted = at(3.0)
    bent, bits = relief.bend(wanted, at(0.0))
    assert bent is wanted
    assert not bits.any()
    assert relief.bend(None, at(0.0))[0] is None


def test_a_wish_of_another_size_is_left_to_the_filter():
    gripper = Gripper(0.0)
    gripper.look()
    wanted = np.zeros(3, np.float32)
    bent, bits = gripper.relief.bend(wanted, at(0.0))
    assert bent is wanted
    assert not bits.any()
    assert len(bits) == D


def test_a_report_that_does_not_go_away_in_a_second_ends_the_run():
    gripper = Gripper()
    gripper.look()
    assert gripper.look(1000) == []
    assert gripper.look(0.001) == ENDED


def test_a_report_that_comes_back_ends_the_run_at_once():
    gripper = Gripper()
    gripper.look()
    assert gripper.relief.arrived(at(46.0)) == ["gripper"]
    assert gripper.look(10, faults=()) == []
    assert gripper.look(10) == ENDED


def test_a_report_that_goes_before_the_gripper_is_there_is_not_yet_cleared():
    gripper = Gripper()
    gripper.look()
    assert gripper.look(10, faults=()) == []
    assert gripper.look(10) == []


def test_a_report_that_comes_back_after_an_opening_is_a_new_one():
    gripper = Gripper()
    gripper.look()
    gripper.relief.arrived(at(46.0))
    gripper.look(10, faults=())
    gripper.bend(60.0)
    assert gripper.look(5000) == RELIEVED


def test_a_gripper_that_switched_its_torque_off_ends_the_run():
    assert Gripper().look(torque_on=False) == ENDED
    assert Gripper().look(torque_on=None) == RELIEVED


@pytest.mark.parametrize(
    "faults", [(), ("voltage",), ("over-temperature",), ("overload", "over-temperature")]
)
def test_what_is_no_push_is_left_to_the_watch(faults):
    gripper = Gripper()
    assert gripper.look(faults=faults) == []
    assert gripper.bend(0.0) == (0.0, 0)


@pytest.mark.parametrize("wanted", [60.0, 40.0])
def test_a_gripper_that_reported_where_its_goal_was_can_be_moved_again(wanted):
    """Found against something when torque came on: it was never let go of again."""
    gripper = Gripper(goal=50.0)
    assert gripper.look() == RELIEVED
    assert gripper.bend(50.0) == (50.0, Reason.SERVO)
    assert gripper.bend(wanted) == (wanted, 0)
    assert gripper.bend(0.0) == (0.0, 0)


@pytest.mark.parametrize("faults", [("overload",), ("over-current", "voltage"), ("overload", "over-current")])
def test_a_push_by_whatever_name_is_relieved(faults):
    assert Gripper().look(faults=faults) == RELIEVED


def test_no_other_joint_is_let_go():
    assert Gripper().look(name="elbow_flex") == []
    assert Gripper().look(name="unknown") == []


def test_its_torque_is_renewed_once_when_the_goal_has_come_back():
    gripper = Gripper()
    relief = gripper.relief
    assert relief.arrived(at(46.0)) == []
    gripper.look()
    assert relief.arrived(at(46.002)) == []
    assert relief.arrived(at(46.0)) == ["gripper"]
    assert relief.arrived(at(46.0)) == []


def test_a_new_start_forgets():
    gripper = Gripper()
    gripper.look()
    gripper.relief.forget()
    assert gripper.bend(0.0) == (0.0, 0)


def test_what_it_says_has_the_numbers():
    (found,) = GripRelief(JOINTS, LOW, HIGH).look([Servo()], at(0.0), at(50.0), T0)
    assert "gripper reports overload (load 80 %, 41 degC) at 50.0, told to go to 0.0" in found.text
    assert "holds lightly at 46.0" in found.text
    gripper = Gripper()
    gripper.look()
    (found,) = gripper.relief.look([Servo()], at(0.0), at(50.0), T0 + 1001 * MS)
    assert "still, although its goal was taken back to 46.0" in found.text
    gripper.relief.arrived(at(46.0))
    gripper.look(0, faults=())
    (found,) = gripper.relief.look([Servo()], at(0.0), at(50.0), T0)
    assert "again, although" in found.text
