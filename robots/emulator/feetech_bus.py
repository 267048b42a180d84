"""Emulated Feetech STS servos and their line: what a packet does, byte for byte."""

from __future__ import annotations

from ..bus import feetech as protocol
from .line import Answer, Line
from .motion import Axis, MotorModel
from .servo import Servo

MODELS = {"sts3215": MotorModel(3000.0, 2400.0), "sts3250": MotorModel(2800.0, 3000.0),
          "sm8512bl": MotorModel(2000.0, 5000.0)}  # fmt: skip
CENTRE = 2048
TURN = 4096
CENTRE_COMMAND = 128
MULTI_TURN = 0x10
READABLE = 256


class FeetechServo(Servo):
    """present = encoder - homing offset, within one turn unless phase bit 4 asks for more."""

    registers = protocol.REGISTERS
    memory_size = READABLE

    def __init__(self, name: str, servo_id: int, model: str, axis: Axis, supply_v: float = 7.4) -> None:
        super().__init__(name, axis, supply_v)
        self.put("id", servo_id)
        self.stamp(model, protocol.MODELS)
        self._overload_s = 0.0
        self._tripped = False
        self._pending: tuple[int, bytes] | None = None

    @property
    def baud(self) -> int:
        code = self.get("baud")
        return protocol.BAUDS[code] if code < len(protocol.BAUDS) else 0

    @property
    def present(self) -> int:
        value = round(self.axis.position) - self.get("homing_offset")
        return value if self.get("phase") & MULTI_TURN else value % TURN

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

    def _on_torque(self, value: int) -> None:
        if value == CENTRE_COMMAND:
            offset = (round(self.axis.position) - CENTRE + TURN // 2) % TURN - TURN // 2
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
        share = self.get("torque_limit") / 1000
        if self._tripped:
            share = min(share, self.get("protective_torque") / 100)
        if self.get("operating_mode") == 1:
            self.axis.spin(dt_s, self.get("goal_velocity"))
            return
        acceleration = self.get("acceleration") * 100.0
        self.axis.drive(dt_s, self._error_ticks(), abs(self.get("goal_velocity")), acceleration, share)
        self._protect(dt_s)

    def _error_ticks(self) -> float:
        low, high, goal = self.get("min_position"), self.get("max_position"), self.get("goal_position")
        if (low, high) != (0, 0):
            goal = max(low, min(high, goal))
        exact = self.axis.position - round(self.axis.position)
        return goal - self.present - exact

    def _protect(self, dt_s: float) -> None:
        """Load above the overload torque for the protection time trips the servo to its protective torque."""
        if abs(self.axis.load) * 100 >= self.get("overload_torque") and abs(self.axis.velocity) < 30:
            self._overload_s += dt_s
        else:
            self._overload_s = max(0.0, self._overload_s - dt_s)
        if self._overload_s > self.get("protection_time") * 0.01:
            self._tripped = True

    def refresh(self, now_ns: int) -> None:
        axis = self.axis
        self.put("present_position", self.present)
        self.put("present_velocity", round(axis.velocity))
        self.put("present_load", round(axis.load * 1000))
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

    def execute(self, servo_id: int, code: int, parameters: bytes, now_ns: int) -> list[Answer]:
        if code == protocol.SYNC_READ:
            return self._sync_read(parameters, now_ns)
        if code == protocol.SYNC_WRITE:
            return self._sync_write(parameters)
        answers = []
        targets = self.servos if servo_id == protocol.BROADCAST else self.with_id(servo_id)
        for servo in sorted(targets, key=lambda s: s.id):
            answer = self._one(servo, code, parameters, now_ns)
            is_heard = servo_id != protocol.BROADCAST or code == protocol.PING
            if answer is not None and is_heard:
                answers.append(Answer(servo, servo.error, answer))
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

    def _sync_read(self, parameters: bytes, now_ns: int) -> list[Answer]:
        if len(parameters) < 3 or not self.has_sync_read:
            return []
        address, size, ids = parameters[0], parameters[1], parameters[2:]
        answers: list[Answer] = []
        for servo_id in ids:
            present = [s for s in self.with_id(servo_id) if not s.is_silent(now_ns)]
            for servo in present:
                servo.refresh(now_ns)
                answers.append(Answer(servo, servo.error, bytes(servo.memory[address : address + size])))
            if not present and self.stalls_on_missing:
                break
        return answers

    def _sync_write(self, parameters: bytes) -> list[Answer]:
        if len(parameters) < 2:
            return []
        address, size = parameters[:2]
        for at in range(2, len(parameters) - size, size + 1):
            for servo in self.with_id(parameters[at]):
                if not servo.is_mute:
                    servo.write(address, parameters[at + 1 : at + 1 + size])
        return []
