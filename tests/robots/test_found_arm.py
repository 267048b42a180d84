"""An arm as it is found: with torque on, or a joint outside its range. Nothing falls, nothing jumps, all is said."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from edgevla.errors import BusError
from edgevla.nodes.vitals import AT_ONCE
from edgevla.robots import handshake
from edgevla.robots.arm import Robot
from edgevla.robots.bus.port import SerialPort
from edgevla.robots.calibration import nominal
from edgevla.robots.node_process import open_robot
from edgevla.robots.profile import load_profile

BOTH = pytest.mark.parametrize("name", ["so101", "aloha"])
RETURN_DEG_S = 30


class Watched:
    """Follows the emulated joints on every step of the servos; rad and rad/s."""

    def __init__(self, made):
        self.made, self.fastest, self.torque = made, 0.0, []
        self._at, self._ns = made.emulated.joint_rad(), made.clock.now_ns()
        for line in made.emulated.lines.values():
            real = line.before_frame

            def look(now_ns, real=real):
                real(now_ns)
                self.look(now_ns)

            line.before_frame = look

    def look(self, now_ns):
        self.torque.append(sum(servo.torque_on for servo in self.made.emulated.servos.values()))
        if now_ns - self._ns < 10_000_000:
            return
        at = self.made.emulated.joint_rad()
        self.fastest = max(self.fastest, float(np.abs(at - self._at).max()) * 1e9 / (now_ns - self._ns))
        self._at, self._ns = at, now_ns


def said_while(made):
    """Sentences, each with the number of servos that had torque when it was said."""
    told = []
    made.robot._say = lambda text: told.append(
        (sum(s.torque_on for s in made.emulated.servos.values()), text)
    )
    return told


# ---- torque found on ----


@BOTH
def test_an_arm_found_with_torque_on_is_said_held_and_let_down_and_not_dropped(bench, name):
    """A deployment whose processes were all killed, and the next one."""
    made = bench(name, is_energised=True, gravity=0.3)
    told, watched = said_while(made), Watched(made)
    began = made.clock.now_ns()
    made.robot.connect()
    on, found = told[0]
    assert on == len(made.emulated.servos), "said before anything was switched off"
    assert found.startswith(f"{name}: torque was found on (all its servos)")
    assert "support it" in found
    assert told[1] == (0, f"{name}: the arm was let down; its torque is off")
    assert [text for _, text in told] == made.robot.warnings[:2], "it is kept for who asks later"
    assert np.rad2deg(watched.fastest) < 60, (
        "it sinks; released at once it falls with more than 100 degrees/s"
    )
    rule = made.profile.escalation
    assert (made.clock.now_ns() - began) / 1e6 > rule.hold_ms + rule.park_ms
    assert not any(servo.torque_on for servo in made.emulated.servos.values())
    assert made.robot.set_torque(True) == [], "and everything is as ever"


def test_the_same_arm_dropped_falls_faster(bench):
    """What the test above is about: its bound is not met by an arm that is just switched off."""
    made = bench("so101", is_energised=True, gravity=0.3)
    watched = Watched(made)
    made.robot.rescue.release()
    for _ in range(100):
        made.clock.advance(10_000_000)
        made.emulated.step(made.clock.now_ns())
        watched.look(made.clock.now_ns())
    assert np.rad2deg(watched.fastest) > 80


def test_the_goal_of_an_arm_found_moving_is_where_it_is(bench):
    made = bench("so101", is_energised=True)
    servo = made.servo("shoulder_pan")
    servo.put("goal_position", servo.present + 800)
    at = made.emulated.joint_rad()[0]
    made.robot.connect()
    assert abs(np.rad2deg(made.emulated.joint_rad()[0] - at)) < 5


def test_who_is_energised_is_known_without_a_change(bench):
    made = bench("so101")
    assert handshake.energised(made.robot.buses, made.profile) == []
    for name in ("elbow_flex", "gripper"):
        made.servo(name).put("torque_enable", 1)
    made.fault("mute", target="wrist_roll")
    sent = []
    made.emulated.lines["arm"].on_frame = lambda way, frame, _: sent.append(frame[4]) if way == "tx" else None
    assert handshake.energised(made.robot.buses, made.profile) == ["elbow_flex", "gripper"]
    assert set(sent) <= {2, 0x82}, "it only reads"


def test_a_few_energised_servos_are_named(bench):
    made = bench("so101")
    made.servo("elbow_flex").hold()
    made.robot.connect()
    assert "torque was found on (elbow_flex)" in made.robot.warnings[0]


def test_an_arm_that_is_found_on_and_then_refused_was_let_down_all_the_same(bench):
    made = bench("so101", is_energised=True, gravity=0.3)
    watched = Watched(made)
    made.fault("wrong_model", target="elbow_flex")
    with pytest.raises(BusError, match="the profile expects sts3215"):
        made.robot.connect()
    assert np.rad2deg(watched.fastest) < 60
    assert not any(servo.torque_on for servo in made.emulated.servos.values())


def test_a_profile_that_never_releases_refuses_an_arm_found_on_and_leaves_it_held(bench):
    made = bench("so101", is_energised=True, gravity=0.3)
    never = replace(made.profile, escalation=replace(made.profile.escalation, release=False))
    robot = Robot(never, made.emulated.memory_ports(), nominal(never), made.clock)
    at = made.emulated.joint_rad()
    with pytest.raises(
        BusError, match=r"torque was found on.*held where it is: support it, switch its power off"
    ):
        robot.connect()
    assert all(servo.torque_on for servo in made.emulated.servos.values())
    assert np.abs(made.emulated.joint_rad() - at).max() < 0.05


def test_torque_that_does_not_go_off_is_named(bench):
    made = bench("so101", is_energised=True)
    made.robot._say = lambda text: made.fault("mute", target="wrist_roll")
    with pytest.raises(
        BusError, match=r"could not be confirmed off on wrist_roll: switch the arm's power off"
    ):
        made.robot.connect()


def test_old_firmware_is_found_and_let_down_too(bench):
    made = bench("so101", is_energised=True, firmware=["no-sync-read"])
    made.robot.connect()
    assert "torque was found on (all its servos)" in made.robot.warnings[0]


def test_a_freeze_reaches_servos_whose_firmware_knows_no_sync_read(bench):
    made = bench("so101", is_energised=True, firmware=["no-sync-read"])
    for servo in made.emulated.servos.values():
        servo.put("goal_position", servo.present + 300)
    began = made.clock.now_ns()
    assert made.robot.rescue.freeze() == []
    assert made.clock.now_ns() - began < 150_000_000
    for servo in made.emulated.servos.values():
        assert abs(servo.get("goal_position") - servo.present) < 200


def test_a_freeze_gives_no_goal_to_a_servo_that_has_no_torque(bench):
    """Some firmware would switch it on by that."""
    made = bench("so101", is_energised=True, firmware=["goal-energises"])
    made.servo("wrist_flex").put("torque_enable", 0)
    assert made.robot.rescue.freeze() == []
    assert not made.servo("wrist_flex").torque_on
    assert made.servo("wrist_roll").torque_on


# ---- a joint outside its range ----


def outside(bench, motor, degrees, name="so101", **options):
    """A connected arm one of whose joints was pushed so far below its lower end."""
    made = bench(name, **options)
    made.robot.connect()
    servo = made.servo(motor)
    servo.axis.position += servo.get("min_position") - degrees * 4096 / 360 - servo.present
    made.emulated.step(made.clock.now_ns())
    for _ in range(3):  # a jump is believed when it is there twice
        made.tick()
    return made


def test_a_joint_far_outside_its_range_is_refused_torque_and_named(bench):
    made = outside(bench, "wrist_flex", 30)
    with pytest.raises(BusError, match="wrist_flex is 30 degrees outside its range: move it by hand"):
        made.robot.set_torque(True)
    assert not any(servo.torque_on for servo in made.emulated.servos.values())
    assert not made.robot.torque_on
    (found,) = made.robot.outside()
    assert (found.motor, found.index) == ("wrist_flex", 3)
    assert found.by == pytest.approx(30, abs=0.2)
    assert found.limit == pytest.approx(made.robot.limits()[0][3], abs=0.2)


def test_several_joints_are_all_named(bench):
    made = outside(bench, "wrist_flex", 30)
    servo = made.servo("gripper")
    servo.axis.position -= 400
    with pytest.raises(
        BusError, match=r"wrist_flex is 30 degrees .*, gripper is \d+ % of its range out.*move them"
    ):
        made.robot.set_torque(True)


def test_radians_are_said_in_radians(bench):
    made = outside(bench, "left_elbow", 30, name="aloha")
    with pytest.raises(BusError, match=r"left_elbow is 0\.52 rad outside its range"):
        made.robot.set_torque(True)


@pytest.mark.parametrize(("name", "motor", "speed"), [
    ("so101", "wrist_flex", "goal_velocity"), ("aloha", "left_wrist_angle", "profile_velocity"),
])  # fmt: skip
def test_a_joint_a_little_outside_comes_back_slowly_and_then_has_its_speed(bench, name, motor, speed):
    """It used to jump to the range's edge at more than 400 degrees/s."""
    made = outside(bench, motor, 8, name=name)
    watched = Watched(made)
    assert made.robot.set_torque(True) == []
    assert np.rad2deg(watched.fastest) < 1.3 * RETURN_DEG_S
    assert made.robot._reading is not None
    made.tick(made.robot.present_goal())
    assert not made.robot.outside()
    assert made.servo(motor).get(speed) == 0, "none, as it was"


def test_a_joint_that_cannot_come_back_is_not_waited_for_for_ever(bench):
    made = outside(bench, "wrist_flex", 8)
    made.servo("wrist_flex").axis.is_stuck = True
    began = made.clock.now_ns()
    made.robot.set_torque(True)
    assert made.clock.now_ns() - began < 1_000_000_000, "the guardian waits 2 s for it"
    assert made.servo("wrist_flex").get("goal_velocity") == 0


@BOTH
def test_the_goal_that_holds_a_joint_is_the_one_that_is_really_sent(bench, name):
    made = outside(bench, made_motor(name), 8, name=name)
    goal = made.robot.present_goal()
    low, high = made.robot.limits()
    assert ((goal >= low - 0.1) & (goal <= high + 0.1)).all()
    assert (made.robot.units.ticks(goal) == np.clip(made.robot.present_ticks(), made.robot.units.least,
                                                    made.robot.units.most)).all()  # fmt: skip


def made_motor(name):
    return "wrist_flex" if name == "so101" else "left_wrist_angle"


def test_limits_are_no_wider_than_what_the_servo_takes_by_itself(bench):
    """A Dynamixel refuses goals beyond its position limits, a Feetech clips them: neither is told so."""
    made = bench("aloha")
    settings = dict(made.profile.motor("left_waist").settings)
    assert settings["min_position"] == 0
    motors = tuple(
        replace(m, settings=tuple({**dict(m.settings), "min_position": 1500}.items())) if m.name == "left_waist" else m
        for m in made.profile.buses[0].motors
    )  # fmt: skip
    profile = replace(
        made.profile, buses=(replace(made.profile.buses[0], motors=motors), *made.profile.buses[1:])
    )
    robot = Robot(profile, made.emulated.memory_ports(), None, made.clock)
    robot.connect()
    assert robot.limits()[0][0] == pytest.approx((1500 - 2048) * 2 * np.pi / 4096, abs=0.002)
    assert robot.set_torque(True) == []
    goal = robot.present_goal()
    goal[0] = -3.0
    for _ in range(200):
        made.clock.advance(10_000_000)
        robot.exchange(goal, made.clock.now_ns() + 9_000_000)
    assert made.servo("left_waist").get("goal_position") == 1500, (
        "the goal is clipped here, not refused there"
    )


def test_whoever_starts_the_robot_node_is_told_while_it_happens(start_emulator, capfd):
    """On a real line: the sentence is on stderr, marked, before the node is ready."""
    emulator = start_emulator("so101", "--energised")
    profile = load_profile("so101")
    short = replace(profile, escalation=replace(profile.escalation, hold_ms=100, park_ms=300))
    port = SerialPort.open(emulator.ports["arm"], 1_000_000)
    robot = open_robot(short, [f"arm={os.dup(port.fileno())}={port.name}"], "nominal")
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith(AT_ONCE)]
    assert [text.removeprefix(AT_ONCE) for text in told] == robot.warnings[:2]
    assert "torque was found on" in told[0]
    robot.close()
    port.close()
