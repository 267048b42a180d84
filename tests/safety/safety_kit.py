"""A servo line without a wire: it holds registers, writes down what it is asked, and may be silent, refuse or be gone.

Where bytes matter, the tests take emulated servos; here the order and the numbers of a safety procedure are what counts.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

from edgevla.errors import BusError
from edgevla.robots.arm import Robot
from edgevla.robots.bus.frames import Counters
from edgevla.robots.bus.protocols import BUSES
from edgevla.robots.bus.report import ServoReport
from edgevla.robots.calibration import nominal
from edgevla.robots.health import LineHealth
from edgevla.robots.profile import Bus, Profile
from edgevla.robots.rescue import Rescue
from edgevla.robots.units import joint_units


class Codec:
    """Frames that can be read by eye."""

    @staticmethod
    def write(servo_id, address, data):
        return ("write", servo_id, address, data)

    @staticmethod
    def read(servo_id, address, size):
        return ("read", servo_id, address, size)


class Line:
    """The servos of one bus. held: id -> register -> value. did: what was asked, in order.

    silent: ids that never answer. deaf_for: id -> how many of its transactions are lost. refuses: ids. gone: unplugged.
    """

    codec = Codec()

    def __init__(self, bus: Bus) -> None:
        kind = BUSES[bus.protocol]
        self.registers, self.full = kind.registers, kind.full_torque
        self.torque_limit, self.own_limit, self.speed = kind.torque_limit, kind.own_limit, kind.speed
        self.health_block, self.tick_block = kind.health_block, kind.tick_block
        self.ids = tuple(motor.id for motor in bus.motors)
        self.motors = {motor.id: motor.name for motor in bus.motors}
        self.held = {i: defaultdict(int, present_position=2100 + i) for i in self.ids}
        for i in self.ids:
            self.held[i][self.own_limit] = self.full
            self.held[i]["torque_enable"] = 1
        self.did: list[tuple] = []
        self.silent: set[int] = set()
        self.refuses: set[int] = set()
        self.deaf_for: dict[int, int] = {}
        self.gone = self.is_closed = False
        self.counters = {i: Counters() for i in self.ids}
        self.port = SimpleNamespace(name=f"/dev/{bus.name}")
        self.adapter_latency_ns, self.uses_sync_read = 1_000_000, True
        self.restarts: list[tuple] = []
        self.forgot = self.is_shared = False
        self.kept: tuple[str, ...] = ()
        self.written: dict[int, dict[str, int]] = {}
        self.watchdog_says: str | None = None
        self.reports: dict[int, ServoReport] = {}

    def _check(self) -> None:
        if self.gone:
            raise BusError("the line is gone", is_unplugged=True)

    def read_all(self, block, ids, patience_ns):
        self._check()
        names = [register.name for register in block.registers]
        self.did.append(("read", names[0], tuple(ids), patience_ns))
        return {i: {name: self.held[i][name] for name in names} for i in ids if i not in self.silent}

    def sync_write(self, name, values):
        self._check()
        self.did.append(("sync", name, dict(values)))
        for i, value in values.items():
            if i not in self.silent:
                self.held[i][name] = value

    def transact(self, frame, servo_id, size, timeout_ns, n_tries):
        self._check()
        self.did.append((*frame, size, timeout_ns, n_tries))
        if servo_id in self.refuses:
            raise BusError("it refuses")
        self.deaf_for[servo_id] = left = self.deaf_for.get(servo_id, 0) - 1
        if servo_id in self.silent or left >= 0:
            return None
        if frame[0] == "write":
            self.held[servo_id]["torque_enable"] = frame[3][0]
            return b""
        return bytes([self.held[servo_id]["torque_enable"]])

    def clear_watchdog(self):
        self._check()
        self.did.append(("watchdog", "clear"))

    def arm_watchdog(self, ms):
        self.did.append(("watchdog", ms))
        return self.watchdog_says

    def write_raw(self, servo_id, name, value, is_checked=True):
        self._check()
        self.did.append(("set", servo_id, name, value) + (() if is_checked else ("unchecked",)))
        if servo_id in self.silent:
            raise BusError("no answer")
        self.held[servo_id][name] = value

    def read_raw(self, servo_id, name):
        self._check()
        if servo_id in self.silent:
            raise BusError("no answer")
        return self.held[servo_id][name]

    def speed_counts(self, servo_id, ticks_s):
        return round(ticks_s)

    def read_block(self, servo_id, block):
        self.did.append(("look", servo_id))
        return {register.name: self.held[servo_id][register.name] for register in block.registers}

    def close(self):
        self.is_closed = True

    # -- the tick

    def begin(self, block, ids, deadline_ns, prefix=b"", n_retries=2, may_merge=True):
        self.did.append(("begin", tuple(ids), deadline_ns, prefix, n_retries, may_merge))
        failure = BusError("the line is gone", is_unplugged=True) if self.gone else None
        there = [] if self.gone else [i for i in ids if i not in self.silent]
        return SimpleNamespace(replies={i: self.bytes_of(block, i) for i in there}, failure=failure)

    def bytes_of(self, block, servo_id):
        data = bytearray(block.size)
        for register in block.registers:
            at = register.address - block.address
            data[at : at + register.size] = register.encode(self.held[servo_id][register.name])
        return bytes(data)

    def goal_frame(self, goals):
        return dict(goals)

    def is_plausible(self, tick):
        return 0 <= tick < 4096

    def report(self, servo_id, values):
        return self.reports.get(servo_id, ServoReport())

    def restart_words(self, servo_id):
        return f"restart {servo_id}"

    def cure(self, servo_id, faults, report):
        return f"cure {faults} {report.temperature_c} {report.voltage_v} {report.load_percent}"

    def has_restarted(self, servo_id, before, now, elapsed_ns):
        self.restarts.append((servo_id, dict(before), dict(now), elapsed_ns))
        return self.forgot

    def wire_time_ns(self, size, n_ids, n_sent):
        return 1000 * size * n_ids + 10 * n_sent

    def done(self, kind=None):
        """What was done since the last call, all of it or one kind."""
        taken, self.did = self.did, []
        return [entry for entry in taken if kind is None or entry[0] == kind]


def rescue_of(profile: Profile, clock) -> tuple[Rescue, list[Line]]:
    """A `Rescue` on lines without wires, in the profile's order."""
    rescue = Rescue(profile, {bus.name: SimpleNamespace(name=bus.name) for bus in profile.buses}, clock)
    lines = [Line(bus) for bus in profile.buses]
    rescue.buses = {bus.name: line for bus, line in zip(profile.buses, lines, strict=True)}
    return rescue, lines


def robot_of(profile: Profile, clock, say=lambda _: None) -> tuple[Robot, list[Line]]:
    """A connected `Robot` on lines without wires."""
    calibration = nominal(profile) if profile.is_calibrated_by_file else None
    ports = {bus.name: SimpleNamespace(name=bus.name) for bus in profile.buses}
    robot = Robot(profile, ports, calibration, clock, say)
    lines = [Line(bus) for bus in profile.buses]
    grippers = {joint.motor for joint in profile.joints if joint.is_gripper}
    for each, line in zip(robot._lines, lines, strict=True):
        each.line, each.health = line, LineHealth(each.bus, line, grippers)
    robot.rescue.buses = {bus.name: line for bus, line in zip(profile.buses, lines, strict=True)}
    robot._units = joint_units(profile, calibration)
    return robot, lines
