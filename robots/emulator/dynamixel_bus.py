"""Emulated Dynamixel X-series servos and their line: protocol 2.0, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from ..bus import dynamixel as protocol
from ..profile import Bus, Motor
from .line import Line, ServoAnswer
from .motion import Axis, MotorModel
from .servo import GOAL_ENERGISES, EmulatedServo, model_number

MODELS = {
    "xl430-w250": MotorModel(265 * protocol.VELOCITY_UNIT_TICKS_S, 1000.0),
    "xm430-w350": MotorModel(200 * protocol.VELOCITY_UNIT_TICKS_S, 3200.0),
    "xm540-w270": MotorModel(128 * protocol.VELOCITY_UNIT_TICKS_S, 5500.0),
    "xl330-m288": MotorModel(445 * protocol.VELOCITY_UNIT_TICKS_S, 1750.0),
}
DEFAULTS = {
    "xl430-w250": {"max_temperature": 72, "velocity_limit": 265, "position_p": 640, "position_d": 4000,
                   "min_voltage": 60, "max_voltage": 140},
    "xm430-w350": {"current_limit": 1193, "velocity_limit": 200},
    "xm540-w270": {"current_limit": 2047, "velocity_limit": 128},
    "xl330-m288": {"max_temperature": 70, "velocity_limit": 445, "current_limit": 1750, "position_p": 400,
                   "shutdown": 53, "min_voltage": 35, "max_voltage": 70},
}  # fmt: skip
MEMORY = 700
POSITION_MODES = (3, 4, 5)
NO_ID = 255
INDIRECT_ADDRESS, INDIRECT_DATA, N_INDIRECT = 168, 224, protocol.N_INDIRECT
REVERSE = 1
TORQUE_BY_GOAL = 8
LEGAL = {"operating_mode": (0, 1, 3, 4, 5, 16), "baud": range(8), "torque_enable": (0, 1), "id": range(253),
         "response_level": range(3), "pwm_limit": range(protocol.FULL_PWM + 1)}  # fmt: skip
LIMITED_BY = {"goal_pwm": "pwm_limit", "goal_current": "current_limit", "goal_velocity": "velocity_limit",
              "profile_velocity": "velocity_limit"}  # fmt: skip
"""A register of the host's -> the owner's, which it may not exceed."""
GOALS = ("goal_pwm", "goal_current", "goal_velocity", "goal_position")
HALL_SENSOR = 0x02


class Orders(NamedTuple):
    """Registers as the mechanics need them. is_turned: the shaft counts against the registers' direction."""

    torque_on: bool
    mode: int
    watchdog: int
    goal: int
    offset: int
    is_turned: bool
    speed: float
    acceleration: float
    strength: float
    least_v: int
    most_v: int
    most_c: int
    shutdown: int


class DynamixelServo(EmulatedServo):
    """present = encoder (negated when reversed) + homing offset. The axis counts in the direction that the
    profile's drive mode gives, so that register 10 with that value leaves the sign alone."""

    protocol = protocol
    registers = protocol.REGISTERS
    memory_size = MEMORY
    rated_v = 12.0
    offset_sign = 1
    error_bits: ClassVar[Mapping[str, int]] = {
        "overload": protocol.OVERLOAD, "overheat": protocol.OVERHEAT, "voltage": protocol.VOLTAGE,
        "sensor": HALL_SENSOR, "overcurrent": protocol.SHOCK,
    }  # fmt: skip
    firmware_register = "firmware"
    firmwares = frozenset((GOAL_ENERGISES, "no-fast-read"))
    limits = ("pwm_limit", "goal_pwm", protocol.FULL_PWM)

    def __init__(
        self,
        name: str,
        servo_id: int,
        model: str,
        axis: Axis,
        supply_v: float = rated_v,
        drive_mode: int = 0,
    ) -> None:
        self._design = drive_mode
        super().__init__(name, axis, supply_v)
        self.burn("model_number", model_number(model, protocol.MODELS))
        self.put("id", servo_id)
        self.put("drive_mode", drive_mode)
        for register, value in DEFAULTS.get(model, {}).items():
            self.put(register, value)
        self._hardware = 0
        self._overload_s = 0.0
        self._pending: tuple[int, bytes] | None = None
        self._silent_s = 0.0
        self.power_up(0)

    @classmethod
    def born(cls, motor: Motor, axis: Axis) -> DynamixelServo:
        servo = cls(motor.name, motor.id, motor.model, axis, drive_mode=motor.drive_mode)
        servo.put("return_delay", 0)
        return servo

    def configure(self, motor: Motor, bus: Bus) -> None:
        """A shadow obeys its partner, and says the same tick."""
        super().configure(motor, bus)
        for partner in bus.motors:
            if partner.name == motor.shadow_of:
                self.put("secondary_id", partner.id)

    @property
    def orders(self) -> Orders:
        if self._orders is None:
            self._orders = Orders(
                self.torque_on,
                self.get("operating_mode"),
                self.get("bus_watchdog"),
                self.get("goal_position"),
                self.get("homing_offset"),
                bool(self.get("drive_mode") & REVERSE) != bool(self._design & REVERSE),
                self.get("profile_velocity") * protocol.VELOCITY_UNIT_TICKS_S,
                self.get("profile_acceleration") * protocol.ACCELERATION_UNIT_TICKS_S2,
                self.strength,
                self.get("min_voltage"),
                self.get("max_voltage"),
                self.get("max_temperature"),
                self.get("shutdown"),
            )
        orders: Orders = self._orders
        return orders

    @property
    def present(self) -> int:
        value = round(self.axis.position)
        return (-value if self.orders.is_turned else value) + self.orders.offset

    @property
    def error(self) -> int:
        """The alert bit of the ERR byte."""
        return protocol.ALERT if self.hardware_error else 0

    @property
    def hardware_error(self) -> int:
        """Register 70: what tripped stays until a reboot, what is only measured comes and goes."""
        bits, orders = self._hardware | self.extra_error, self.orders
        if not orders.least_v <= round(self.voltage_v * 10) <= orders.most_v:
            bits |= protocol.VOLTAGE
        if self.axis.temperature_c >= orders.most_c:
            bits |= protocol.OVERHEAT
        return bits

    @property
    def strength(self) -> float:
        """What goal PWM (or goal current in mode 5) leaves."""
        share = min(abs(self.get("goal_pwm")), self.get("pwm_limit")) / protocol.FULL_PWM
        if self.get("operating_mode") == 5:
            full = DEFAULTS.get(self._model_name(), {}).get("current_limit", 1193)
            share = min(share, max(self.get("goal_current"), 0) / full)
        return share

    def _model_name(self) -> str:
        number = self.get("model_number")
        return next((name for name, n in protocol.MODELS.items() if n == number), "")

    def power_up(self, now_ns: int) -> None:
        super().power_up(now_ns)
        self._hardware, self._overload_s, self._pending = 0, 0.0, None
        self.put("goal_position", self.present)
        self.put("goal_current", self.get("current_limit"))
        self.put("goal_pwm", self.get("pwm_limit"))

    def trip(self) -> None:
        """Shuts down, if register 63 says so, until it is rebooted."""
        self._hardware |= protocol.OVERLOAD

    def energise_by_goals(self) -> None:
        self.put("drive_mode", self.get("drive_mode") | TORQUE_BY_GOAL)

    # ---- reading and writing, with indirection ----

    def load(self, address: int, size: int) -> bytes:
        return bytes(self.memory[self._real(a)] for a in range(address, address + size))

    def _real(self, address: int) -> int:
        index = address - INDIRECT_DATA
        if not 0 <= index < N_INDIRECT:
            return min(address, MEMORY - 1)
        at = INDIRECT_ADDRESS + 2 * index
        target = self.memory[at] | self.memory[at + 1] << 8
        return min(target, MEMORY - 1)

    def write(self, address: int, data: bytes) -> int:
        """Error code, 0 when done. Nothing is written unless all of it may be."""
        if INDIRECT_DATA <= address < INDIRECT_DATA + N_INDIRECT and self._real(address) != address:
            codes = [self.write(self._real(address + k), data[k : k + 1]) for k in range(len(data))]
            return next((code for code in codes if code), 0)
        touched = self.overlaps(address, len(data))
        if not touched or address + len(data) > MEMORY:
            return protocol.DATA_RANGE
        for r in touched:
            if code := self._refusal(r.name, r.area, address, data):
                return code
        self.store(address, data)
        for r in touched:
            if r.area == "eeprom":
                first, last = max(r.address, address), min(r.end, address + len(data))
                self.flash[first:last] = self.memory[first:last]
            self._on_written(r.name)
        return 0

    def _refusal(self, name: str, area: str, address: int, data: bytes) -> int:
        if area == "read" or (area == "eeprom" and self.torque_on):
            return protocol.ACCESS
        r = self.registers[name]
        at = r.address - address
        if at < 0 or at + r.size > len(data):
            return 0  # part of a register, written byte by byte
        value = r.decode(data[at:])
        if name in LEGAL and value not in LEGAL[name]:
            return protocol.DATA_RANGE
        if name == "torque_enable" and value and self._shut_down():
            return protocol.RESULT_FAIL
        if name in GOALS and self.get("bus_watchdog") == protocol.WATCHDOG_FIRED:
            return protocol.DATA_RANGE
        if name == "goal_position" and self.get("operating_mode") == 3:
            low, high = self.get("min_position"), self.get("max_position")
            return 0 if low <= value <= high else protocol.DATA_LIMIT
        if name in LIMITED_BY and abs(value) > self.get(LIMITED_BY[name]):
            return protocol.DATA_LIMIT
        return protocol.DATA_LIMIT if name == "bus_watchdog" and value > 127 else 0

    def _on_written(self, name: str) -> None:
        if name == "goal_position" and self.get("drive_mode") & TORQUE_BY_GOAL and not self._shut_down():
            self.put("torque_enable", 1)
        elif name == "torque_enable" and self.torque_on:
            self.put("goal_position", self.present)
        elif name == "operating_mode":
            self.put("goal_current", self.get("current_limit"))
            self.put("goal_pwm", self.get("pwm_limit"))

    def register_write(self, address: int, data: bytes) -> int:
        self._pending = (address, data)
        return 0

    def act(self) -> int:
        pending, self._pending = self._pending, None
        return self.write(*pending) if pending is not None else 0

    def heard(self) -> None:
        """Any instruction on the line feeds the bus watchdog."""
        self._silent_s = 0.0

    # ---- mechanics ----

    def _shut_down(self) -> int:
        return self.hardware_error & self.orders.shutdown

    def step(self, dt_s: float) -> None:
        if cut := self._shut_down():
            self._hardware |= cut
            self.put("torque_enable", 0)
        self._silent_s += dt_s  # of steps: while this process is held up, the servos' time stands still, too
        orders = self.orders
        if orders.torque_on and 0 < orders.watchdog <= 127 and self._silent_s > orders.watchdog * 0.02:
            self.put("bus_watchdog", protocol.WATCHDOG_FIRED)
            self.put("goal_position", self.present)
            orders = self.orders
        if not orders.torque_on:
            self.axis.coast(dt_s)
        elif orders.mode in POSITION_MODES:
            self._drive(dt_s, orders)
        elif orders.mode == 1:
            self.axis.spin(dt_s, self.get("goal_velocity") * protocol.VELOCITY_UNIT_TICKS_S)
        else:
            self.axis.coast(dt_s)

    def _drive(self, dt_s: float, orders: Orders) -> None:
        goal = orders.goal - orders.offset
        error = (-goal if orders.is_turned else goal) - self.axis.position
        self.axis.drive(dt_s, error, orders.speed, orders.acceleration, orders.strength)
        if abs(self.axis.load) > 0.9 and abs(self.axis.velocity) < 30:
            self._overload_s += dt_s
        else:
            self._overload_s = 0.0
        if self._overload_s > 2.0:
            self._hardware |= protocol.OVERLOAD

    def refresh(self, now_ns: int) -> None:
        axis = self.axis
        self.put("present_position", self.said_position)
        self.put("present_velocity", round(axis.velocity / protocol.VELOCITY_UNIT_TICKS_S))
        self.put("present_current", round(axis.load * axis.model.max_current_ma / 2.69))
        self.put("present_pwm", round(axis.load * protocol.FULL_PWM))
        self.put("present_voltage", round(self.voltage_v * 10))
        self.put("present_temperature", round(axis.temperature_c))
        self.put("moving", int(abs(axis.velocity) > 5))
        self.put("status", self.hardware_error)
        self.put("realtime_tick", (now_ns - self.boot_ns) // 1_000_000 % 32768)
        self.put("registered_instruction", int(self._pending is not None))


class DynamixelLine(Line):
    """A line of X-series servos. A servo obeys writes to its secondary id and never answers for it."""

    protocol = protocol
    servos: list[DynamixelServo]

    def frame(self, answers: Sequence[ServoAnswer], servo_id: int) -> bytes:
        if answers[0].is_fast:
            return protocol.fast_status([(a.servo.id, a.error, a.data) for a in answers])
        return super().frame(answers, servo_id)

    def execute(self, servo_id: int, code: int, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        for servo in self.servos:
            servo.heard()
        many = {
            protocol.SYNC_READ: self._sync_read,
            protocol.FAST_SYNC_READ: self._fast_sync_read,
            protocol.BULK_READ: self._bulk_read,
            protocol.SYNC_WRITE: self._sync_write,
            protocol.BULK_WRITE: self._bulk_write,
        }.get(code)
        if many is not None:
            return many(parameters, now_ns) or []
        answers = []
        is_broadcast = servo_id == protocol.BROADCAST
        targets = self.hearing if is_broadcast else self._obeying(servo_id)
        for servo in sorted(targets, key=lambda s: s.id):
            if servo.is_silent(now_ns):
                continue
            answer = self._one(servo, code, parameters, now_ns)
            is_own = servo.id == servo_id or (is_broadcast and code == protocol.PING)
            if answer is not None and is_own:
                answers.append(answer)
        return answers

    def _obeying(self, servo_id: int) -> list[DynamixelServo]:
        secondary = [
            s for s in self.servos if s.get("secondary_id") == servo_id != NO_ID and s.id != servo_id
        ]
        return self.with_id(servo_id) + [s for s in secondary if self._hears(s)]

    def _one(self, servo: DynamixelServo, code: int, parameters: bytes, now_ns: int) -> ServoAnswer | None:
        level = servo.get("response_level")
        size = len(parameters)
        if code == protocol.PING:
            servo.refresh(now_ns)
            data = servo.load(0, 2) + servo.load(6, 1)
            return ServoAnswer(servo, servo.error, data)
        if code == protocol.READ and size == 4:
            return self._read(servo, parameters, now_ns) if level >= 1 else None
        error = 0
        if code in (protocol.WRITE, protocol.REG_WRITE) and size >= 3:
            address = parameters[0] | parameters[1] << 8
            error = (servo.write if code == protocol.WRITE else servo.register_write)(address, parameters[2:])
        elif code == protocol.ACTION:
            error = servo.act()
        elif code == protocol.REBOOT:
            servo.power_up(now_ns)
        elif code == protocol.CLEAR:
            servo.axis.jump(-(servo.axis.position // protocol.TICKS_PER_TURN) * protocol.TICKS_PER_TURN)
        else:
            error = protocol.BAD_INSTRUCTION if code not in protocol.INSTRUCTIONS else protocol.DATA_LENGTH
        return ServoAnswer(servo, servo.error | error, b"") if level == 2 else None

    def _read(self, servo: DynamixelServo, parameters: bytes, now_ns: int) -> ServoAnswer:
        address, size = parameters[0] | parameters[1] << 8, parameters[2] | parameters[3] << 8
        if address + size > MEMORY:
            return ServoAnswer(servo, servo.error | protocol.DATA_RANGE, b"")
        servo.refresh(now_ns)
        return ServoAnswer(servo, servo.error, servo.load(address, size))

    def _readable(self, servo_id: int, now_ns: int) -> list[DynamixelServo]:
        """Who answers a read of several: the return level may forbid it (0)."""
        found = self.with_id(servo_id)
        return [s for s in found if not s.is_silent(now_ns) and s.get("response_level") > 0]

    def _sync_read(self, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        answers: list[ServoAnswer] = []
        for servo_id in parameters[4:]:
            servos = self._readable(servo_id, now_ns)
            answers += [self._read(s, parameters[:4], now_ns) for s in servos]
            if not servos and self.stalls_on_missing:
                break
        return answers

    def _fast_sync_read(self, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        """One merged answer; a missing servo leaves it cut short, which no host can use."""
        answers = self._sync_read(parameters, now_ns)
        if len(answers) != len(parameters[4:]) or not all(a.servo.has_fast_read for a in answers):
            return []
        return [ServoAnswer(a.servo, a.error, a.data, is_fast=True) for a in answers]

    def _bulk_read(self, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        answers: list[ServoAnswer] = []
        for at in range(0, len(parameters) - 4, 5):
            servos = self._readable(parameters[at], now_ns)
            answers += [self._read(s, parameters[at + 1 : at + 5], now_ns) for s in servos]
        return answers

    def _sync_write(self, parameters: bytes, now_ns: int) -> None:
        if len(parameters) < 5:
            return
        address, size = parameters[0] | parameters[1] << 8, parameters[2] | parameters[3] << 8
        for at in range(4, len(parameters) - size, size + 1):
            self._write_to(parameters[at], address, parameters[at + 1 : at + 1 + size], now_ns)

    def _bulk_write(self, parameters: bytes, now_ns: int) -> None:
        at = 0
        while at + 5 <= len(parameters):
            address, size = (
                parameters[at + 1] | parameters[at + 2] << 8,
                parameters[at + 3] | parameters[at + 4] << 8,
            )
            self._write_to(parameters[at], address, parameters[at + 5 : at + 5 + size], now_ns)
            at += 5 + size

    def _write_to(self, servo_id: int, address: int, data: bytes, now_ns: int) -> None:
        for servo in self._obeying(servo_id):
            if not servo.is_silent(now_ns):
                servo.write(address, data)
