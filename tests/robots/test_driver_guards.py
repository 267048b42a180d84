"""The driver's public calls guard themselves: what is no goal, no share or no motor moves nothing."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.errors import UsageError
from edgevla.robots.arm import Robot

BAD = [np.nan, np.inf, -np.inf]


def running(bench, name="so101"):
    made = bench(name)
    made.robot.connect()
    assert made.robot.set_torque(True) == []
    made.tick(made.robot.present_goal())
    return made


def goals(made):
    return [servo.get("goal_position") for servo in made.emulated.servos.values()]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_a_goal_that_is_no_number_is_refused_and_the_arm_keeps_its_last_one(bench, name, bad):
    """Every joint went to its lower limit."""
    made = running(bench, name)
    held, goal = goals(made), made.robot.present_goal()
    goal[2] = bad
    joint = made.profile.joints[2].name
    with pytest.raises(UsageError, match=rf"{joint} is {bad}; nothing was sent, the arm keeps its last goal"):
        made.tick(goal)
    assert goals(made) == held
    assert made.robot.counters()["goals_refused"] == 1
    assert made.tick(made.robot.present_goal()).n_stale == 0, "and goes on with the next that is one"


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros(7), np.zeros((6, 1)), 3.0, [], "home", {"a": 1}])
def test_a_goal_of_another_shape_is_refused_with_what_it_should_be(bench, bad):
    made = running(bench)
    held = goals(made)
    with pytest.raises(UsageError, match=r"is 6 numbers \(shoulder_pan.pos, .*nothing was sent"):
        made.tick(bad)
    assert goals(made) == held


def test_a_list_of_numbers_is_a_goal(bench):
    made = running(bench)
    goal = [float(v) for v in made.robot.present_goal()]
    assert made.tick(goal).n_stale == 0


@pytest.mark.parametrize("huge", [1e9, 1e30, -1e30])
def test_a_goal_beyond_all_integers_goes_to_the_end_that_it_is_beyond(bench, huge):
    """Past 2^63 it wrapped, and went to the other end."""
    made = running(bench)
    goal = made.robot.present_goal()
    goal[0], goal[5] = huge, huge
    made.tick(goal)
    end = 1 if huge > 0 else 0
    for joint in (0, 5):
        servo = made.servo(made.profile.joints[joint].motor)
        assert servo.get("goal_position") == (servo.get("min_position"), servo.get("max_position"))[end]


@pytest.mark.parametrize("bad", [-0.1, 1.01, 40, np.nan])
def test_a_torque_limit_is_a_share(bench, bad):
    made = running(bench)
    with pytest.raises(UsageError, match="a torque limit is a share of 0 to 1"):
        made.robot.set_torque_limit(bad)
    assert made.servo("elbow_flex").get("torque_limit") == 1000


def test_an_arm_that_is_not_connected_takes_no_goal(bench):
    made = bench("so101")
    robot = Robot(made.profile, made.emulated.memory_ports(), None, made.clock)
    for call in (robot.present_goal, robot.limits, robot.outside, lambda: robot.set_torque(True)):
        with pytest.raises(UsageError, match="so101 is not connected yet"):
            call()
    assert not any(servo.torque_on for servo in made.emulated.servos.values())
