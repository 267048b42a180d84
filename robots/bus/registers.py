"""A register of a servo's control table, and the one place where signed numbers are coded.

Feetech servos use sign-magnitude with a sign bit that differs per register; Dynamixel servos use two's
complement. Both are little-endian. No numpy here: the guardian imports this.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal

from edgevla.errors import BusError

Area = Literal["read", "eeprom", "ram"]


@dataclass(frozen=True)
class Register:
    """One entry of a control table.

    sign_bit: bit of the sign in sign-magnitude coding; None: not sign-magnitude.
    is_signed: two's complement over the whole size.
    unit, scale: a raw value times `scale` is in `unit`.
    default: factory value (raw).
    """

    name: str
    address: int
    size: int
    area: Area = "ram"
    sign_bit: int | None = None
    is_signed: bool = False
    unit: str = ""
    scale: float = 1.0
    default: int = 0

    @property
    def end(self) -> int:
        """First address behind the register."""
        return self.address + self.size

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value that the coding can hold."""
        if self.sign_bit is not None:
            largest = (1 << self.sign_bit) - 1
            return -largest, largest
        bits = 8 * self.size
        return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if self.is_signed else (0, (1 << bits) - 1)

    def encode(self, value: int) -> bytes:
        """Little-endian bytes. Raises BusError when the value does not fit: a wrapped goal moves an arm."""
        low, high = self.limits
        if not low <= value <= high:
            raise BusError(
                f"value {value} does not fit register {self.name} ({self.address}), which holds {low}..{high}",
                register=self.name,
            )
        if self.sign_bit is not None and value < 0:
            value = -value | 1 << self.sign_bit
        return value.to_bytes(self.size, "little", signed=self.is_signed)

    def decode(self, data: bytes) -> int:
        """The value of its bytes, with its sign."""
        value = int.from_bytes(data[: self.size], "little", signed=self.is_signed)
        if self.sign_bit is None:
            return value
        magnitude = value & ((1 << self.sign_bit) - 1)
        return -magnitude if value >> self.sign_bit & 1 else magnitude


@dataclass(frozen=True)
class Foreign:
    """Servos on the same wire with another control table. names: how theirs begin; numbers: their model numbers."""

    names: tuple[str, ...]
    numbers: Container[int]
    why: str


@dataclass(frozen=True)
class Block:
    """Registers that lie so close together that one read fetches them all."""

    registers: tuple[Register, ...]

    @property
    def address(self) -> int:
        """Of its first register."""
        return min(r.address for r in self.registers)

    @property
    def size(self) -> int:
        """Bytes from its first register to its last."""
        return max(r.end for r in self.registers) - self.address

    def decode(self, data: bytes) -> dict[str, int]:
        """Raw values by register name."""
        return {r.name: r.decode(data[r.address - self.address :]) for r in self.registers}


def table(registers: Iterable[Register]) -> dict[str, Register]:
    """Registers by name."""
    return {register.name: register for register in registers}
