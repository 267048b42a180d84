"""Every row of the fault catalogue that servos can show: what the arm does, what the user reads. Virtual time."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.errors import BusError, CalibrationError
from edgevla.robots.bus.port import wire_ns
from edgevla.robots.calibration import Calibration, MotorCalibration, nominal

GOAL = {"so101": np.array([20, -15, 10, 5, 30, 60], np.float32), "aloha": None}


def running(bench, name="so101", **options):
    made = bench(name, **options)
    made.robot.connect()
    assert made.robot.set_torque(True) == []
    return made


def goal_of(made):
    return GOAL["so101"] if made.profile.name == "so101" else made.robot.present_goal()


@pytest.mark.parametrize("name", ["so101", "aloha", "so101_bimanual"])
def test_the_arm_goes_where_it_is_told(bench, name):
    made = running(bench, name)
    goal = made.robot.present_goal()
    goal[::2] += 0.3 if name == "aloha" else 12
    goal = np.clip(goal, *made.robot.limits())
    for _ in range(200):
        reading = made.tick(goal)
    assert reading.n_stale == 0
    assert not reading.position_age_us.any()
    assert np.abs(made.robot.present_goal() - goal).max() < (0.005 if name == "aloha" else 0.25)


@pytest.mark.parametrize("name", ["so101", "aloha"])
@pytest.mark.parametrize("kind", ["drop", "corrupt", "truncate", "wrong_id", "noise", "duplicate"])
def test_one_bad_answer_is_asked_again_within_the_tick(bench, name, kind):
    made = running(bench, name)
    if name == "aloha":
        for bus in made.robot.buses.values():
            bus.uses_fast_read = False
    made.tick(goal_of(made))
    made.fault(kind, target=4, count=1)
    made.fault(kind, target=1, count=1)
    for _ in range(3):
        reading = made.tick(goal_of(made))
        assert reading.n_stale == 0
    assert made.emulated.faults.n_injected[kind] == 2
    retries = made.robot.counters()["bus_retries"]
    assert (retries == 0) if kind in ("noise", "duplicate") else (retries >= 1)


def test_a_merged_answer_that_fails_is_replaced_by_the_plain_read_and_given_up_in_silence(bench):
    made = running(bench, "aloha")
    left = made.robot.buses["left"]
    assert left.uses_fast_read
    made.fault("mute", target="left_waist")
    for _ in range(5):
        reading = made.tick(goal_of(made))
    assert reading.n_stale == 1
    assert not left.uses_fast_read
    assert made.robot.buses["right"].uses_fast_read
    made.fault("clear")
    assert made.tick(goal_of(made)).n_stale == 0


def test_firmware_without_fast_read_is_read_plainly(bench):
    made = running(bench, "aloha", has_fast_read=False)
    assert not made.robot.buses["left"].uses_fast_read
    assert made.tick(goal_of(made)).n_stale == 0


def test_old_feetech_firmware_is_read_servo_by_servo_and_the_user_is_told(bench):
    made = running(bench, has_sync_read=False)
    assert any("sync read does not work" in warning for warning in made.robot.warnings)
    reading = made.tick(goal_of(made))
    assert reading.n_stale == 0
    made.fault("drop", target=3, count=1)
    assert made.tick(goal_of(made)).n_stale == 0


@pytest.mark.parametrize("stalls", [False, True])
def test_a_silent_servo_keeps_its_value_which_ages_and_the_others_do_not(bench, stalls):
    made = running(bench, stalls_on_missing=stalls)
    made.tick(goal_of(made))
    made.fault("mute", target=4)
    for _ in range(12):
        reading = made.tick(goal_of(made))
    ages = reading.position_age_us
    assert 100_000 < ages[3] < 140_000
    if not stalls:
        assert not ages[[0, 1, 2, 4, 5]].any()
    counters = made.robot.buses["arm"].counters
    assert counters[4].n_stale == 12
    assert counters[4].n_retries >= 12
    made.fault("clear")
    assert not made.tick(goal_of(made)).position_age_us.any()


@pytest.mark.parametrize("budget_ms", [3.0, 5.0, 9.0])
def test_an_exchange_ends_by_its_deadline_whatever_is_lost(bench, budget_ms):
    """But for the health that is overdue: where no tick has room for it, one in 0.4 s is late."""
    made = running(bench)
    made.fault("drop", probability=0.3)
    made.fault("delay", probability=0.1, amount=4.0)
    late_ms = []
    for _ in range(100):
        made.clock.sleep_until((made.clock.now_ns() // 10_000_000 + 1) * 10_000_000)
        deadline = made.clock.now_ns() + int(budget_ms * 1e6)
        made.robot.exchange(goal_of(made), deadline)
        late_ms.append((made.clock.now_ns() - deadline) / 1e6)
    assert sum(ms > 0 for ms in late_ms) <= 3
    assert max(late_ms) < 5


def test_one_percent_lost_and_a_tenth_corrupt_costs_no_joint_its_value_for_long(bench):
    made = running(bench)
    made.fault("drop", probability=0.01)
    made.fault("corrupt", probability=0.001)
    worst = 0
    for _ in range(1500):
        worst = max(worst, int(made.tick(goal_of(made)).position_age_us.max()))
    assert worst <= 20_000
    assert made.robot.counters()["bus_retries"] > 30


def test_echo_is_stripped_and_remembered(bench):
    made = bench("so101")
    made.fault("echo")
    made.robot.connect()
    assert made.robot.set_torque(True) == []
    for _ in range(20):
        assert made.tick(goal_of(made)).n_stale == 0
    assert made.robot.buses["arm"].echoes is True
    assert [w for w in made.robot.warnings if "echo" in w]
    assert made.robot.counters()["bus_retries"] == 0


def test_an_old_answer_is_not_taken_for_a_new_one(bench):
    """A late answer to one question lies on the line when the next is asked: other servo, other length."""
    made = running(bench)
    bus = made.robot.buses["arm"]
    made.fault("delay", target=2, count=3, amount=900.0)
    with pytest.raises(BusError):
        bus.read_raw(2, "present_position")
    assert bus.read_raw(1, "present_voltage") == 74
    made.clock.advance(3_000_000_000)
    assert bus.read_raw(2, "homing_offset") == nominal(made.profile).motors["shoulder_lift"].homing_offset


def test_overload_is_reported_while_the_arm_still_answers(bench):
    made = running(bench)
    made.fault("overload", target=6)
    made.tick(goal_of(made))
    health = {s.name: s for s in made.robot.health()}
    assert health["gripper"].faults == ("overload",)
    assert health["gripper"].error_bits == 0x20
    assert health["elbow_flex"].faults == ()


def test_a_blocked_gripper_trips_its_protection_and_torque_off_still_reaches_it(bench):
    made = running(bench)
    made.tick(goal_of(made))
    made.fault("stuck", target=6)
    for _ in range(400):
        made.tick(np.array([20, -15, 10, 5, 30, 0], np.float32))
    assert "overload" in {s.name: s for s in made.robot.health()}["gripper"].faults
    assert made.robot.set_torque(False) == []
    assert not any(s.torque_on for s in made.emulated.servos.values())


def test_torque_off_names_the_servo_it_did_not_reach_and_reaches_the_others(bench):
    made = running(bench)
    made.fault("mute", target=3)
    made.fault("overload", target=2)
    assert made.robot.set_torque(False) == ["elbow_flex"]
    assert [name for name, s in made.emulated.servos.items() if s.torque_on] == ["elbow_flex"]


def test_torque_off_gets_through_when_only_the_answers_are_lost(bench):
    made = running(bench)
    made.fault("drop", probability=0.5)
    made.robot.set_torque(False)
    assert not any(s.torque_on for s in made.emulated.servos.values())


def test_a_brown_out_is_seen_within_half_a_second_and_torque_stays_off(bench):
    made = running(bench)
    made.tick(goal_of(made))
    made.fault("brownout", target=2)
    for _ in range(50):
        made.tick(goal_of(made))
    assert {s.name: s.torque_on for s in made.robot.health()}["shoulder_lift"] is False
    for _ in range(100):
        made.tick(goal_of(made))
    assert not made.servo("shoulder_lift").torque_on
    assert made.servo("shoulder_pan").torque_on


def test_torque_on_after_a_brown_out_starts_from_where_the_arm_is(bench):
    made = running(bench)
    for _ in range(60):
        made.tick(goal_of(made))
    made.fault("brownout")
    made.clock.advance(200_000_000)
    at = made.emulated.joint_rad()
    assert made.robot.set_torque(True) == []
    for _ in range(30):
        made.tick(None)
    assert np.abs(made.emulated.joint_rad() - at).max() < 0.004


def test_a_sample_that_no_servo_could_reach_is_dropped_once_and_believed_twice(bench):
    made = running(bench)
    before = made.tick(None).position[0]
    made.fault("jump", target=1, amount=900)
    first = made.tick(None)
    assert first.n_stale == 1
    assert first.position[0] == before
    second = made.tick(None)
    assert second.n_stale == 0
    assert abs(second.position[0] - before) > 50
    assert made.robot.counters()["bus_invalid"] == 1


def test_a_position_beyond_one_turn_is_no_position(bench):
    made = running(bench)
    servo = made.servo("wrist_roll")
    servo.put("phase", servo.get("phase") | 0x10)
    servo.axis.position += 4096
    for _ in range(3):
        reading = made.tick(None)
    assert reading.n_stale == 1
    assert reading.position_age_us[4] > 0


def test_connecting_clears_multi_turn_feedback(bench):
    made = bench("so101")
    made.servo("wrist_roll").put("phase", 12 | 0x10)
    made.robot.connect()
    assert made.servo("wrist_roll").get("phase") == 12


def test_an_unplugged_line_is_an_error_and_the_other_arm_was_still_served(bench):
    made = running(bench, "so101_bimanual")
    goal = made.robot.present_goal()
    goal[8] += 10
    made.fault("unplug", target="left")
    with pytest.raises(BusError, match="torque ON"):
        made.tick(goal)
    assert made.servo("right_elbow_flex").get("goal_position") != made.servo("left_elbow_flex").get(
        "goal_position"
    )
    unreached = made.robot.set_torque(False)
    assert set(unreached) == {m.name for m in made.profile.buses[0].motors}
    assert not made.servo("right_gripper").torque_on
    assert "has gone" in made.robot.rescue.lost["left"]


# ---- connecting ----


def refused(bench, sentence, *faults, name="so101", error=BusError, **options):
    made = bench(name, **options)
    for kind, values in faults:
        made.fault(kind, **values)
    with pytest.raises(error, match=sentence):
        made.robot.connect()
    assert not any(s.torque_on for s in made.emulated.servos.values())
    return made


def test_missing_servos_name_the_cable(bench):
    muted = [("mute", {"target": i}) for i in (4, 5, 6)]
    refused(bench, r"no answer from motor 4 \(wrist_flex\), 5 .*answered: 1, 2, 3; check the cable between "
            r"elbow_flex \(3\) and wrist_flex \(4\)", *muted)  # fmt: skip


def test_no_servo_at_all_is_a_missing_supply(bench):
    refused(bench, "no servo answered at all: switch the arm's power supply on", ("mute", {}))


def test_servos_that_all_have_id_1_are_told_apart_one_by_one(bench):
    same = [("duplicate_id", {"target": i, "amount": 1}) for i in (2, 3, 4, 5, 6)]
    refused(bench, "edgevla setup-motors", *same)


def test_a_wrong_model_is_refused(bench):
    refused(bench, r"motor 3 \(elbow_flex\) is a servo \(model 1284\), the profile expects sts3215 \(777\)",
            ("wrong_model", {"target": 3}))  # fmt: skip


def test_a_wrong_supply_is_refused_with_the_measured_volts(bench):
    made = bench("so101")
    for servo in made.emulated.servos.values():
        servo.supply_v = servo.voltage_v = 15.2
    with pytest.raises(BusError, match=r"measures 15.2 V, allowed are 4.5..13.0 V"):
        made.robot.connect()


def test_a_servo_that_reports_overload_at_the_start_is_refused(bench):
    refused(bench, r"\(gripper\) reports overload; free the joint", ("overload", {"target": "gripper"}))


def test_a_dynamixel_hardware_error_says_reboot(bench):
    words = r"\(left_gripper\) reports overload; free the joint, then reboot it: edgevla doctor --robot aloha --reboot 9"
    refused(bench, words, ("overload", {"target": "left_gripper"}), name="aloha")


def test_mixed_firmware_is_told(bench):
    made = running(bench, "so101")
    assert not any("firmware" in warning for warning in made.robot.warnings)
    made = bench("so101")
    made.fault("wrong_firmware", target="elbow_flex", amount=9)
    made.robot.connect()
    assert any("firmware 3.9 in elbow_flex, 3.10 in the other sts3215" in w for w in made.robot.warnings)


def test_a_calibration_that_differs_stops_before_anything_moves(bench):
    profile_calibration = nominal(bench("so101").profile)
    changed = dict(profile_calibration.motors)
    changed["elbow_flex"] = MotorCalibration(3, 0, 77, 700, 3000)
    made = bench("so101", calibration=Calibration(changed, "blue.json"))
    at = made.emulated.joint_rad()
    with pytest.raises(
        CalibrationError, match=r"blue.json differs.*elbow_flex: homing_offset is 77 in the file"
    ):
        made.robot.connect()
    assert (made.emulated.joint_rad() == at).all()


def test_without_a_file_the_servos_registers_are_adopted_and_factory_ones_are_not(bench):
    made = bench("so101", calibration=None)
    made.robot.connect()
    assert made.robot.calibration.motors == nominal(made.profile).motors
    fresh = bench("so101", calibration=None)
    fresh.servo("elbow_flex").put("max_position", 0)
    fresh.servo("elbow_flex").put("min_position", 0)
    with pytest.raises(CalibrationError, match=r"registers of motor 'elbow_flex' are no calibration"):
        fresh.robot.connect()


def test_a_cable_pulled_while_connecting_undoes_what_was_done(bench):
    made = bench("so101")
    for servo in made.emulated.servos.values():
        servo.put("torque_enable", 1)
    made.servo("gripper").put("max_torque", 1000)
    line = made.emulated.lines["arm"]
    line.on_frame = lambda direction, frame, ns: (
        made.fault("mute", target=5) if line.counters["instructions"] == 60 else None
    )
    with pytest.raises(BusError):
        made.robot.connect()
    assert [n for n, s in made.emulated.servos.items() if s.torque_on] in ([], ["wrist_roll"])


def test_connecting_writes_only_what_differs_and_locks_the_eeprom_again(bench):
    made = bench("so101")
    made.robot.connect()
    gripper = made.servo("gripper")
    assert (gripper.get("max_torque"), gripper.get("torque_limit"), gripper.get("protection_current")) == (
        500,
        500,
        250,
    )
    assert all(s.get("lock") == 1 for s in made.emulated.servos.values())
    assert made.servo("elbow_flex").get("position_p") == 16
    sent = []
    made.emulated.lines["arm"].on_frame = lambda d, frame, _: sent.append(frame) if d == "tx" else None
    made.robot.connect()
    writes = [f for f in sent if f[4] == 3]
    assert all(f[5] >= 40 for f in writes)  # no EEPROM address


def test_settings_survive_the_power_because_the_eeprom_was_unlocked(bench):
    made = bench("so101")
    made.robot.connect()
    made.fault("brownout")
    assert made.servo("gripper").get("max_torque") == 500
    assert made.servo("gripper").get("torque_limit") == 500


# ---- ALOHA's own ----


def test_shadows_obey_their_partner_and_get_its_torque(bench):
    made = running(bench, "aloha")
    goal = made.robot.present_goal()
    goal[1] = -0.5
    for _ in range(150):
        made.tick(goal)
    assert made.servo("left_shoulder").present == made.servo("left_shoulder_shadow").present
    assert made.servo("left_shoulder_shadow").get("goal_position") == made.servo("left_shoulder").get(
        "goal_position"
    )
    assert made.robot.set_torque(False) == []
    assert not made.servo("left_shoulder_shadow").torque_on


def test_a_pair_that_differs_is_refused_torque(bench, monkeypatch):
    from edgevla.robots.emulator import robot as emulated

    monkeypatch.setattr(emulated, "SHADOW_BIAS", 45)
    refused(bench, r"left_shoulder \(2\) and left_shoulder_shadow \(3\) turn one joint but differ by -45 ticks",
            name="aloha")  # fmt: skip


def test_the_watchdog_freezes_the_arm_when_the_line_falls_silent_and_resume_clears_it(bench):
    made = running(bench, "aloha")
    goal = made.robot.present_goal()
    goal[0] = 2.0
    for _ in range(10):
        made.tick(goal)
    made.clock.advance(350_000_000)
    made.emulated.step(made.clock.now_ns())
    assert made.servo("left_waist").get("bus_watchdog") < 255, (
        "the emulator was held up, the host was not silent"
    )
    made.tick(goal)
    for _ in range(35):
        made.clock.advance(10_000_000)
        made.emulated.step(made.clock.now_ns())
    at = made.emulated.joint_rad()
    assert made.servo("left_waist").get("bus_watchdog") == 255
    for _ in range(60):
        made.tick(goal)
    assert np.abs(made.emulated.joint_rad() - at).max() < 0.002
    assert all("bus watchdog" in s.faults for s in made.robot.health() if s.bus == "left")
    assert made.robot.set_torque(True) == []
    for _ in range(150):
        made.tick(goal)
    assert made.emulated.joint_rad()[0] == pytest.approx(2.0, abs=0.01)


def test_a_hardware_error_in_a_run_switches_one_servo_off_and_is_reported(bench):
    made = running(bench, "aloha")
    made.tick(goal_of(made))
    made.fault("overload", target="left_elbow")
    for _ in range(60):
        made.tick(goal_of(made))
    health = {s.name: s for s in made.robot.health()}
    assert health["left_elbow"].faults == ("overload",)
    assert health["left_elbow"].torque_on is False
    assert made.robot.buses["left"].errors[4] == 0x80


# ---- the last resort ----


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_rescue_freezes_parks_and_releases(bench, name):
    made = running(bench, name, gravity=0.45)
    goal = np.array([joint.home for joint in made.profile.joints])
    for _ in range(150):  # limp, it has sunk while it was connected
        made.tick(goal)
    goal[0] += 0.4 if name == "aloha" else 25
    for _ in range(8):
        made.tick(goal)
    rescue = made.robot.rescue
    assert rescue.freeze() == []
    for _ in range(6):  # a joint that is stopped at full speed goes a little past its goal, and back
        made.clock.advance(100_000_000)
        made.emulated.step(made.clock.now_ns())
    at = made.emulated.joint_rad()
    made.clock.advance(300_000_000)
    made.emulated.step(made.clock.now_ns())
    assert np.abs(made.emulated.joint_rad() - at).max() < 1e-9
    rescue.limit_torque(made.profile.escalation.park_torque)
    made.clock.advance(300_000_000)
    made.emulated.step(made.clock.now_ns())
    sunk = np.abs(made.emulated.joint_rad() - at).max()
    assert 0 < sunk < 0.1  # it sinks slowly, it does not fall
    assert rescue.release() == []
    assert not any(s.torque_on for s in made.emulated.servos.values())
    made.clock.advance(300_000_000)
    made.emulated.step(made.clock.now_ns())
    assert np.abs(made.emulated.joint_rad() - at).max() > 4 * sunk


def test_rescue_goes_on_with_the_servos_that_answer(bench):
    made = running(bench)
    made.fault("mute", target=2)
    made.fault("overload", target=3)
    rescue = made.robot.rescue
    assert rescue.freeze() == ["shoulder_lift"]
    rescue.limit_torque(made.profile.escalation.park_torque)
    assert rescue.release() == ["shoulder_lift"]


# ---- time on the wire ----


@pytest.mark.parametrize(("name", "expected_us"), [("so101", 880), ("aloha", 1620)])
def test_a_cycle_takes_the_wire_s_time_and_little_more(bench, name, expected_us):
    """Positions only, plus 30 us of turn-around per answer."""
    made = running(bench, name)
    for bus in made.robot.buses.values():
        bus.tick_block = type(bus.tick_block)((bus.registers["present_position"],))
    line = next(iter(made.robot._lines))
    for each in made.robot._lines:
        each.health.next_ns = 1 << 62
    made.clock.advance(20_000_000)  # the line is quiet
    reading = made.tick(goal_of(made))
    n = len(line.ids)
    if name == "aloha":  # shadows are not read: seven of nine answer
        expected_us = 1e-3 * (wire_ns(14 + 7 * 5 + 21, 1_000_000) + wire_ns(8 + 7 * 8, 1_000_000))
    assert reading.duration_ns / 1000 == pytest.approx(
        expected_us + 30 * (n if name == "so101" else 1), abs=35
    )
