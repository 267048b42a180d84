"""What emulated servos of both families share: register memory with its rules, power, and a shaft.

EEPROM lives twice: `flash` is what survives the power, `memory` what the servo works with. A servo's own
family decides what a write does (`feetech_bus`, `dynamixel_bus`), and says in data what differs.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

from edgevla.errors import UsageError

from ..bus.registers import Register
from ..calibration import MotorCalibration
from ..profile import Bus, Motor
from .motion import Axis

SUPPLY_OHM = 0.06
"""Supply and cables. Nine servos at full load pull a 12 V arm to 10.7 V: above what stops a run."""
BOOT_NS = 50_000_000
GOAL_ENERGISES = "goal-energises"
FIRMWARES = {
    GOAL_ENERGISES: "writing a goal switches torque on, as is reported of the STS3215; a Dynamixel's drive mode can",
    "no-sync-read": "Feetech before 3.10: sync reads are not answered",
    "no-fast-read": "Dynamixel before 45: fast sync reads are not answered",
}
"""What else a servo's firmware may be like than what the emulator is born with."""


class EmulatedServo:
    """One servo. `name`: of the motor in the profile. Times are the emulator's clock in ns."""

    protocol: ModuleType
    registers: ClassVar[Mapping[str, Register]]
    memory_size: ClassVar[int]
    rated_v: ClassVar[float]
    """Of the supply that its arms have."""
    offset_sign: ClassVar[int]
    """present position = encoder + this * homing offset."""
    error_bits: ClassVar[Mapping[str, int]]
    """Name of a fault -> the bit by which the servo reports it."""
    firmware_register: ClassVar[str]
    firmwares: ClassVar[frozenset[str]]
    limits: ClassVar[tuple[str, str, int]]
    """The owner's torque limit (EEPROM), the host's (RAM), and what both hold at full torque."""

    def __init__(self, name: str, axis: Axis, supply_v: float) -> None:
        self.name, self.axis, self.supply_v = name, axis, supply_v
        self.memory = bytearray(self.memory_size)
        self.flash = bytearray(self.memory_size)
        self._values: dict[str, int] = {}
        """Registers of `memory` that were decoded."""
        self._orders: Any = None
        """What the mechanics, 500 times a second, need of the registers that others write; None: they were written."""
        self.extra_error = 0
        """Error bits that a fault holds on."""
        self.is_mute = False
        self.has_sync_read = self.has_fast_read = True
        self.jitter_ticks = 0
        """By so much, at most, every reading of the position is off."""
        self.voltage_v = supply_v
        self.boot_ns = 0
        self.n_power_ups = 0
        self._noise = random.Random(name)
        for r in self.registers.values():
            self.flash[r.address : r.end] = r.encode(r.default)
        self.power_up(0)

    @classmethod
    def born(cls, motor: Motor, axis: Axis) -> EmulatedServo:
        """A new servo of this family, as the profile names it."""
        raise NotImplementedError

    def calibrate(self, entry: MotorCalibration, baud: int, true_tick: int) -> None:
        """Speed, offset and limits as a calibrated arm's servo holds them, and its shaft at `true_tick`."""
        self.put("baud", self.protocol.BAUDS.index(baud))
        self.put("homing_offset", entry.homing_offset)
        self.put("min_position", entry.range_min)
        self.put("max_position", entry.range_max)
        self.axis.position = float(self.shaft_tick(true_tick, entry))

    def shaft_tick(self, true_tick: float, entry: MotorCalibration) -> float:
        """Where the bare encoder is when a servo that is calibrated so says `true_tick`."""
        return true_tick - self.offset_sign * entry.homing_offset

    def configure(self, motor: Motor, bus: Bus) -> None:
        """Registers as a run leaves them."""
        for name, value in motor.settings:
            self.put(name, value)

    # ---- memory ----

    def get(self, name: str) -> int:
        """A register's value as the servo holds it."""
        value = self._values.get(name)
        if value is None:
            r = self.registers[name]
            value = self._values[name] = r.decode(bytes(self.memory[r.address : r.end]))
        return value

    def put(self, name: str, value: int) -> None:
        """Sets a register as the servo itself does, without the rules for writers; EEPROM persists."""
        r = self.registers[name]
        low, high = r.limits
        value = max(low, min(high, int(value)))
        if r.area != "eeprom" and self._values.get(name) == value:
            return
        data = r.encode(value)
        self.memory[r.address : r.end] = data
        self._values[name] = value
        if r.area != "read":
            self._orders = None
        if r.area == "eeprom":
            self.flash[r.address : r.end] = data

    def burn(self, name: str, value: int) -> None:
        """Sets what a servo is made with; no power failure changes it."""
        self.put(name, value)
        r = self.registers[name]
        self.flash[r.address : r.end] = self.memory[r.address : r.end]

    def store(self, address: int, data: bytes | bytearray) -> None:
        """Overwrites memory as a writer does."""
        self.memory[address : address + len(data)] = data
        self._values.clear()
        self._orders = None

    @classmethod
    @functools.cache
    def overlaps(cls, address: int, size: int) -> Sequence[Register]:
        """The registers that share bytes with a range."""
        return [r for r in cls.registers.values() if r.address < address + size and address < r.end]

    # ---- what it is ----

    @property
    def id(self) -> int:
        """The one that it answers to."""
        return self.get("id")

    @property
    def baud(self) -> int:
        code, bauds = self.get("baud"), self.protocol.BAUDS
        return int(bauds[code]) if code < len(bauds) else 0

    @property
    def torque_on(self) -> bool:
        return self.get("torque_enable") == 1

    @property
    def present(self) -> int:
        """The position that the servo goes by, in the frame of its goal."""
        raise NotImplementedError

    @property
    def said_position(self) -> int:
        """What the present-position register says: `present`, with the reading's noise."""
        n = self.jitter_ticks
        return self.present + (self._noise.randint(-n, n) if n else 0)

    @property
    def strength(self) -> float:
        """Share (0..1) of full torque that its limits leave it."""
        raise NotImplementedError

    @property
    def error(self) -> int:
        """The ERR byte's bits without an instruction's own."""
        raise NotImplementedError

    def is_silent(self, now_ns: int) -> bool:
        """Whether it does not answer: told so, or starting."""
        return self.is_mute or (self.n_power_ups > 1 and now_ns < self.boot_ns + BOOT_NS)

    # ---- what happens to it ----

    def power_up(self, now_ns: int) -> None:
        """After the power came (back): EEPROM from flash, RAM at its defaults, torque off."""
        self.store(0, self.flash)
        self.boot_ns = now_ns
        self.n_power_ups += 1

    def hold(self) -> None:
        """Torque on where it is."""
        self.put("goal_position", self.present)
        self.put("torque_enable", 1)

    def trip(self) -> None:
        """Its own protection acts, as after too much load."""
        raise NotImplementedError

    def limit(self, share: float) -> None:
        """Its owner has set a torque limit, before the power came."""
        own, hosts, full = self.limits
        self.put(own, round(share * full))
        self.put(hosts, round(share * full))

    def take_firmware(self, firmware: str) -> None:
        """
        Raises:
            UsageError: servos of this family have no such firmware.
        """
        if firmware not in self.firmwares:
            raise UsageError(
                f"{self.name} cannot have the firmware '{firmware}'; known for it: {', '.join(sorted(self.firmwares))}"
            )
        if firmware == GOAL_ENERGISES:
            self.energise_by_goals()
        elif firmware == "no-sync-read":
            self.has_sync_read = False
            self.burn(self.firmware_register, 9)
        else:
            self.has_fast_read = False
            self.burn(self.firmware_register, 44)

    def energise_by_goals(self) -> None:
        """From now on a goal that is written switches torque on."""
        raise NotImplementedError

    def step(self, dt_s: float) -> None:
        raise NotImplementedError

    def refresh(self, now_ns: int) -> None:
        """Brings the read-only registers up to date."""
        raise NotImplementedError


def model_number(model: str, known: Mapping[str, int]) -> int:
    """Of a known name, or of `model 1234`, as profiles call a servo of which they name the number only."""
    return known[model] if model in known else int(model.split()[-1])
