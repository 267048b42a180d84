"""What changes behind the driver's back in a run is found and named: a servo that has lost its power for a moment, and
is never energised unattended; a register that nobody here wrote; another master on the line."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.errors import BusError, UsageError
from edgevla.robots.bus.report import CHANGED, RESTARTED, SHARED
from edgevla.robots.health import HEALTH_PERIOD_NS

FIRMWARE = pytest.mark.parametrize("firmware", [(), ("goal-energises",)])


def running(bench, name="so101", **options):
    made = bench(name, **options)
    made.robot.connect()
    assert made.robot.set_torque(True) == []
    for _ in range(10):
        made.tick(made.robot.present_goal())
    return made


def found_after(made, motor, goal, ticks=100, what=RESTARTED):
    """ms until it is concluded of the servo; None when it never was."""
    began = made.clock.now_ns()
    for _ in range(ticks):
        made.tick(goal)
        health = {s.name: s for s in made.robot.health()}[motor]
        if what in health.faults:
            return (made.clock.now_ns() - began) / 1e6
    return None


@FIRMWARE
@pytest.mark.parametrize(("name", "motor"), [("so101", "elbow_flex"), ("so101", "gripper"), ("aloha", "left_elbow"),
                                             ("aloha", "left_elbow_shadow")])  # fmt: skip
def test_a_restart_is_found_within_0_4_s_whatever_the_firmware(bench, name, motor, firmware):
    made = running(bench, name, firmware=firmware if name == "so101" else ())
    goal = made.robot.present_goal()
    made.fault("brownout", target=motor)
    assert found_after(made, motor, goal) < 400 + 60, "60 ms of which it boots"
    health = {s.name: s for s in made.robot.health()}
    assert health[motor].has_restarted
    assert "look after its power supply" in health[motor].cure
    assert [s.name for s in made.robot.health() if s.has_restarted] == [motor]


@FIRMWARE
def test_it_never_has_torque_again_by_itself_not_even_for_a_moment(bench, firmware):
    """Firmware that energises on a goal had it back within 50 ms, and the run went on."""
    made = running(bench, firmware=firmware)
    servo, goal = made.servo("elbow_flex"), made.robot.present_goal()
    made.fault("brownout", target="elbow_flex")
    for _ in range(300):
        made.tick(goal)
        made.robot.renew_torque("elbow_flex")
        assert not servo.torque_on
    assert made.servo("wrist_flex").torque_on, "the others hold"


def test_a_blink_too_short_to_miss_an_answer_is_found_by_what_was_forgotten(bench):
    made = running(bench, firmware=["goal-energises"])
    servo, goal = made.servo("elbow_flex"), made.robot.present_goal()
    made.fault("brownout", target="elbow_flex")
    servo.boot_ns = 0  # it answers at once
    assert found_after(made, "elbow_flex", goal) <= 400
    written = servo.get("goal_position")
    goal[2] += 10
    for _ in range(20):
        made.tick(goal)
    assert servo.get("goal_position") == written, "it gets no goals any more"
    assert made.servo("wrist_flex").torque_on


def test_only_a_restart_is_one(bench):
    """Neither lost answers, nor a pause of the host, nor its own switching of torque and watchdogs."""
    for name in ("so101", "aloha"):
        made = running(bench, name)
        goal = made.robot.present_goal()
        made.fault("drop", probability=0.1)
        for _ in range(100):
            made.tick(goal)
        made.clock.advance(45_000_000_000)
        made.emulated.step(made.clock.now_ns())
        for on in (False, True, False):
            made.robot.set_torque(on)
            for _ in range(50):
                made.tick(goal)
        assert not any(s.has_restarted for s in made.robot.health())


def test_a_silent_servo_gets_no_goals_and_the_others_do(bench):
    made = running(bench)
    goal = made.robot.present_goal()
    made.fault("drop", target="elbow_flex", probability=1.0)
    goal += 1
    made.tick(goal)
    written = made.servo("elbow_flex").get("goal_position")
    for _ in range(5):
        goal += 1
        made.tick(goal)
    assert made.servo("elbow_flex").get("goal_position") == written, (
        "what was on its way before it was silent"
    )
    assert made.servo("wrist_flex").get("goal_position") == made.robot.units.ticks(goal)[3]
    made.fault("clear")
    for _ in range(3):
        made.tick(goal)
    assert made.servo("elbow_flex").get("goal_position") == made.robot.units.ticks(goal)[2], "it is back"


@pytest.mark.parametrize(("name", "hz", "adapter"), [
    ("so101", 120, "none"), ("so101", 30, "cdc"), ("aloha", 50, "ftdi1"), ("so101", 36, "ftdi16"),
    ("aloha", 30, "ftdi16"),
])  # fmt: skip
def test_every_servo_s_health_is_read_every_0_4_s(bench, name, hz, adapter):
    made = running(bench, name, adapter=adapter)
    period_ns, last, worst = int(1e9 / hz), {}, 0
    health = next(iter(made.robot._lines)).health
    taken = health.take

    def take(servo_id, values, now_ns):
        nonlocal worst
        worst = max(worst, now_ns - last.get(servo_id, now_ns))
        last[servo_id] = now_ns
        taken(servo_id, values, now_ns)

    health.take = take
    goal = made.robot.present_goal()
    for _ in range(3 * hz):
        made.clock.sleep_until((made.clock.now_ns() // period_ns + 1) * period_ns)
        made.robot.exchange(goal, made.clock.now_ns() + int(0.75 * period_ns))
    assert len(last) == len(made.profile.buses[0].motors)
    assert worst <= HEALTH_PERIOD_NS + period_ns


def test_a_start_that_a_person_asks_for_sets_it_up_again(bench):
    made = running(bench)
    goal = made.robot.present_goal()
    made.fault("brownout", target="elbow_flex")
    assert found_after(made, "elbow_flex", goal) is not None
    made.robot.set_torque(False)
    assert made.robot.set_torque(True) == []
    assert made.servo("elbow_flex").get("acceleration") == 254
    assert not any(s.has_restarted for s in made.robot.health())
    goal = made.robot.present_goal()
    goal[2] += 15
    for _ in range(100):
        made.tick(goal)
    assert np.abs(made.robot.present_goal() - goal).max() < 1


def test_torque_is_renewed_of_a_motor_that_is_there(bench):
    made = running(bench)
    with pytest.raises(UsageError, match="so101 has no motor 'elbow'"):
        made.robot.renew_torque("elbow")


# ---- somebody else ----


@pytest.mark.parametrize(("name", "motor", "register", "value"), [
    ("so101", "elbow_flex", "torque_enable", 0), ("so101", "elbow_flex", "torque_limit", 250),
    ("so101", "gripper", "acceleration", 5), ("so101", "elbow_flex", "lock", 0),
    ("aloha", "left_elbow", "torque_enable", 0), ("aloha", "left_elbow", "goal_pwm", 250),
])  # fmt: skip
def test_a_register_that_nobody_here_wrote_is_said_as_that(bench, name, motor, register, value):
    """`brown-out, overload or heat` it was, or nothing at all."""
    made = running(bench, name)
    goal = made.robot.present_goal()
    made.servo(motor).put(register, value)
    assert found_after(made, motor, goal, what=CHANGED) < 450
    health = {s.name: s for s in made.robot.health()}[motor]
    assert health.faults == ("was changed by itself or by another program",)
    assert health.cure.startswith(f"{register} is {value}, not ")
    assert "close whatever else talks to this arm" in health.cure
    assert [s.name for s in made.robot.health() if s.faults] == [motor]


def test_what_a_servo_switches_off_for_a_fault_of_its_own_is_not_blamed_on_others(bench):
    made = running(bench, "aloha")
    goal = made.robot.present_goal()
    made.fault("trip", target="left_elbow")
    for _ in range(100):
        made.tick(goal)
    health = {s.name: s for s in made.robot.health()}["left_elbow"]
    assert health.torque_on is False
    assert health.faults == ("overload",)


def test_what_is_written_here_is_no_change_even_when_a_write_is_lost(bench):
    for name in ("so101", "aloha"):
        made = running(bench, name)
        goal = made.robot.present_goal()
        deaf = made.servo(made.profile.joints[2].motor)
        for k, share in enumerate((0.9, 0.4, 0.1, 1.0)):
            deaf.is_mute = k == 1
            made.robot.set_torque_limit(share)
            deaf.is_mute = False
            for _ in range(50):
                made.tick(goal)
        made.robot.set_torque(False)
        for _ in range(50):
            made.tick(None)
        assert not any(s.concluded for s in made.robot.health())


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_another_master_on_the_line_is_said_in_a_run_and_refused_at_a_start(bench, name):
    made = running(bench, name)
    goal = made.robot.present_goal()
    made.fault("foreign", probability=0.2)
    for _ in range(200):
        made.tick(goal)
    first = made.robot.health()[0]
    assert first.faults == (SHARED,)
    assert "LeRobot, the vendor's tool" in first.cure
    made = bench(name)
    made.fault("foreign", probability=0.2)
    with pytest.raises(
        BusError, match="another program talks to the servos on this line; close whatever else"
    ):
        made.robot.connect()


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_a_bad_line_is_not_another_master(bench, name):
    made = running(bench, name)
    goal = made.robot.present_goal()
    for kind in ("drop", "corrupt", "truncate", "noise", "duplicate", "wrong_id", "delay"):
        made.fault(kind, probability=0.1, amount=12.0)
    for _ in range(400):
        made.tick(goal)
    assert not any(bus.is_shared for bus in made.robot.buses.values())
    made = bench(name)
    made.fault("echo")
    made.robot.connect()
    assert not any(bus.is_shared for bus in made.robot.buses.values())
