"""A third servo protocol is one file, this one, and one line in the table: an arm of such servos does all that arms do.

The toy's words are lines of text. Its servo is below the protocol, and a wire between both.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from edgevla.clock import VirtualClock
from edgevla.errors import BusError, ConfigError
from edgevla.robots.arm import Robot
from edgevla.robots.bus.frames import Status
from edgevla.robots.bus.habits import NEEDED
from edgevla.robots.bus.port import MemoryPort
from edgevla.robots.bus.protocols import BUSES
from edgevla.robots.bus.registers import Block, Register, table
from edgevla.robots.bus.report import CONCLUDED, CONCLUSIONS, RESTARTED, Cure, PingReply, ServoReport
from edgevla.robots.bus.servo_bus import ServoBus
from edgevla.robots.calibration import nominal
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import Rescue

# ---- the protocol: what a file in robots/bus would hold ----

READ, WRITE = b"R", b"W"
MAX_ID, BAUDS, MODELS = 99, (1_000_000,), {"toy1": 41}
REGISTERS = table([
    Register("model_number", 0, 2, "read"), Register("id", 2, 1, "eeprom"), Register("baud", 3, 1, "eeprom"),
    Register("homing_offset", 4, 2, "eeprom", is_signed=True), Register("min_position", 6, 2, "eeprom"),
    Register("max_position", 8, 2, "eeprom"), Register("min_voltage", 10, 1, "eeprom", scale=0.1),
    Register("max_voltage", 11, 1, "eeprom", scale=0.1), Register("max_temperature", 12, 1, "eeprom"),
    Register("owner_torque", 13, 1, "eeprom"), Register("torque_enable", 20, 1), Register("torque", 21, 1),
    Register("speed", 22, 2), Register("memory", 24, 1), Register("goal_position", 25, 2),
    Register("present_position", 27, 2, "read"), Register("present_voltage", 29, 1, "read", scale=0.1),
    Register("present_temperature", 30, 1, "read"), Register("status", 31, 1, "read"),
])  # fmt: skip


def _line(*parts: bytes) -> bytes:
    return b" ".join(parts) + b"\n"


def read(servo_id, address, size):
    return _line(READ, b"%d" % servo_id, b"%d" % address, b"%d" % size)


def write(servo_id, address, data):
    return _line(WRITE, b"%d" % servo_id, b"%d" % address, data.hex().encode())


def sync_read(address, size, ids):
    return b"".join(read(i, address, size) for i in ids)


def sync_write(address, size, data):
    return b"".join(
        _line(b"w", b"%d" % i, b"%d" % address, value.hex().encode()) for i, value in data.items()
    )


def sync_read_bytes(n_ids, size):
    return 14 * n_ids, n_ids * (8 + 2 * size)


def refuses(error):
    return False


def error_texts(error):
    return ["bent"] * bool(error)


class Decoder:
    n_corrupt = 0

    def __init__(self, data_size=None):
        self._rest = b""

    def feed(self, data):
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for words in (line.split() for line in lines):
            if len(words) >= 2 and words[0] == b"A":
                found.append(Status(int(words[1]), 0, bytes.fromhex(b"".join(words[2:]).decode())))
        return found


class ToyBus(ServoBus):
    codec = sys.modules[__name__]
    registers = REGISTERS
    tick_block = Block((REGISTERS["present_position"],))
    health_block = Block(tuple(REGISTERS[n] for n in (
        "torque_enable", "memory", "present_position", "present_voltage", "present_temperature", "status")))  # fmt: skip
    known_models, bauds = MODELS, BAUDS
    torque_limit, own_limit, full_torque, ceilings = "torque", "owner_torque", 100, ("owner_torque",)
    speed = "speed"
    cures = {**CONCLUSIONS, "bent": Cure("straighten it", is_kept=True)}  # noqa: RUF012

    def ping(self, servo_id, n_tries=3):
        data = self.transact(read(servo_id, 0, 2), servo_id, 2, None, n_tries)
        return None if data is None else PingReply(servo_id, data[0] | data[1] << 8, "1", 0)

    def report(self, servo_id, values):
        torque, bits = values.get("torque_enable"), values.get("status")
        return ServoReport(
            torque_on=None if torque is None else torque == 1,
            voltage_v=self.in_unit(values, "present_voltage"),
            temperature_c=self.in_unit(values, "present_temperature"),
            faults=None if bits is None else tuple(error_texts(bits)),
        )

    def settings(self, servo_id, drive_mode, partner):
        return {"memory": 7}

    def speed_counts(self, servo_id, ticks_s):
        return round(ticks_s)

    def has_restarted(self, servo_id, before, now, elapsed_ns):
        return now["memory"] != before["memory"]

    def restart_words(self, servo_id):
        return "wind it up"


# ---- its servo, at the other end of the wire ----


class ToyServo:
    def __init__(self, servo_id):
        self.id, self.data = servo_id, bytearray(64)
        for name, value in {"model_number": 41, "id": servo_id, "max_position": 4000, "min_position": 100, "memory": 0,
                            "min_voltage": 60, "max_voltage": 90, "max_temperature": 70, "owner_torque": 100,
                            "present_position": 2000, "present_voltage": 75, "present_temperature": 30,
                            "torque": 100}.items():  # fmt: skip
            self.put(name, value)

    def put(self, name, value):
        r = REGISTERS[name]
        self.data[r.address : r.end] = r.encode(value)

    def get(self, name):
        r = REGISTERS[name]
        return r.decode(bytes(self.data[r.address : r.end]))

    def step(self):
        if self.get("torque_enable"):
            away = self.get("goal_position") - self.get("present_position")
            self.put("present_position", self.get("present_position") + max(-30, min(30, away)))

    def obey(self, words):
        address = int(words[2])
        if words[0] == READ:
            self.step()
            return _line(b"A", b"%d" % self.id, self.data[address : address + int(words[3])].hex().encode())
        piece = bytes.fromhex(words[3].decode())
        self.data[address : address + len(piece)] = piece
        return _line(b"A", b"%d" % self.id) if words[0] == WRITE else b""


PROFILE = """
name = "toyarm"
kind = "follower"
joint_units = "degrees"
lerobot_types = ["toy_follower"]
[[bus]]
name = "arm"
protocol = "toy"
baud = 1000000
[limits]
voltage_min = 5.0
voltage_max = 9.0
"""
MOTOR = """
[[motor]]
name = "{name}"
bus = "arm"
id = {id}
model = "toy1"
joint = "{name}.pos"
unit = "body"
limits = [-90, 90]
max_velocity = 180.0
home = 0.0
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The arm on its wire: profile, robot, servos by name, clock."""
    monkeypatch.setitem(BUSES, "toy", ToyBus)
    path = tmp_path / "toyarm.toml"
    path.write_text(PROFILE + "".join(MOTOR.format(name=n, id=i) for i, n in enumerate(("base", "elbow"), 1)))
    profile, clock = load_profile(path), VirtualClock(1_000_000_000)
    servos = {motor.name: ToyServo(motor.id) for motor in profile.buses[0].motors}
    by_id = {servo.id: servo for servo in servos.values()}

    def wire(data, now_ns):
        answers = [
            by_id[int(w[1])].obey(w)
            for w in (line.split() for line in data.splitlines())
            if int(w[1]) in by_id
        ]
        return [(now_ns + 300_000 * k, answer) for k, answer in enumerate(answers, 1) if answer]

    calibration = nominal(profile)
    for name, entry in calibration.motors.items():
        servos[name].put("homing_offset", entry.homing_offset)
        servos[name].put("min_position", entry.range_min)
        servos[name].put("max_position", entry.range_max)
    port = MemoryPort("toy wire", 1_000_000, wire, clock)
    robot = Robot(profile, {"arm": port}, calibration, clock)
    return SimpleNamespace(profile=profile, robot=robot, servos=servos, clock=clock, port=port)


def tick(toy, goal):
    toy.clock.advance(10_000_000)
    return toy.robot.exchange(goal, toy.clock.now_ns() + 9_000_000)


@pytest.mark.parametrize("kind", [*BUSES.values(), ToyBus])
def test_every_protocol_says_what_is_asked_of_it(kind):
    bounds = {name for pair in kind.bounds for name in pair}
    named = {kind.torque_limit, kind.own_limit, kind.speed, *kind.ceilings, *bounds}
    assert {*NEEDED, *named} <= set(kind.registers)
    assert {"torque_enable"} <= {r.name for r in kind.health_block.registers}
    assert {*CONCLUDED} <= set(kind.cures)


def test_an_arm_of_a_new_protocol_connects_moves_parks_and_is_released(toy):
    toy.robot.connect()
    assert toy.robot.set_torque(True) == []
    assert all(servo.get("torque_enable") == 1 for servo in toy.servos.values())
    goal = np.array([20.0, -30.0], np.float32)
    for _ in range(60):
        reading = tick(toy, goal)
    np.testing.assert_allclose(reading.position, goal, atol=0.2)
    assert reading.n_stale == 0
    assert [(s.name, s.voltage_v, s.torque_on) for s in toy.robot.health()] == [
        ("base", 7.5, True),
        ("elbow", 7.5, True),
    ]
    toy.robot.set_torque_limit(0.4)
    assert {servo.get("torque") for servo in toy.servos.values()} == {40}
    assert toy.robot.set_torque(False) == []
    assert {(s.get("torque_enable"), s.get("torque")) for s in toy.servos.values()} == {(0, 100)}


def test_it_has_its_own_models_speeds_and_registers_in_a_profile(toy, tmp_path):
    text = toy.profile.path.read_text()
    for old, new, words in (
        ('model = "toy1"', 'model = "sts3215"', "toy1"), ("baud = 1000000", "baud = 57600", "1000000"),
        ("home = 0.0", "home = 0.0\nsettings = { phase = 1 }", "toy servos have no such register"),
    ):  # fmt: skip
        path = tmp_path / "wrong.toml"
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match=words):
            load_profile(path)


def test_all_that_is_done_for_arms_is_done_for_it(toy):
    """Found on, owner's limit, faults with their cures, restarts, the last resort."""
    for servo in toy.servos.values():
        servo.put("torque_enable", 1)
    toy.servos["elbow"].put("owner_torque", 60)
    toy.robot.connect()
    assert "toyarm: torque was found on" in toy.robot.warnings[0]
    assert any("owner_torque (13) says so: elbow 60%" in w for w in toy.robot.warnings)
    assert toy.robot.set_torque(True) == []
    toy.servos["base"].put("memory", 0)
    toy.servos["elbow"].put("status", 1)
    for _ in range(60):
        tick(toy, toy.robot.present_goal())
    base, elbow = toy.robot.health()
    assert (base.faults, base.cure) == ((RESTARTED,), base.cure)
    assert (elbow.faults, elbow.cure) == (("bent",), "straighten it, then wind it up")
    rescue = Rescue(toy.profile, {"arm": toy.port}, toy.clock)
    assert rescue.freeze() == []
    assert rescue.lower() is False
    assert rescue.release() == []
    assert toy.servos["elbow"].get("torque") == 60
    toy.servos["base"].put("status", 1)
    with pytest.raises(BusError, match=r"\(base\) reports bent; straighten it, then wind it up"):
        toy.robot.connect()
