"""What an emulated arm weighs: it falls, sinks and is held as a geared arm is. Virtual time."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.clock import VirtualClock
from edgevla.robots.emulator.motion import FALL_SPEED, FULL_ACCELERATION, Axis, GravityLoad, MotorModel
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import load_profile

DT_S = 0.002
SHOULDER = {"so101": "shoulder_lift", "aloha": "left_shoulder"}


def arm(name, **options):
    return EmulatedRobot(load_profile(name), VirtualClock(1_000_000_000), **options)


def pass_time(robot, seconds, every_ms=10):
    """Lets time pass; the true joint angles after every piece, (n, D)."""
    found = []
    for _ in range(round(seconds * 1000 / every_ms)):
        robot.clock.advance(every_ms * 1_000_000)
        robot.step(robot.clock.now_ns())
        found.append(robot.joint_rad())
    return np.array(found)


def joint(robot, motor):
    return [j.motor for j in robot.profile.joints].index(motor)


def limit(robot, share):
    """The torque limit of the host, on every servo."""
    for servo in robot.servos.values():
        _, hosts, full = servo.limits
        servo.put(hosts, round(share * full))


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_a_limp_arm_accelerates_and_lies_at_its_rest_in_the_end(name):
    robot = arm(name, gravity=0.3)
    k = joint(robot, SHOULDER[name])
    begun = robot.joint_rad()
    angles = np.vstack((begun, pass_time(robot, 4.0)))
    speed = np.abs(np.diff(angles[:, k])) / 0.01
    assert speed[0] < 0.2, "a fall begins slowly"
    assert speed[:3].tolist() == sorted(speed[:3])
    assert np.degrees(speed.max()) > 50
    assert speed.max() < 0.3 * FALL_SPEED * 2 * np.pi / 4096 * 1.01
    rest = robot.units.ticks(np.array([j.rest for j in robot.profile.joints]))
    motors = [j.motor for j in robot.profile.joints if not j.is_gripper]
    present = {m: robot.servos[m].present for m in motors}
    assert present == {m: rest[joint(robot, m)] for m in motors}
    assert np.ptp(pass_time(robot, 1.0)[:, k]) < 1e-9, "and stays there"


@pytest.mark.parametrize(("name", "still"), [
    ("so101", ("shoulder_pan", "wrist_roll", "gripper")),
    ("aloha", ("left_waist", "left_forearm_roll", "right_wrist_rotate", "right_gripper")),
])  # fmt: skip
def test_what_turns_about_the_vertical_does_not_fall_and_outer_joints_carry_less(name, still):
    robot = arm(name, gravity=0.3)
    assert all(robot.servos[motor].axis.weight is None for motor in still)
    shares = [s.axis.weight.share for s in robot.lines[robot.profile.buses[0].name].servos if s.axis.weight]
    assert shares == pytest.approx([0.3, 0.15, 0.075])


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_without_gravity_a_limp_arm_stays(name):
    robot = arm(name)
    begun = robot.joint_rad()
    assert (pass_time(robot, 0.5) == begun).all()


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_the_nearer_its_torque_limit_is_to_what_it_weighs_the_slower_an_arm_sinks(name):
    fastest = {}
    for share in (0.0, 0.1, 0.2, 0.25, 0.29):
        robot = arm(name, gravity=0.3, is_energised=True)
        limit(robot, share)
        k = joint(robot, SHOULDER[name])
        fastest[share] = np.abs(np.diff(pass_time(robot, 0.5)[:, k])).max() / 0.01
        assert fastest[share] == pytest.approx((0.3 - share) * FALL_SPEED * 2 * np.pi / 4096, rel=0.15)
    assert list(fastest.values()) == sorted(fastest.values(), reverse=True)
    robot = arm(name, gravity=0.3, is_energised=True)
    limit(robot, 0.31)
    assert np.ptp(pass_time(robot, 1.0), axis=0).max() == 0, "what it may pull is enough"


def test_an_arm_that_is_lowered_hangs_where_its_lever_is_short_enough():
    robot = arm("so101", gravity=0.3, is_energised=True)
    limit(robot, 0.15)
    pass_time(robot, 3.0)
    axis = robot.servos["shoulder_lift"].axis
    assert axis.asked == pytest.approx(0.15, abs=0.001)
    assert axis.position != axis.weight.rest
    assert axis.velocity == pytest.approx(0, abs=2)


def test_torque_that_comes_back_catches_a_falling_arm_without_a_jump():
    robot = arm("so101", gravity=0.3, is_energised=True)
    servo = robot.servos["shoulder_lift"]
    servo.put("torque_enable", 0)
    pass_time(robot, 0.2)
    falling = servo.axis.velocity
    assert falling < -500
    servo.hold()
    at = servo.axis.position
    servo.put("goal_position", servo.present)
    before = falling
    for _ in range(50):
        servo.step(DT_S)
        assert abs(servo.axis.velocity - before) <= 4 * FULL_ACCELERATION * DT_S
        before = servo.axis.velocity
    assert abs(servo.axis.position - at) < 60
    assert servo.axis.velocity == pytest.approx(0, abs=200)


def test_the_load_of_a_held_arm_is_what_it_weighs_and_points_up():
    robot = arm("so101", gravity=0.3, is_energised=True)
    pass_time(robot, 0.1)
    assert robot.servos["shoulder_lift"].axis.load == pytest.approx(0.3)  # rest is below: positive lifts
    assert robot.servos["elbow_flex"].axis.load == pytest.approx(-0.15)
    assert robot.servos["shoulder_pan"].axis.load == pytest.approx(0)


# ---- two servos on one joint ----


def test_of_a_pair_each_servo_gives_half():
    """0.6 of both: both hold it; one alone, with its half, does not, and what is missing makes it sink."""
    fastest = {}
    for off in ((), ("",), ("_shadow",), ("", "_shadow")):
        robot = arm("aloha", gravity=0.6, is_energised=True)
        for name in off:
            robot.servos[f"left_shoulder{name}"].put("torque_enable", 0)
        k = joint(robot, "left_shoulder")
        fastest[off] = np.abs(np.diff(pass_time(robot, 0.25, 2)[:, k])).max() / 0.002
    assert fastest[()] == 0
    assert fastest["",] == fastest["_shadow",] == pytest.approx(0.1 * FALL_SPEED * 2 * np.pi / 4096, rel=0.1)
    assert fastest["", "_shadow"] > 4 * fastest["",]


def test_a_pair_shares_the_load_and_both_of_it_say_the_same_tick():
    robot = arm("aloha", gravity=0.4, is_energised=True)
    pass_time(robot, 0.2)
    main, shadow = robot.servos["left_shoulder"], robot.servos["left_shoulder_shadow"]
    assert main.present == shadow.present
    assert main.axis.load == pytest.approx(shadow.axis.load)
    assert main.axis.load == pytest.approx(0.4)


def test_a_pair_with_two_goals_stands_between_them_and_heats():
    robot = arm("aloha", is_energised=True)
    main, shadow = robot.servos["left_shoulder"], robot.servos["left_shoulder_shadow"]
    at = main.present
    shadow.put("goal_position", at + 200)
    warm = main.axis.temperature_c
    pass_time(robot, 3.0)
    assert main.present == pytest.approx(at + 100, abs=1)
    assert main.axis.load == pytest.approx(-shadow.axis.load, abs=0.02)
    assert main.axis.load < -0.3
    assert main.axis.temperature_c > warm + 0.3


def test_a_shadow_alone_carries_its_joint_to_its_own_goal():
    robot = arm("aloha", is_energised=True)
    main, shadow = robot.servos["left_shoulder"], robot.servos["left_shoulder_shadow"]
    main.put("torque_enable", 0)
    shadow.put("goal_position", shadow.present + 150)
    begun = main.present
    pass_time(robot, 2.0)
    assert main.present == begun + 150


def test_a_weight_asks_nothing_at_rest_nor_beyond_it_and_all_of_it_from_45_degrees_on():
    weight = GravityLoad(0.5, rest=1000.0, up=-1)
    assert [weight.at(tick) for tick in (1000, 1200, 488, 100)] == pytest.approx([0, 0, 0.5, 0.5])
    assert 0 < weight.at(900) < weight.at(700) < 0.5


def test_a_servo_without_any_torque_limit_left_is_limp():
    axis = Axis(0.0, MotorModel())
    for _ in range(100):
        axis.drive(DT_S, 500 - axis.position, 0.0, 0.0, 0.0)
    assert axis.position == 0
