"""The emulated servos on a virtual clock: registers, answers as each family gives them, motion, heat and supply."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.clock import VirtualClock
from edgevla.robots.bus import dynamixel, feetech
from edgevla.robots.emulator.motion import Axis, MotorModel
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import load_profile


def servo_of(name, motor):
    robot = EmulatedRobot(load_profile(name), VirtualClock())
    return robot, robot.servos[motor], robot.lines[next(iter(robot.lines))]


def test_feetech_eeprom_is_lost_with_the_power_while_locked(bench):
    _, servo, _ = servo_of("so101", "elbow_flex")
    servo.write(13, b"\x41")
    assert servo.get("max_temperature") == 65
    servo.power_up(1)
    assert servo.get("max_temperature") == 70
    servo.write(55, b"\x00")
    servo.write(13, b"\x41")
    servo.power_up(2)
    assert (servo.get("max_temperature"), servo.get("lock")) == (65, 1)


def test_feetech_read_only_registers_stay_and_max_torque_is_copied_at_power_up():
    _, servo, _ = servo_of("so101", "elbow_flex")
    servo.write(3, b"\x01\x01")
    assert servo.get("model_number") == 777
    servo.write(55, b"\x00")
    servo.write(16, (400).to_bytes(2, "little"))
    assert servo.get("torque_limit") == 1000
    servo.power_up(1)
    assert servo.get("torque_limit") == 400


def test_feetech_torque_128_makes_the_pose_the_centre():
    _, servo, _ = servo_of("so101", "elbow_flex")
    servo.axis.position = 3210
    servo.write(40, b"\x80")
    assert servo.present == 2048
    assert servo.get("homing_offset") == 3210 - 2048


def test_feetech_goals_are_kept_within_the_limit_registers():
    robot, servo, _ = servo_of("so101", "elbow_flex")
    servo.write(40, b"\x01")
    servo.write(42, (4000).to_bytes(2, "little"))
    robot.step(3_000_000_000)
    for k in range(20):
        robot.step((4 + k) * 300_000_000 + 3_000_000_000)
    assert servo.present == servo.get("max_position")


def test_dynamixel_secondary_id_obeys_in_silence():
    _, _, line = servo_of("aloha", "left_shoulder")
    shadow = next(s for s in line.servos if s.name == "left_shoulder_shadow")
    shadow.put("secondary_id", 2)
    answers = line.receive(dynamixel.write(2, 65, b"\x01"), 0)
    assert len(answers) == 1
    assert shadow.get("led") == 1


def test_a_bad_checksum_is_met_with_silence_and_an_unknown_instruction_as_each_family_does():
    _, _, line = servo_of("so101", "elbow_flex")
    frame = bytearray(feetech.read(3, 56, 2))
    frame[-1] ^= 1
    assert line.receive(bytes(frame), 0) == []
    assert line.receive(feetech.instruction(3, 0x77), 0) == []
    _, _, line = servo_of("aloha", "left_waist")
    answer = dynamixel.DynamixelDecoder().feed(line.receive(dynamixel.instruction(1, 0x77), 0)[0][1])[0]
    assert answer.error == dynamixel.BAD_INSTRUCTION


def test_feetech_broadcast_ping_is_answered_in_order_of_ids():
    _, _, line = servo_of("so101", "elbow_flex")
    found = feetech.FeetechDecoder().feed(b"".join(data for _, data in line.receive(feetech.ping(254), 0)))
    assert [f.id for f in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("name", "codec"), [("so101", feetech), ("aloha", dynamixel)])
def test_of_several_questions_at_once_the_last_is_answered_and_every_write_obeyed(name, codec):
    """What an emulator finds that was held up for some ticks: the host has long given up the older questions."""
    _, _, line = servo_of(name, load_profile(name).buses[0].motors[0].name)
    goal, at = codec.REGISTERS["goal_position"], codec.REGISTERS["present_position"]
    asked = codec.sync_read(at.address, at.size, (1, 2, 3))
    ticks = [codec.sync_write(goal.address, goal.size, {1: goal.encode(2000 + k)}) + asked for k in range(40)]
    answers = line.receive(b"".join(ticks), 0)
    found = codec.Decoder(at.size).feed(b"".join(data for _, data in answers))
    assert [status.id for status in found] == [1, 2, 3]
    assert answers[-1][0] < 10_000_000, "not behind the time of forty answers on the wire"
    assert line.servos[0].get("goal_position") == 2039
    after = line.receive(codec.read(1, at.address, at.size), 20_000_000)
    assert after[-1][0] < 30_000_000


def test_what_a_host_writes_through_an_indirect_address_reads_back_from_the_register():
    _, servo, _ = servo_of("aloha", "left_waist")
    assert servo.get("led") == 0
    assert servo.write(168, (65).to_bytes(2, "little")) == 0
    assert servo.write(224, b"\x01") == 0
    assert servo.get("led") == 1


# ---- motion ----


def test_motion_respects_speed_and_acceleration_and_does_not_overshoot():
    axis = Axis(0.0, MotorModel(max_speed=3000))
    dt, positions, speeds = 0.002, [], []
    for _ in range(1500):
        axis.drive(dt, 2000 - axis.position, 1000.0, 5000.0, 1.0)
        positions.append(axis.position)
        speeds.append(axis.velocity)
    assert max(speeds) <= 1000 + 1e-6
    assert np.abs(np.diff(speeds)).max() <= 5000 * dt * 4  # the last hundredth of a tick is skipped
    assert max(positions) <= 2000 + 1
    assert positions[-1] == pytest.approx(2000, abs=0.5)


def test_load_heats_the_servo_and_pulls_the_supply_down(bench):
    made = bench("so101")
    made.robot.connect()
    made.robot.set_torque(True)
    made.fault("stuck", target="elbow_flex")
    before = made.servo("elbow_flex").axis.temperature_c
    goal = made.robot.present_goal()
    goal[2] += 60
    volts = []
    for _ in range(150):
        made.tick(goal)
        volts.append({s.name: s.voltage_v for s in made.robot.health()}["shoulder_pan"])
    assert made.servo("elbow_flex").axis.temperature_c > before + 0.5
    assert min(volts) < 7.35
    assert {s.name: s for s in made.robot.health()}["elbow_flex"].load_percent > 50


def test_a_limp_arm_falls_only_with_gravity(bench):
    for gravity, falls in ((0.0, False), (0.3, True)):
        made = bench("so101", gravity=gravity)
        at = made.emulated.joint_rad()
        made.clock.advance(400_000_000)
        made.emulated.step(made.clock.now_ns())
        assert bool(np.abs(made.emulated.joint_rad() - at).max() > 0.05) is falls


def test_the_emulator_is_repeatable_for_one_seed(bench):
    def story(seed):
        made = bench("so101", seed=seed)
        made.robot.connect()
        made.robot.set_torque(True)
        made.fault("drop", probability=0.2)
        made.fault("corrupt", probability=0.1)
        goal = made.robot.present_goal()
        goal[0] += 20
        return [made.tick(goal).position.tolist() for _ in range(60)], made.robot.counters()

    assert story(3) == story(3)
    assert story(3) != story(4)
