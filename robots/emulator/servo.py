"""What emulated servos of both families share: register memory with its rules, power, and a shaft.

EEPROM lives twice: `flash` is what survives the power, `memory` what the servo works with. A servo's own
family decides what a write does (`feetech_bus`, `dynamixel_bus`).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..bus.registers import Register
from .motion import Axis

SUPPLY_OHM = 0.06
"""Supply and cables. Nine servos at full load pull a 12 V arm to 10.7 V: above what stops a run."""
BOOT_NS = 50_000_000


class Servo:
    """One servo. `name`: of the motor in the profile. Times are the emulator's clock in ns."""

    registers: Mapping[str, Register]
    memory_size: int

    def __init__(self, name: str, axis: Axis, supply_v: float) -> None:
        self.name, self.axis, self.supply_v = name, axis, supply_v
        self.memory = bytearray(self.memory_size)
        self.flash = bytearray(self.memory_size)
        self._values: dict[str, int] = {}
        """Registers of `memory` that were decoded; the mechanics read dozens of them 500 times a second."""
        self.extra_error = 0
        """Error bits that a fault holds on."""
        self.is_mute = False
        self.voltage_v = supply_v
        self.boot_ns = 0
        self.n_power_ups = 0
        for r in self.registers.values():
            self.flash[r.address : r.end] = r.encode(r.default)
        self.power_up(0)

    def get(self, name: str) -> int:
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
        if r.area == "eeprom":
            self.flash[r.address : r.end] = data

    def stamp(self, model: str, known: Mapping[str, int]) -> None:
        """Says for good which model it is: a known name, or `model 1234` of a profile that names its number."""
        self.put("model_number", known[model] if model in known else int(model.split()[-1]))
        r = self.registers["model_number"]
        self.flash[r.address : r.end] = self.memory[r.address : r.end]

    def store(self, address: int, data: bytes | bytearray) -> None:
        """Overwrites memory as a writer does."""
        self.memory[address : address + len(data)] = data
        self._values.clear()

    @property
    def id(self) -> int:
        return self.get("id")

    @property
    def baud(self) -> int:
        raise NotImplementedError

    @property
    def torque_on(self) -> bool:
        return self.get("torque_enable") == 1

    @property
    def present(self) -> int:
        """What the present-position register says."""
        raise NotImplementedError

    def power_up(self, now_ns: int) -> None:
        """After the power came (back): EEPROM from flash, RAM at its defaults, torque off."""
        self.store(0, self.flash)
        self.boot_ns = now_ns
        self.n_power_ups += 1

    def is_silent(self, now_ns: int) -> bool:
        return self.is_mute or (self.n_power_ups > 1 and now_ns < self.boot_ns + BOOT_NS)

    def step(self, dt_s: float) -> None:
        raise NotImplementedError

    def refresh(self, now_ns: int) -> None:
        """Brings the read-only registers up to date."""
        raise NotImplementedError

    def overlaps(self, address: int, size: int) -> list[Register]:
        return [r for r in self.registers.values() if r.address < address + size and address < r.end]
