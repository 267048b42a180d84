"""Emulated Feetech STS servos and their line: what a packet does, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..bus import feetech as protocol
from ..profile import Bus, Motor
from .line import Line, ServoAnswer
from .motion import Axis, MotorModel
from .servo import GOAL_ENERGISES, EmulatedServo, model_number

MODELS = {"sts3215": MotorModel(3000.0, 2400.0), "sts3250": MotorModel(2800.0, 3000.0),
          "sm8512bl": MotorModel(2000.0, 5000.0)}  # fmt: skip
CENTRE = 2048
TURN = 4096
CENTRE_COMMAND = 128
READABLE = 256
MOTOR_REVERSED, FINE_SPEED, ZERO_IS_FASTEST, MULTI_TURN, FEEDBACK_REVERSED = 0x01, 0x04, 0x08, 0x10, 0x80
"""Bits of the phase register (18), by the vendor's table."""
COARSE_SPEED = 50
"""Steps/s of one count of a speed register without FINE_SPEED."""
ANGLE_SENSOR = 0x02


class FeetechServo(EmulatedServo):
    """present = encoder - homing offset, within one turn unless phase bit 4 asks for more.

    Phase bits 0 and 7 together make a servo that turns and counts the other way. One of them alone drives it away from
    its goal, as an owner sees it who has set only one.
    """

    protocol = protocol
    registers = protocol.REGISTERS
    memory_size = READABLE
    rated_v = 7.4
    offset_sign = -1
    error_bits: ClassVar[Mapping[str, int]] = {
        "overload": protocol.OVERLOAD, "overheat": protocol.OVERHEAT, "voltage": protocol.VOLTAGE,
        "sensor": ANGLE_SENSOR, "overcurrent": protocol.OVERCURRENT,
    }  # fmt: skip
    firmware_register = "firmware_minor"
    firmwares = frozenset((GOAL_ENERGISES, "no-sync-read"))
    limits = ("max_torque", "torque_limit", 1000)

    def __init__(self, name: str, servo_id: int, model: str, axis: Axis, supply_v: float = rated_v) -> None:
        super().__init__(name, axis, supply_v)
        self.put("id", servo_id)
        self.burn("model_number", model_number(model, protocol.MODELS))
        self._overload_s = 0.0
        self._tripped = False
        self._is_energised_by_goals = False
        self._pending: tuple[int, bytes] | None = None

    @classmethod
    def born(cls, motor: Motor, axis: Axis) -> FeetechServo:
        return cls(motor.name, motor.id, motor.model, axis)

    def configure(self, motor: Motor, bus: Bus) -> None:
        self.put("max_acceleration", 254)
        self.put("acceleration", 254)
        super().configure(motor, bus)

    @property
    def present(self) -> int:
        value = self._counted(round(self.axis.position)) - self.get("homing_offset")
        return value if self.get("phase") & MULTI_TURN else value % TURN

    def _counted(self, tick: int) -> int:
        return TURN - tick if self.get("phase") & FEEDBACK_REVERSED else tick

    @property
    def strength(self) -> float:
        """By register 48 alone: 16 is copied there at power-up, and what a host writes above that is obeyed, as far as
        is known."""
        share = min(self.get("torque_limit"), 1000) / 1000
        return min(share, self.get("protective_torque") / 100) if self._tripped else share

    @property
    def error(self) -> int:
        """The ERR byte."""
        bits = self.extra_error
        if not self.get("min_voltage") <= round(self.voltage_v * 10) <= self.get("max_voltage"):
            bits |= protocol.VOLTAGE
        if self.axis.temperature_c >= self.get("max_temperature"):
            bits |= protocol.OVERHEAT
        return bits | (protocol.OVERLOAD if self._tripped else 0)

    def power_up(self, now_ns: int) -> None:
        super().power_up(now_ns)
        self._tripped, self._overload_s, self._pending = False, 0.0, None
        self.put("torque_limit", self.get("max_torque"))
        self.put("lock", 1)
        self.put("goal_position", self.present)

    def trip(self) -> None:
        """Pulls with its protective torque until torque is enabled again."""
        self._tripped = True

    def energise_by_goals(self) -> None:
        self._is_energised_by_goals = True

    def write(self, address: int, data: bytes) -> None:
        """A WRITE: read-only bytes stay, EEPROM persists only when unlocked."""
        for r in self.overlaps(address, len(data)):
            if r.area == "read":
                continue
            first, last = max(r.address, address), min(r.end, address + len(data))
            piece = data[first - address : last - address]
            self.store(first, piece)
            if r.area == "eeprom" and self.get("lock") == 0:
                self.flash[first:last] = piece
            if r.name == "torque_enable":
                self._on_torque(piece[0])
            elif r.name == "goal_position" and self._is_energised_by_goals:
                self.put("torque_enable", 1)

    def _on_torque(self, value: int) -> None:
        if value == CENTRE_COMMAND:
            counted = self._counted(round(self.axis.position))
            offset = (counted - CENTRE + TURN // 2) % TURN - TURN // 2
            self.put("homing_offset", max(-2047, min(2047, offset)))
            self.put("torque_enable", 0)
        elif value == 1:
            self._tripped, self._overload_s = False, 0.0

    def register_write(self, address: int, data: bytes) -> None:
        self._pending = (address, data)

    def act(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.write(*pending)

    def step(self, dt_s: float) -> None:
        # ERR conditions that register 19 lists cut the torque.
        cuts = self.error & self.get("unload_condition") & ~protocol.OVERLOAD
        if not self.torque_on or cuts:
            self.axis.coast(dt_s)
            return
        phase = self.get("phase")
        speed = abs(self.get("goal_velocity")) * (1 if phase & FINE_SPEED else COARSE_SPEED)
        if self.get("operating_mode") == 1:
            forward = (self.get("goal_velocity") < 0) == bool(phase & MOTOR_REVERSED)
            self.axis.spin(dt_s, speed if forward else -speed)
            return
        error, acceleration = self._error_ticks(phase), self.get("acceleration") * 100.0
        if not speed and not phase & ZERO_IS_FASTEST:
            error = 0.0  # told to go there at no speed, it holds on to where it is
        self.axis.drive(dt_s, error, speed, acceleration, self.strength)
        self._protect(dt_s)

    def _error_ticks(self, phase: int) -> float:
        """Of the shaft, in the direction in which the motor takes what the encoder counts."""
        low, high, goal = self.get("min_position"), self.get("max_position"), self.get("goal_position")
        if (low, high) != (0, 0):
            goal = max(low, min(high, goal))
        error = goal - self.present
        exact = self.axis.position - round(self.axis.position)
        return (-error if phase & MOTOR_REVERSED else error) - exact

    def _protect(self, dt_s: float) -> None:
        """Load above the overload torque for the protection time trips the servo to its protective torque."""
        if abs(self.axis.load) * 100 >= self.get("overload_torque") and abs(self.axis.velocity) < 30:
            self._overload_s += dt_s
        else:
            self._overload_s = max(0.0, self._overload_s - dt_s)
        if self._overload_s > self.get("protection_time") * 0.01:
            self._tripped = True

    def refresh(self, now_ns: int) -> None:
        axis, phase = self.axis, self.get("phase")
        velocity = -axis.velocity if phase & FEEDBACK_REVERSED else axis.velocity
        load = -axis.load if phase & MOTOR_REVERSED else axis.load
        self.put("present_position", self.said_position)
        self.put("present_velocity", round(velocity / (1 if phase & FINE_SPEED else COARSE_SPEED)))
        self.put("present_load", round(load * 1000))
        self.put("present_voltage", round(self.voltage_v * 10))
        self.put("present_temperature", round(axis.temperature_c))
        self.put("present_current", round(axis.current_ma / 6.5))
        self.put("moving", int(abs(axis.velocity) > 5))
        self.put("async_write", int(self._pending is not None))
        self.put("status", self.error)
        self.put("goal_position_mirror", self.memory[42] | self.memory[43] << 8)


class FeetechLine(Line):
    """A line of STS servos."""

    protocol = protocol
    servos: list[FeetechServo]

    def execute(self, servo_id: int, code: int, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        if code == protocol.SYNC_READ:
            return self._sync_read(parameters, now_ns)
        if code == protocol.SYNC_WRITE:
            return self._sync_write(parameters, now_ns)
        answers = []
        targets = self.hearing if servo_id == protocol.BROADCAST else self.with_id(servo_id)
        for servo in sorted(targets, key=lambda s: s.id):
            answer = self._one(servo, code, parameters, now_ns)
            is_heard = servo_id != protocol.BROADCAST or code == protocol.PING
            if answer is not None and is_heard:
                answers.append(ServoAnswer(servo, servo.error, answer))
        return answers

    def _one(self, servo: FeetechServo, code: int, parameters: bytes, now_ns: int) -> bytes | None:
        """Data of the answer, None for silence."""
        if servo.is_silent(now_ns):
            return None
        acknowledges = servo.get("response_level") == 1
        if code == protocol.PING:
            return b""
        if code == protocol.READ and len(parameters) == 2:
            servo.refresh(now_ns)
            return bytes(servo.memory[parameters[0] : parameters[0] + parameters[1]])
        if code in (protocol.WRITE, protocol.REG_WRITE) and len(parameters) >= 2:
            apply = servo.write if code == protocol.WRITE else servo.register_write
            apply(parameters[0], parameters[1:])
            return b"" if acknowledges else None
        if code == protocol.ACTION:
            servo.act()
            return b"" if acknowledges else None
        return None

    def _sync_read(self, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        if len(parameters) < 3:
            return []
        address, size, ids = parameters[0], parameters[1], parameters[2:]
        answers: list[ServoAnswer] = []
        for servo_id in ids:
            present = [s for s in self.with_id(servo_id) if s.has_sync_read and not s.is_silent(now_ns)]
            for servo in present:
                servo.refresh(now_ns)
                answers.append(ServoAnswer(servo, servo.error, bytes(servo.memory[address : address + size])))
            if not present and self.stalls_on_missing:
                break
        return answers

    def _sync_write(self, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        if len(parameters) < 2:
            return []
        address, size = parameters[:2]
        for at in range(2, len(parameters) - size, size + 1):
            for servo in self.with_id(parameters[at]):
                if not servo.is_silent(now_ns):
                    servo.write(address, parameters[at + 1 : at + 1 + size])
        return []
