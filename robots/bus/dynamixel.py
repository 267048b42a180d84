"""Dynamixel protocol 2.0: frames as pure functions, the X-series control table as data.

    instruction: FF FF FD 00 ID LEN(2) INST params CRC(2)      status: ... 55 ERR data CRC(2)

FF FF FD inside a frame is followed by one stuffed FD. The merged answer of a fast sync read is not stuffed
and carries one CRC per servo, each over everything before it. No numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .frames import Status
from .registers import Block, Foreign, Register, table
from .report import named_bits

BROADCAST = 0xFE
MAX_ID = 252
HEADER = b"\xff\xff\xfd\x00"
MAX_FRAME = 1024

PING, READ, WRITE, REG_WRITE, ACTION, RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 0x10
STATUS, SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x55, 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE, FAST_BULK_READ = 0x92, 0x93, 0x9A
INSTRUCTIONS = {
    PING: "ping", READ: "read", WRITE: "write", REG_WRITE: "reg_write", ACTION: "action", RESET: "reset",
    REBOOT: "reboot", CLEAR: "clear", SYNC_READ: "sync_read", SYNC_WRITE: "sync_write",
    FAST_SYNC_READ: "fast_sync_read", BULK_READ: "bulk_read", BULK_WRITE: "bulk_write",
    FAST_BULK_READ: "fast_bulk_read",
}  # fmt: skip

BAUDS = (9600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 4_500_000)
"""By the value of register 8."""

ALERT = 0x80
ERROR_CODES = {
    1: "result fail", 2: "unknown instruction", 3: "CRC", 4: "data range", 5: "data length",
    6: "data limit", 7: "access",
}  # fmt: skip
RESULT_FAIL, BAD_INSTRUCTION, BAD_CRC, DATA_RANGE, DATA_LENGTH, DATA_LIMIT, ACCESS = range(1, 8)

HARDWARE_BITS = {
    0x01: "voltage", 0x02: "hall sensor", 0x04: "over-temperature", 0x08: "encoder",
    0x10: "electrical shock", 0x20: "overload",
}  # fmt: skip
VOLTAGE, OVERHEAT, SHOCK, OVERLOAD = 0x01, 0x04, 0x10, 0x20

MODELS = {
    "mx-28": 30, "mx-64": 311, "mx-106": 321,
    "xl330-m077": 1190, "xl330-m288": 1200, "xl430-w250": 1060, "2xl430-w250": 1090,
    "xc330-t181": 1210, "xc330-t288": 1220, "xc330-m181": 1230, "xc330-m288": 1240,
    "xc430-w150": 1070, "xc430-w240": 1080, "2xc430-w250": 1160,
    "xm430-w350": 1020, "xm430-w210": 1030, "xm540-w270": 1120, "xm540-w150": 1130,
    "xh430-w350": 1000, "xh430-w210": 1010, "xh430-v350": 1040, "xh430-v210": 1050,
    "xh540-w270": 1100, "xh540-w150": 1110, "xh540-v270": 1140, "xh540-v150": 1150,
    "xd430-t350": 1001, "xd430-t210": 1011, "xd540-t270": 1101, "xd540-t150": 1111,
    "xw430-t333": 1270, "xw430-t200": 1280, "xw540-t260": 1170, "xw540-t140": 1180,
}  # fmt: skip
"""Model number of the servos with this control table; MX servos with their firmware for protocol 2.0."""
FOREIGN = (
    Foreign(("xl320", "xl-320"), (350,), "the XL320 has a small control table of its own"),
    Foreign(("ax-", "rx-", "dx-", "ex-", "mx-12"),
            (10, 12, 18, 24, 28, 29, 64, 107, 113, 116, 117, 300, 310, 320, 360),
            "AX, RX, DX, EX and old MX servos speak protocol 1.0"),
    Foreign(("ph", "pm", "h42", "h54", "m42", "m54", "l42", "l54", "rh-", "ym"), range(2000, 1 << 16),
            "PRO, P and Y servos have their registers at other addresses"),
)  # fmt: skip
MODES = {"follower": (3, 4, 5), "leader": (0, 3, 4, 5, 16)}
"""Operating modes in which a joint has a position; a leader is moved by hand."""
RANGES = {
    "return_delay": (0, 254), "max_temperature": (30, 100), "pwm_limit": (1, 885), "goal_pwm": (1, 885),
    "current_limit": (1, 2047), "goal_current": (1, 2047), "velocity_limit": (1, 2047),
    "profile_velocity": (0, 32767), "profile_acceleration": (0, 32767), "min_position": (0, 4095),
    "max_position": (0, 4095), "position_p": (0, 16383), "position_i": (0, 16383), "position_d": (0, 16383),
    "velocity_p": (0, 16383), "velocity_i": (0, 16383), "feedforward_1st": (0, 16383), "feedforward_2nd": (0, 16383),
}  # fmt: skip
"""What the manual allows, where that is less than the register can hold."""
TICKS_PER_TURN = 4096
VELOCITY_UNIT_TICKS_S = 0.229 * TICKS_PER_TURN / 60
"""One count of a velocity register, in ticks per second."""
ACCELERATION_UNIT_TICKS_S2 = 214.577 * TICKS_PER_TURN / 3600
WATCHDOG_FIRED = 255
FULL_PWM = 885
N_INDIRECT = 28


def _r(name: str, address: int, size: int, area: Any, default: int = 0, **more: Any) -> Register:
    return Register(name, address, size, area, default=default, **more)


_RPM: dict[str, Any] = {"unit": "ticks/s", "scale": VELOCITY_UNIT_TICKS_S}
REGISTERS = table([
    _r("model_number", 0, 2, "read", 1020), _r("model_information", 2, 4, "read"),
    _r("firmware", 6, 1, "read", 46),
    _r("id", 7, 1, "eeprom", 1), _r("baud", 8, 1, "eeprom", 1),
    _r("return_delay", 9, 1, "eeprom", 250, unit="us", scale=2.0), _r("drive_mode", 10, 1, "eeprom"),
    _r("operating_mode", 11, 1, "eeprom", 3), _r("secondary_id", 12, 1, "eeprom", 255),
    _r("protocol", 13, 1, "eeprom", 2),
    _r("homing_offset", 20, 4, "eeprom", is_signed=True, unit="ticks"),
    _r("moving_threshold", 24, 4, "eeprom", 10, **_RPM),
    _r("max_temperature", 31, 1, "eeprom", 80, unit="degC"),
    _r("max_voltage", 32, 2, "eeprom", 160, unit="V", scale=0.1),
    _r("min_voltage", 34, 2, "eeprom", 95, unit="V", scale=0.1),
    _r("pwm_limit", 36, 2, "eeprom", FULL_PWM), _r("current_limit", 38, 2, "eeprom", 1193),
    _r("velocity_limit", 44, 4, "eeprom", 200, **_RPM),
    _r("max_position", 48, 4, "eeprom", 4095, unit="ticks"), _r("min_position", 52, 4, "eeprom", unit="ticks"),
    _r("shutdown", 63, 1, "eeprom", 52),
    _r("torque_enable", 64, 1, "ram"), _r("led", 65, 1, "ram"), _r("response_level", 68, 1, "ram", 2),
    _r("registered_instruction", 69, 1, "read"), _r("status", 70, 1, "read"),
    _r("velocity_i", 76, 2, "ram", 1920), _r("velocity_p", 78, 2, "ram", 100),
    _r("position_d", 80, 2, "ram"), _r("position_i", 82, 2, "ram"), _r("position_p", 84, 2, "ram", 800),
    _r("feedforward_2nd", 88, 2, "ram"), _r("feedforward_1st", 90, 2, "ram"),
    _r("bus_watchdog", 98, 1, "ram", unit="ms", scale=20.0),
    _r("goal_pwm", 100, 2, "ram", FULL_PWM, is_signed=True),
    _r("goal_current", 102, 2, "ram", is_signed=True, unit="mA", scale=2.69),
    _r("goal_velocity", 104, 4, "ram", is_signed=True, **_RPM),
    _r("profile_acceleration", 108, 4, "ram", unit="ticks/s2", scale=ACCELERATION_UNIT_TICKS_S2),
    _r("profile_velocity", 112, 4, "ram", **_RPM),
    _r("goal_position", 116, 4, "ram", is_signed=True, unit="ticks"),
    _r("realtime_tick", 120, 2, "read", unit="ms"), _r("moving", 122, 1, "read"),
    _r("moving_status", 123, 1, "read"), _r("present_pwm", 124, 2, "read", is_signed=True),
    _r("present_current", 126, 2, "read", is_signed=True, unit="mA", scale=2.69),
    _r("present_velocity", 128, 4, "read", is_signed=True, **_RPM),
    _r("present_position", 132, 4, "read", is_signed=True, unit="ticks"),
    _r("velocity_trajectory", 136, 4, "read", is_signed=True),
    _r("position_trajectory", 140, 4, "read", is_signed=True),
    _r("present_voltage", 144, 2, "read", unit="V", scale=0.1),
    _r("present_temperature", 146, 1, "read", unit="degC"),
    *(_r(f"indirect_address_{i}", 168 + 2 * (i - 1), 2, "ram", 224 + i - 1) for i in range(1, 29)),
    *(_r(f"indirect_data_{i}", 224 + i - 1, 1, "ram") for i in range(1, 29)),
])  # fmt: skip

POSITION_BLOCK = Block((REGISTERS["present_position"],))
TICK_BLOCK = Block(tuple(REGISTERS[n] for n in ("present_current", "present_velocity", "present_position")))
HEALTH_BLOCK = Block(tuple(REGISTERS[n] for n in (
    "torque_enable", "status", "bus_watchdog", "goal_pwm", "goal_position", "realtime_tick",
    "present_current", "present_position", "present_voltage", "present_temperature")))  # fmt: skip


def _crc_table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x8005 if crc & 0x8000 else crc << 1) & 0xFFFF
        rows.append(crc)
    return tuple(rows)


_CRC = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """CRC-16/BUYPASS: polynomial 0x8005, no reflection, start 0."""
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ _CRC[(crc >> 8) ^ byte]
    return crc


def stuff(data: bytes) -> bytes:
    """Inserts FD behind every FF FF FD."""
    return data.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def unstuff(data: bytes) -> bytes:
    """What `stuff` put in, taken out."""
    return data.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


def _close(servo_id: int, body: bytes) -> bytes:
    frame = HEADER + bytes((servo_id,)) + (len(body) + 2).to_bytes(2, "little") + body
    return frame + crc16(frame).to_bytes(2, "little")


def _word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def instruction(servo_id: int, code: int, parameters: bytes = b"") -> bytes:
    """A packet to a servo."""
    return _close(servo_id, stuff(bytes((code,)) + parameters))


def status(servo_id: int, error: int = 0, data: bytes = b"") -> bytes:
    """A servo's answer, as the emulator sends it."""
    return _close(servo_id, stuff(bytes((STATUS, error)) + data))


def ping(servo_id: int) -> bytes:
    """Asks whether a servo is there; it tells its model."""
    return instruction(servo_id, PING)


def read(servo_id: int, address: int, size: int) -> bytes:
    """Asks for registers. size: bytes."""
    return instruction(servo_id, READ, _word(address) + _word(size))


def write(servo_id: int, address: int, data: bytes) -> bytes:
    """Sets registers."""
    return instruction(servo_id, WRITE, _word(address) + data)


def reg_write(servo_id: int, address: int, data: bytes) -> bytes:
    """Sets registers when `action` comes."""
    return instruction(servo_id, REG_WRITE, _word(address) + data)


def action(servo_id: int = BROADCAST) -> bytes:
    """Carries out what `reg_write` left."""
    return instruction(servo_id, ACTION)


def reboot(servo_id: int) -> bytes:
    """Restarts a servo; it clears a hardware error."""
    return instruction(servo_id, REBOOT)


def sync_read(address: int, size: int, ids: Sequence[int]) -> bytes:
    """Asks several servos for the same registers; each answers."""
    return instruction(BROADCAST, SYNC_READ, _word(address) + _word(size) + bytes(ids))


def fast_sync_read(address: int, size: int, ids: Sequence[int]) -> bytes:
    """The same, answered in one packet that all of them write."""
    return instruction(BROADCAST, FAST_SYNC_READ, _word(address) + _word(size) + bytes(ids))


def sync_write(address: int, size: int, data: Mapping[int, bytes]) -> bytes:
    """`data`: servo id -> exactly `size` bytes."""
    parameters = b"".join(bytes((i,)) + d for i, d in data.items())
    return instruction(BROADCAST, SYNC_WRITE, _word(address) + _word(size) + parameters)


def bulk_read(requests: Sequence[tuple[int, int, int]]) -> bytes:
    """`requests`: (servo id, address, size)."""
    return instruction(
        BROADCAST, BULK_READ, b"".join(bytes((i,)) + _word(a) + _word(n) for i, a, n in requests)
    )


def bulk_write(data: Sequence[tuple[int, int, bytes]]) -> bytes:
    """`data`: (servo id, address, bytes)."""
    return instruction(
        BROADCAST, BULK_WRITE, b"".join(bytes((i,)) + _word(a) + _word(len(d)) + d for i, a, d in data)
    )


def fast_status(answers: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The merged answer of a fast sync read: (servo id, error, data) per servo, in list order."""
    n_bytes = sum(len(data) + 4 for _, _, data in answers)
    frame = HEADER + bytes((BROADCAST,)) + _word(n_bytes + 1) + bytes((STATUS,))
    for servo_id, error, data in answers:
        frame += bytes((error, servo_id)) + data
        frame += _word(crc16(frame))
    return frame


def split_fast(body: bytes, size: int) -> list[Status]:
    """Per-servo answers of a merged answer whose frame was already checked; `body` is what follows 0x55."""
    step = size + 4
    body = body + b"\0\0"  # the last CRC was taken off with the frame's end
    return [
        Status(body[k + 1], body[k], body[k + 2 : k + 2 + size]) for k in range(0, len(body) - step + 1, step)
    ]


def error_texts(error: int) -> list[str]:
    """The conditions of hardware error status (register 70), in words."""
    return named_bits(HARDWARE_BITS, error)


def refuses(error: int) -> bool:
    """Whether an ERR byte means that the instruction was not executed; the alert bit alone does not."""
    return bool(error & 0x7F)


def sync_read_bytes(n_ids: int, size: int) -> tuple[int, int]:
    """Bytes sent and received by one sync read (without stuffing)."""
    return 14 + n_ids, n_ids * (11 + size)


def fast_sync_read_bytes(n_ids: int, size: int) -> tuple[int, int]:
    return 14 + n_ids, 8 + n_ids * (4 + size)


def _next_frame(buffer: bytearray) -> tuple[int, bytes, bool] | None:
    """Takes one frame-shaped piece out of `buffer`: (id, INST and what follows, still stuffed; CRC is right).

    Returns None when bytes are missing. Noise in front is dropped; a wrong CRC drops one byte.
    """
    while True:
        start = buffer.find(HEADER)
        if start < 0:
            keep = next((n for n in (3, 2, 1) if buffer.endswith(HEADER[:n])), 0)
            del buffer[: len(buffer) - keep]
            return None
        del buffer[:start]
        if len(buffer) < 7:
            return None
        length = buffer[5] | buffer[6] << 8
        if not 3 <= length <= MAX_FRAME or buffer[4] > BROADCAST:
            del buffer[0]
            continue
        if len(buffer) < 7 + length:
            return None
        frame = bytes(buffer[: 7 + length])
        if crc16(frame[:-2]) != frame[-2] | frame[-1] << 8:
            del buffer[0]
            return frame[4], frame[7:-2], False
        del buffer[: 7 + length]
        return frame[4], frame[7:-2], True


class DynamixelDecoder:
    """Cuts a byte stream into status frames; damage costs one byte at a time.

    data_size: data bytes of an answer; a frame with another length than that or none is noise.
    merged_ids: servos whose merged (fast) answer was asked for, in the order asked. Any other merged answer is
    noise: a late one to an older question would be cut at the wrong places, and its bytes taken for readings.
    """

    def __init__(self, data_size: int | None = None) -> None:
        self.data_size = data_size
        self.merged_ids: tuple[int, ...] = ()
        self.n_corrupt = 0
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        return len(self._buffer)

    @property
    def _merged_length(self) -> int | None:
        """What the length field of the merged answer says, None when none was asked for."""
        if not self.merged_ids or self.data_size is None:
            return None
        return 1 + len(self.merged_ids) * (4 + self.data_size)

    def feed(self, data: bytes) -> list[Status]:
        self._buffer += data
        found: list[Status] = []
        while True:
            self._drop_false_headers()
            frame = _next_frame(self._buffer)
            if frame is None:
                return found
            servo_id, body, is_sound = frame
            if not is_sound:
                self.n_corrupt += 1
            elif body[0] == STATUS:
                found += self._answers(servo_id, body)

    def _answers(self, servo_id: int, body: bytes) -> list[Status]:
        if servo_id == BROADCAST:
            if self.data_size is None or len(body) + 2 != self._merged_length:
                return []
            answers = split_fast(body[1:], self.data_size)
            return answers if tuple(answer.id for answer in answers) == self.merged_ids else []
        body = unstuff(body)
        return [Status(servo_id, body[1], body[2:])] if len(body) >= 2 else []

    def _drop_false_headers(self) -> None:
        """A header whose length no answer can have would hold up the frames behind it."""
        if self.data_size is None:
            return
        buffer, at = self._buffer, 0
        while (at := buffer.find(HEADER, at)) >= 0 and len(buffer) >= at + 7:
            length = buffer[at + 5] | buffer[at + 6] << 8
            n_data = length - 4
            is_merged = buffer[at + 4] == BROADCAST and length == self._merged_length
            is_plain = n_data == 0 or self.data_size <= n_data <= self.data_size + self.data_size // 3 + 1
            if is_merged or (buffer[at + 4] <= MAX_ID and is_plain):
                return
            del buffer[: at + 1]
            at = 0


Decoder = DynamixelDecoder
"""By the name that `Habits.codec` has it."""


def split_instructions(buffer: bytearray) -> list[tuple[int, int, bytes]]:
    """Takes the complete instruction frames (id, code, parameters) out of `buffer`; for servos and traces."""
    found = []
    while (frame := _next_frame(buffer)) is not None:
        servo_id, body, is_sound = frame
        if is_sound and body:
            body = unstuff(body)
            found.append((servo_id, body[0], body[1:]))
    return found
