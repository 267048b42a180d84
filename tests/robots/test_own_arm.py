"""An arm of the user's own, in a file: a Koch-like follower (Dynamixel XL430 and XL330, LeRobot calibration)."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.clock import VirtualClock
from edgevla.errors import ConfigError
from edgevla.robots.arm import Robot
from edgevla.robots.calibration import nominal
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.handshake import held_calibration, write_differing
from edgevla.robots.profile import load_profile
from edgevla.robots.tools.sweeping import Encoders

HEAD = """
name = "koch"
kind = "follower"
joint_units = "degrees"
lerobot_types = ["koch_follower"]
[[bus]]
name = "arm"
protocol = "dynamixel"
baud = 1000000
[limits]
voltage_min = 4.5
voltage_max = 14.0
"""
MOTOR = """
[[motor]]
name = "{name}"
bus = "arm"
id = {id}
model = "{model}"
joint = "{name}.pos"
unit = "{unit}"
{limits}
max_velocity = 180.0
home = {home}
settings = {{ operating_mode = {mode} }}
"""
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@pytest.fixture
def koch(tmp_path):
    text = HEAD
    for i, name in enumerate(NAMES, 1):
        is_jaw = name == "gripper"
        text += MOTOR.format(
            name=name, id=i, model="xl430-w250" if i < 3 else "xl330-m288", unit="percent" if is_jaw else "body",
            limits="" if is_jaw else "limits = [-90, 90]", home=30.0 if is_jaw else 0.0, mode=5 if is_jaw else 4,
        )  # fmt: skip
    path = tmp_path / "koch.toml"
    path.write_text(text)
    profile, clock = load_profile(path), VirtualClock(1_000_000_000)
    emulated = EmulatedRobot(profile, clock)
    for servo in emulated.servos.values():
        servo.supply_v = servo.voltage_v = 6.8  # within both families' limits
    return emulated, Robot(profile, emulated.memory_ports(), nominal(profile), clock), clock


def test_it_connects_moves_and_reads_back(koch):
    emulated, robot, clock = koch
    robot.connect()
    assert robot.set_torque(True) == []
    goal = np.array([20, -15, 30, 10, -40, 80], np.float32)
    for _ in range(250):
        clock.advance(10_000_000)
        reading = robot.exchange(goal, clock.now_ns() + 9_000_000)
    np.testing.assert_allclose(reading.position, goal, atol=0.3)
    np.testing.assert_allclose(np.rad2deg(emulated.joint_rad()[:5]), goal[:5], atol=0.3)
    assert robot.set_torque(False) == []


def test_homing_has_dynamixel_s_sign(koch):
    emulated, robot, _ = koch
    for servo in emulated.servos.values():
        servo.axis.position = 2600
    encoders = Encoders(robot.profile, robot.buses, held_calibration(robot.buses, robot.profile))
    encoders.home()
    assert set(encoders.offsets.values()) == {2047 - 2600}
    assert set(encoders.ticks().values()) == {2047}
    for motor in robot.profile.buses[0].motors:
        write_differing(robot.buses["arm"], motor.id, {"homing_offset": encoders.offsets[motor.name]})
    assert {s.present for s in emulated.servos.values()} == {2047}


def test_extended_position_mode_may_count_beyond_one_turn(koch):
    emulated, robot, _ = koch
    emulated.servos["wrist_roll"].axis.position = 5568 - emulated.servos["wrist_roll"].get("homing_offset")
    robot.connect()
    assert robot.present_ticks()[4] == 5568


def test_distant_registers_are_read_in_one_block_through_indirect_addresses(koch):
    _, robot, clock = koch
    bus = robot.buses["arm"]
    names = (
        "present_position",
        "present_velocity",
        "present_current",
        "status",
        "present_voltage",
        "present_temperature",
    )
    block = bus.map_indirect(names)
    assert (block.address, block.size) == (224, 4 + 4 + 2 + 1 + 2 + 1)
    held = block.decode(bus.transact(bus.codec.read(3, block.address, block.size), 3, block.size))
    assert held == {name: bus.read_raw(3, name) for name in names}
    with pytest.raises(ConfigError, match="do not fit the 28 indirect addresses"):
        bus.map_indirect(["present_position"] * 8)
    assert clock.now_ns() > 0


def test_a_line_that_needs_write_and_read_apart_is_noticed(koch):
    _, robot, _ = koch
    port = robot.ports["arm"]
    real = port.write

    def only_the_first_frame(data):
        found = robot.buses["arm"].codec.split_instructions(bytearray(data))
        real(robot.buses["arm"].codec.instruction(*found[0]) if found else data)

    port.write = only_the_first_frame
    robot.connect()
    assert robot.buses["arm"].joins_writes is False
    assert any("sent apart now" in w for w in robot.warnings)
    robot.set_torque(True)
    assert robot.exchange(robot.present_goal(), robot.clock.now_ns() + 20_000_000).n_stale == 0
