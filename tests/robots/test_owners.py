"""What the owner of a servo has set stays his, and what no run can work with is set right or named, at connecting."""

from __future__ import annotations

import re

import pytest

from edgevla.errors import BusError
from edgevla.robots import handshake
from edgevla.robots.bus.report import ServoReport
from edgevla.robots.safety import Watch

BOTH = pytest.mark.parametrize("name", ["so101", "aloha"])
LIMITS = {"so101": ("torque_limit", "max_torque", 1000), "aloha": ("goal_pwm", "pwm_limit", 885)}


def connected(bench, name="so101", **options):
    made = bench(name, **options)
    made.robot.connect()
    return made


# ---- torque limits ----


@BOTH
def test_a_lower_torque_limit_of_the_owner_holds_in_the_run_while_parked_and_after_it(bench, name):
    """It used to be overruled: 1000 in the run and after it."""
    made = bench(name)
    motor = made.profile.joints[2].motor
    made.fault("weak", target=motor, amount=30)
    register, own, full = LIMITS[name]
    servo, allowed = made.servo(motor), round(0.3 * full)
    made.robot.connect()
    seen = {servo.get(register)}
    assert made.robot.set_torque(True) == []
    seen.add(servo.get(register))
    made.robot.set_torque_limit(1.0)
    seen.add(servo.get(register))
    made.robot.rescue.park()
    assert servo.get(register) == pytest.approx(0.4 * allowed, abs=1)
    made.robot.set_torque(False)
    seen.add(servo.get(register))
    assert seen == {allowed}
    assert servo.get(own) == allowed
    assert any(f"{own}" in w and f"{motor} 30%" in w for w in made.robot.warnings)


@BOTH
def test_the_guardian_who_has_never_connected_keeps_to_it_too(bench, name):
    from edgevla.robots.rescue import Rescue

    made = bench(name, is_energised=True)
    motor = made.profile.joints[2].motor
    made.fault("weak", target=motor, amount=30)
    rescue = Rescue(made.profile, made.emulated.memory_ports(), made.clock)
    rescue.limit_torque(1.0)
    register, _, full = LIMITS[name]
    assert made.servo(motor).get(register) == round(0.3 * full)
    made.servo(motor).put(register, 1)
    assert rescue.release() == []
    assert made.servo(motor).get(register) == round(0.3 * full)


def test_where_a_profile_limits_a_servo_the_lower_of_both_holds_and_is_said(bench):
    made = bench("so101")
    gripper = made.servo("gripper")
    gripper.put("max_torque", 300)
    gripper.put("protection_current", 900)
    made.robot.connect()
    held = {name: gripper.get(name) for name in ("max_torque", "torque_limit", "protection_current")}
    assert held == {"max_torque": 300, "torque_limit": 300, "protection_current": 250}
    (said,) = [w for w in made.robot.warnings if "max_torque" in w]
    assert "gripper: the servo's own max_torque (16) = 300 is lower than the profile's and stays" in said
    made.robot.set_torque(True)
    made.robot.set_torque_limit(1.0)
    assert gripper.get("torque_limit") == 300


def test_a_goal_current_never_exceeds_the_owner_s_limit(bench):
    """A Dynamixel refuses it, and connecting failed."""
    made = bench("aloha")
    made.servo("left_gripper").put("current_limit", 150)
    made.robot.connect()
    assert made.servo("left_gripper").get("current_limit") == 150
    assert made.servo("left_gripper").get("goal_current") == 150
    assert any("left_gripper: the servo's own current_limit (38) = 150" in w for w in made.robot.warnings)


# ---- answers ----


@pytest.mark.parametrize("motors", [("elbow_flex",), ("shoulder_pan", "elbow_flex", "gripper")])
def test_a_feetech_that_acknowledges_no_writes_learns_to_and_it_is_said(bench, motors):
    """`did not answer WRITE ...: check the cables` it was."""
    made = bench("so101")
    for motor in motors:
        made.fault("quiet", target=motor)
    began = made.clock.now_ns()
    made.robot.connect()
    assert made.clock.now_ns() - began < 1_500_000_000
    assert all(servo.get("response_level") == 1 for servo in made.emulated.servos.values())
    assert all(servo.get("lock") == 1 for servo in made.emulated.servos.values())
    (said,) = [w for w in made.robot.warnings if "response_level" in w]
    assert all(motor in said for motor in motors)
    made.fault("brownout")
    assert made.servo("elbow_flex").get("response_level") == 1, "it is in flash"
    assert made.robot.set_torque(False) == []


@pytest.mark.parametrize("level", [0, 1])
def test_a_dynamixel_of_a_lower_return_level_answers_from_the_first_word_on(bench, level):
    made = bench("aloha")
    made.fault("quiet", amount=level)
    made.robot.connect()
    assert all(servo.get("response_level") == 2 for servo in made.emulated.servos.values())
    assert made.robot.set_torque(True) == []


def test_a_quiet_arm_that_is_found_with_torque_on_is_let_down_as_any_other(bench):
    made = bench("so101", is_energised=True)
    made.fault("quiet")
    made.robot.connect()
    assert not any(servo.torque_on for servo in made.emulated.servos.values())


# ---- phase ----


def test_phase_bits_that_lerobot_s_convention_needs_are_set(bench):
    """Multi-turn feedback off, speeds in ticks/s, and speed 0 is the fastest: else the arm never moves."""
    made = bench("so101")
    made.servo("wrist_roll").put("phase", 12 | 0x10)
    made.servo("elbow_flex").put("phase", 4)
    made.servo("wrist_flex").put("phase", 8)
    made.robot.connect()
    assert made.servo("wrist_roll").get("phase") == 12
    assert made.servo("wrist_flex").get("phase") == 12
    assert made.servo("elbow_flex").get("phase") == 12


@pytest.mark.parametrize("bits", [0x01, 0x80, 0x81])
def test_a_servo_that_is_turned_round_is_refused_and_calibrating_sets_it_right(bench, bits):
    """One of both bits alone makes it run away from its goal."""
    made = bench("so101")
    made.servo("elbow_flex").put("phase", 12 | bits)
    with pytest.raises(
        BusError, match=r"motor 3 \(elbow_flex.*phase \(18\) is \d+, its bits 0 and 7 must be 0"
    ):
        made.robot.connect()
    line = made.robot.buses["arm"]
    handshake.write_differing(line, 3, line.to_calibrate(3, 0))
    assert made.servo("elbow_flex").get("phase") == 12
    made.robot.connect()


# ---- shadows ----


def test_shadows_that_tremble_by_a_tick_cost_no_eeprom_at_a_second_start(bench):
    made = bench("aloha")
    made.fault("jitter")
    made.robot.connect()
    offsets = {n: s.get("homing_offset") for n, s in made.emulated.servos.items() if n.endswith("shadow")}
    sent = []
    for line in made.emulated.lines.values():
        line.on_frame = lambda way, frame, _: sent.append(frame) if way == "tx" else None
    for _ in range(5):
        made.robot.connect()
        made.robot.set_torque(True)
        made.robot.set_torque(False)
    writes = [f for f in sent if f[7] == 3 and f[8] | f[9] << 8 < 64]
    assert writes == []
    assert {
        n: s.get("homing_offset") for n, s in made.emulated.servos.items() if n.endswith("shadow")
    } == offsets
    assert all(abs(offset + 6) <= 2 for offset in offsets.values())


def test_an_offset_that_does_not_move_the_position_did_not_take(bench):
    made = connected(bench)
    servo = made.servo("elbow_flex")
    line = made.robot.buses["arm"]
    assert handshake.write_differing(line, 3, {"homing_offset": 300}) == ["homing_offset"]
    real = type(servo).present
    try:
        type(servo).present = property(lambda self: 2000)
        with pytest.raises(
            BusError, match=r"has not moved by 300 ticks \(it was 2000, it is 2000\).*did not take"
        ):
            handshake.write_differing(line, 3, {"homing_offset": 0})
    finally:
        type(servo).present = real


def test_a_shadow_whose_offset_has_no_effect_is_refused(bench):
    made = bench("aloha")
    shadow = made.servo("left_elbow_shadow")
    real = type(shadow).present
    try:
        type(shadow).present = property(
            lambda self: real.fget(self) - (self.get("homing_offset") if self is shadow else 0)
        )
        with pytest.raises(
            BusError, match=r"left_elbow \(4\) and left_elbow_shadow \(5\).*still differ by -6 ticks"
        ):
            made.robot.connect()
    finally:
        type(shadow).present = real


# ---- watchdogs ----


def test_a_watchdog_that_was_not_taken_is_said_and_so_is_firmware_without(bench):
    made = bench("aloha")
    made.servo("left_elbow").burn("firmware", 36)
    made.robot.connect()
    assert any("left_elbow, XM540-W270) have no bus watchdog (firmware 38" in w for w in made.robot.warnings)
    assert made.robot.set_torque(True) == []
    assert made.servo("left_elbow").get("bus_watchdog") == 0
    assert made.servo("left_waist").get("bus_watchdog") == 10
    assert not any("did not take" in w for w in made.robot.warnings)
    deaf = made.servo("right_waist")
    store = deaf.store
    deaf.store = lambda address, data: store(address, b"\0" if address == 98 else data)
    made.robot.set_torque(False)
    assert made.robot.set_torque(True) == []
    assert any("right_waist, XM540-W270) did not take the bus watchdog" in w for w in made.robot.warnings)


# ---- what servos say ----


@pytest.mark.parametrize(("model", "raw", "load", "current_ma"), [
    ("xl330-m288", 875, 50.0, 875.0), ("xm430-w350", 1193, 100.0, 3209.17), ("xl430-w250", 400, 40.0, None),
    ("xc430-w150", -400, -40.0, None), ("xc330-t288", 455, 50.0, 455.0), ("xm540-w270", 2047, 100.0, 5506.43),
])  # fmt: skip
def test_a_current_is_what_this_model_means_by_it(bench, model, raw, load, current_ma):
    bus = bench("aloha").robot.buses["left"]
    bus.model_of = {1: model}
    report = bus.report(1, {"present_current": raw})
    assert report.load_percent == pytest.approx(load)
    assert report.current_ma == (None if current_ma is None else pytest.approx(current_ma, abs=0.1))


CURES = [
    (
        "so101",
        "voltage",
        "elbow_flex",
        r"reports voltage",
        r"it measures 7\.4 V, the servo allows 4\.0 to 14\.0 V: use",
    ),
    (
        "so101",
        "overheat",
        "elbow_flex",
        r"reports over-temp",
        r"it has 3\d degC, its limit is 70: let it cool down",
    ),
    (
        "so101",
        "sensor",
        "elbow_flex",
        r"reports angle sensor",
        r"its position sensor fails.*replace .*, then switch",
    ),
    (
        "so101",
        "overload",
        "elbow_flex",
        r"reports overload",
        r"free the joint, then switch the arm off and on",
    ),
    (
        "aloha",
        "overheat",
        "left_elbow",
        r"reports over-temp",
        r"it has 3\d degC, its limit is 80: .*then reboot it",
    ),
    (
        "aloha",
        "overcurrent",
        "left_elbow",
        r"reports electrical shock",
        r".*look for a damaged cable.*then reboot it",
    ),
]


@pytest.mark.parametrize(("name", "kind", "motor", "fault", "cure"), CURES)
def test_the_cure_fits_the_fault_with_value_and_limit(bench, name, kind, motor, fault, cure):
    """`free the joint, then switch off and on` it was, whatever the fault."""
    made = bench(name)
    made.fault(kind, target=motor)
    with pytest.raises(BusError, match=f"{fault}.*; {cure}"):
        made.robot.connect()
    made = connected(bench, name)
    made.robot.set_torque(True)
    made.fault(kind, target=motor)
    for _ in range(60):
        made.tick(made.robot.present_goal())
    health = {s.name: s for s in made.robot.health()}[motor]
    found = Watch(made.profile.limits, [], [])._reported(health)
    if kind == "voltage":
        assert found is None, "volts are judged by what is measured"
    else:
        assert re.match(f"servo {motor} {fault}.*; {cure}", found.text)


def test_what_no_manual_names_has_a_cure_too(bench):
    bus = bench("so101").robot.buses["arm"]
    said = bus.cure(3, bus.codec.error_texts(0x40), ServoReport())
    assert said == "ask who made the servo what it means, then switch the arm off and on"


def test_of_two_faults_both_cures_are_said_and_the_restart_once(bench):
    bus = bench("so101").robot.buses["arm"]
    report = ServoReport(temperature_c=71.0, load_percent=92.0)
    said = bus.cure(3, ("over-temperature", "overload"), report)
    assert said == (
        "it has 71 degC, it pushes with 92 %: let it cool down and look for what it pushes against, free the joint, "
        "then switch the arm off and on"
    )
