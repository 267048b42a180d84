"""Feetech STS/SMS protocol: frames as pure functions, the STS3215 control table as data.

    instruction: FF FF ID LEN INST P1..Pn CK      status: FF FF ID LEN ERR D1..Dm CK

There is no byte stuffing, so FF FF may stand inside data: frames are cut by length, and a failed test drops
one byte, never more. ERR is a report of the servo's state, not a refusal of the instruction. No numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .frames import Status
from .registers import Block, Foreign, Register, table
from .report import named_bits

BROADCAST = 0xFE
MAX_ID = 253
MAX_FRAME = 250
HEADER = b"\xff\xff"

PING, READ, WRITE, REG_WRITE, ACTION, RESET, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 6, 0x82, 0x83
INSTRUCTIONS = {
    PING: "ping", READ: "read", WRITE: "write", REG_WRITE: "reg_write", ACTION: "action", RESET: "reset",
    SYNC_READ: "sync_read", SYNC_WRITE: "sync_write",
}  # fmt: skip

BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)
"""By the value of register 6 (vendor table)."""

ERROR_BITS = {
    0x01: "voltage", 0x02: "angle sensor", 0x04: "over-temperature", 0x08: "over-current",
    0x10: "angle out of range", 0x20: "overload",
}  # fmt: skip
VOLTAGE, OVERHEAT, OVERCURRENT, OVERLOAD = 0x01, 0x04, 0x08, 0x20

MODELS = {
    "sts3032": 521, "sts3215": 777, "sts3040": 1033, "sts3020": 1289, "sts3046": 1545, "sts3095": 2569,
    "sts3250": 2825, "sm8512bl": 11272,
}  # fmt: skip
"""Model number (register 3) of the servos with this control table. The low byte is the family: 9 STS, 8 SM..BL."""
FOREIGN = (
    Foreign(("scs", "sc15", "sc09"),  # SCS0009 is a 1284 where its bytes are read in its own order
            (*range(5, 1 << 16, 256), 1284, 1288, 1292, 1295, 1315, 1320, 3849, 5129, 8969, 10249),
            "SCS servos count 1024 ticks in big-endian words"),
    Foreign(("hls",), range(10, 1 << 16, 256), "HLS servos have a goal current where STS servos have a time"),
    Foreign(tuple(f"sm{n}-360m" for n in (30, 60, 80, 85, 100, 150)), range(6, 1 << 16, 256),
            "SM servos with a brushed motor keep offset and mode elsewhere"),
)  # fmt: skip
MODES = {"follower": (0,), "leader": (0,)}
"""Operating modes in which a joint has a position."""
RANGES = {
    "return_delay": (0, 254), "max_temperature": (30, 100), "max_torque": (1, 1000), "torque_limit": (1, 1000),
    "min_startup_force": (0, 1000), "protection_current": (0, 511), "protective_torque": (0, 100),
    "overload_torque": (1, 100), "cw_dead_zone": (0, 32), "ccw_dead_zone": (0, 32), "acceleration": (0, 254),
    "max_acceleration": (0, 254),
}  # fmt: skip
"""What the manual allows, where that is less than the register can hold."""
TICKS_PER_TURN = 4096


def _r(name: str, address: int, size: int, area: Any, default: int = 0, **more: Any) -> Register:
    return Register(name, address, size, area, default=default, **more)


REGISTERS = table([
    _r("firmware_major", 0, 1, "read", 3), _r("firmware_minor", 1, 1, "read", 10), _r("end", 2, 1, "read"),
    _r("model_number", 3, 2, "read", 777),
    _r("id", 5, 1, "eeprom", 1), _r("baud", 6, 1, "eeprom"),
    _r("return_delay", 7, 1, "eeprom", unit="us", scale=2.0), _r("response_level", 8, 1, "eeprom", 1),
    _r("min_position", 9, 2, "eeprom", unit="ticks"), _r("max_position", 11, 2, "eeprom", 4095, unit="ticks"),
    _r("max_temperature", 13, 1, "eeprom", 70, unit="degC"),
    _r("max_voltage", 14, 1, "eeprom", 140, unit="V", scale=0.1),
    _r("min_voltage", 15, 1, "eeprom", 40, unit="V", scale=0.1),
    _r("max_torque", 16, 2, "eeprom", 1000, unit="%", scale=0.1), _r("phase", 18, 1, "eeprom", 12),
    _r("unload_condition", 19, 1, "eeprom", 44), _r("led_condition", 20, 1, "eeprom", 47),
    _r("position_p", 21, 1, "eeprom", 32), _r("position_d", 22, 1, "eeprom", 32),
    _r("position_i", 23, 1, "eeprom"), _r("min_startup_force", 24, 2, "eeprom", 16, unit="%", scale=0.1),
    _r("cw_dead_zone", 26, 1, "eeprom", 1), _r("ccw_dead_zone", 27, 1, "eeprom", 1),
    _r("protection_current", 28, 2, "eeprom", 500, unit="mA", scale=6.5),
    _r("angular_resolution", 30, 1, "eeprom", 1),
    _r("homing_offset", 31, 2, "eeprom", sign_bit=11, unit="ticks"),
    _r("operating_mode", 33, 1, "eeprom"), _r("protective_torque", 34, 1, "eeprom", 20, unit="%"),
    _r("protection_time", 35, 1, "eeprom", 200, unit="ms", scale=10.0),
    _r("overload_torque", 36, 1, "eeprom", 80, unit="%"), _r("speed_p", 37, 1, "eeprom", 10),
    _r("overcurrent_time", 38, 1, "eeprom", 200, unit="ms", scale=10.0), _r("speed_i", 39, 1, "eeprom", 10),
    _r("torque_enable", 40, 1, "ram"), _r("acceleration", 41, 1, "ram", unit="ticks/s2", scale=100.0),
    _r("goal_position", 42, 2, "ram", sign_bit=15, unit="ticks"), _r("goal_time", 44, 2, "ram"),
    _r("goal_velocity", 46, 2, "ram", sign_bit=15, unit="ticks/s"),
    _r("torque_limit", 48, 2, "ram", 1000, unit="%", scale=0.1), _r("lock", 55, 1, "ram", 1),
    _r("present_position", 56, 2, "read", sign_bit=15, unit="ticks"),
    _r("present_velocity", 58, 2, "read", sign_bit=15, unit="ticks/s"),
    _r("present_load", 60, 2, "read", sign_bit=10, unit="%", scale=0.1),
    _r("present_voltage", 62, 1, "read", unit="V", scale=0.1),
    _r("present_temperature", 63, 1, "read", unit="degC"), _r("async_write", 64, 1, "read"),
    _r("status", 65, 1, "read"), _r("moving", 66, 1, "read"),
    _r("present_current", 69, 2, "read", sign_bit=15, unit="mA", scale=6.5),
    _r("goal_position_mirror", 71, 2, "read"),
    _r("moving_threshold", 80, 1, "eeprom"), _r("max_velocity", 84, 1, "eeprom"),
    _r("max_acceleration", 85, 1, "eeprom", 0),
])  # fmt: skip

POSITION_BLOCK = Block((REGISTERS["present_position"],))
TICK_BLOCK = Block(tuple(REGISTERS[n] for n in (
    "present_position", "present_velocity", "present_load", "present_voltage", "present_temperature")))  # fmt: skip
HEALTH_BLOCK = Block(tuple(REGISTERS[n] for n in (
    "torque_enable", "acceleration", "goal_position", "torque_limit", "lock", "present_position",
    "present_load", "present_voltage", "present_temperature", "status", "present_current")))  # fmt: skip


_ASKABLE = frozenset((r.address, r.size) for r in REGISTERS.values())


def is_question(code: int, data: bytes) -> bool:
    """Whether a frame that may be an answer of two bytes is another master's question for a register.

    It would be one of a servo whose angle sensor fails (ERR 2), and that has just these two bytes to say.
    """
    return code == READ and len(data) == 2 and (data[0], data[1]) in _ASKABLE


def checksum(body: bytes) -> int:
    """Over everything between header and checksum."""
    return ~sum(body) & 0xFF


def instruction(servo_id: int, code: int, parameters: bytes = b"") -> bytes:
    """A packet to a servo."""
    body = bytes((servo_id, len(parameters) + 2, code)) + parameters
    return HEADER + body + bytes((checksum(body),))


def status(servo_id: int, error: int = 0, data: bytes = b"") -> bytes:
    """A servo's answer, as the emulator sends it."""
    return instruction(servo_id, error, data)


def ping(servo_id: int) -> bytes:
    """Asks whether a servo is there."""
    return instruction(servo_id, PING)


def read(servo_id: int, address: int, size: int) -> bytes:
    """Asks for registers. size: bytes."""
    return instruction(servo_id, READ, bytes((address, size)))


def write(servo_id: int, address: int, data: bytes) -> bytes:
    """Sets registers."""
    return instruction(servo_id, WRITE, bytes((address,)) + data)


def reg_write(servo_id: int, address: int, data: bytes) -> bytes:
    """Sets registers when `action` comes."""
    return instruction(servo_id, REG_WRITE, bytes((address,)) + data)


def action(servo_id: int = BROADCAST) -> bytes:
    """Carries out what `reg_write` left."""
    return instruction(servo_id, ACTION)


def sync_read(address: int, size: int, ids: Sequence[int]) -> bytes:
    """Asks several servos for the same registers; each answers."""
    return instruction(BROADCAST, SYNC_READ, bytes((address, size, *ids)))


def sync_write(address: int, size: int, data: Mapping[int, bytes]) -> bytes:
    """`data`: servo id -> exactly `size` bytes."""
    return instruction(
        BROADCAST, SYNC_WRITE, bytes((address, size)) + b"".join(bytes((i,)) + d for i, d in data.items())
    )


def error_texts(error: int) -> list[str]:
    """All conditions that are set, in words."""
    return named_bits(ERROR_BITS, error)


def refuses(error: int) -> bool:
    """Whether an ERR byte means that the instruction was not executed: with Feetech, never."""
    return False


def sync_read_bytes(n_ids: int, size: int) -> tuple[int, int]:
    """Bytes sent and received by one sync read."""
    return 8 + n_ids, n_ids * (6 + size)


class FeetechDecoder:
    """Cuts a byte stream into status frames.

    `feed` may get any bytes in any portions. Damage costs one byte at a time, so a frame behind noise or
    behind a damaged frame is found as soon as its last byte is there. `data_size`: data bytes that an
    answer may carry (besides none); other lengths are noise, which keeps a false header from swallowing
    what follows.
    """

    def __init__(self, data_size: int | None = None) -> None:
        self.data_size = data_size
        self.n_corrupt = 0
        """Complete frames of the right shape whose checksum failed."""
        self._buffer = bytearray()
        self._asked_by_others: set[int] = set()

    @property
    def pending(self) -> int:
        """Bytes that are not yet part of a frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Status]:
        """Answers. Behind another master's question nothing of that servo is ours: an answer does not say to what."""
        self._buffer += data
        found = []
        while (frame := self._next()) is not None:
            if self.data_size == 2 and is_question(frame.error, frame.data):
                self._asked_by_others.add(frame.id)
            if frame.id not in self._asked_by_others:
                found.append(frame)
        return found

    def _next(self) -> Status | None:
        buffer = self._buffer
        while True:
            start = buffer.find(HEADER)
            if start < 0:
                del buffer[: len(buffer) - (1 if buffer.endswith(b"\xff") else 0)]
                return None
            del buffer[:start]
            if len(buffer) < 6:
                if self._is_noise():
                    del buffer[0]
                    continue
                return None
            if self._is_noise():
                del buffer[0]
                continue
            size = buffer[3] + 4
            if len(buffer) < size:
                return None
            body = bytes(buffer[2 : size - 1])
            if checksum(body) != buffer[size - 1]:
                self.n_corrupt += 1
                del buffer[0]
                continue
            del buffer[:size]
            return Status(body[0], body[2], body[3:])

    def _is_noise(self) -> bool:
        """Whether the bytes behind the header, as far as they are there, cannot start a status."""
        buffer = self._buffer
        if len(buffer) > 2 and buffer[2] > MAX_ID:
            return True
        if len(buffer) > 3:
            n_data = buffer[3] - 2
            if not 0 <= n_data <= MAX_FRAME - 6:
                return True
            if self.data_size is not None and n_data not in (0, self.data_size):
                return True
        return len(buffer) > 4 and buffer[4] > 0x7F


Decoder = FeetechDecoder
"""By the name that `Habits.codec` has it."""


def split_instructions(buffer: bytearray) -> list[tuple[int, int, bytes]]:
    """Takes the complete instruction frames (id, code, parameters) out of `buffer`; for servos and traces."""
    found: list[tuple[int, int, bytes]] = []
    while True:
        start = buffer.find(HEADER)
        if start < 0:
            del buffer[: len(buffer) - (1 if buffer.endswith(b"\xff") else 0)]
            return found
        del buffer[:start]
        if len(buffer) < 4:
            return found
        size = buffer[3] + 4
        if buffer[2] == 0xFF or not 6 <= size <= 260:
            del buffer[0]
            continue
        if len(buffer) < size:
            return found
        body = bytes(buffer[2 : size - 1])
        if checksum(body) != buffer[size - 1]:
            del buffer[0]
            continue
        del buffer[:size]
        found.append((body[0], body[2], body[3:]))
