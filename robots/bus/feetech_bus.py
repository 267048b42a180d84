"""The habits of Feetech STS/SMS servos: what connecting sets, what they forget, what their faults mean."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping

from edgevla.errors import BusError

from . import feetech
from .registers import Block
from .report import CONCLUSIONS, Cure, PingReply, ServoReport
from .servo_bus import N_TRIES, ServoBus

LAST_TICK = feetech.TICKS_PER_TURN - 1
MOTOR_REVERSED, FINE_SPEED, ZERO_IS_FULL_SPEED, MULTI_TURN, FEEDBACK_REVERSED = 0x01, 0x04, 0x08, 0x10, 0x80
"""Bits of the register `phase`. Fine: speeds count 1 tick/s, else 50."""
FORWARD = FINE_SPEED | ZERO_IS_FULL_SPEED
"""As servos leave the factory."""
REVERSED = MOTOR_REVERSED | FEEDBACK_REVERSED
ANSWERS_ALL = 1
LAST_ERROR = 0x7F
PATIENCE_NS = 100_000_000
FLASH_NS = 20_000_000
"""A servo may be silent for so long while it writes its EEPROM."""
SETTINGS = {"return_delay": 0, "operating_mode": 0, "max_acceleration": 254}
MEMORY = {"acceleration": 254, "goal_velocity": 0}

CURES = {
    **CONCLUSIONS,
    "voltage": Cure(
        "use the supply that fits these servos (7.4 V and 12 V versions exist) and look after its plugs", "volts"
    ),
    "angle sensor": Cure("its position sensor fails; if it comes back, replace the servo", is_kept=True),
    "over-temperature": Cure("let it cool down and look for what it pushes against", "heat"),
    "over-current": Cure("free the joint", "load", is_kept=True),
    "angle out of range": Cure("turn the joint back into its range by hand", is_kept=True),
    "overload": Cure("free the joint", "load", is_kept=True),
}  # fmt: skip


class FeetechBus(ServoBus):
    """STS/SMS servos."""

    codec = feetech
    registers = feetech.REGISTERS
    tick_block = feetech.TICK_BLOCK
    health_block = feetech.HEALTH_BLOCK
    known_models = feetech.MODELS
    bauds = feetech.BAUDS
    foreign, modes, ranges = feetech.FOREIGN, feetech.MODES, feetech.RANGES
    torque_limit, own_limit, full_torque = "torque_limit", "max_torque", 1000
    ceilings = ("max_torque", "protection_current", "overload_torque")
    bounds = (("torque_limit", "max_torque"),)
    kept = ("torque_enable", "acceleration", "torque_limit", "lock")
    homing_sign = -1
    speed = "goal_velocity"
    cures = CURES

    def ping(self, servo_id: int, n_tries: int = N_TRIES) -> PingReply | None:
        """Reads model and firmware. Not a PING: its answer with ERR 1 (voltage) equals the echo of the question."""
        data = self.transact(feetech.read(servo_id, 0, 5), servo_id, 5, None, n_tries)
        if data is None:
            return None
        self.firmware[servo_id] = f"{data[0]}.{data[1]}"
        return PingReply(
            servo_id, data[3] | data[4] << 8, self.firmware[servo_id], self.errors.get(servo_id, 0)
        )

    def report(self, servo_id: int, values: Mapping[str, int]) -> ServoReport:
        """Every answer carries the error bits."""
        bits, torque = values.get("status", self.errors.get(servo_id, 0)), values.get("torque_enable")
        return ServoReport(
            torque_on=None if torque is None else torque == 1,
            voltage_v=self.in_unit(values, "present_voltage"),
            temperature_c=self.in_unit(values, "present_temperature"),
            load_percent=self.in_unit(values, "present_load"),
            current_ma=self.in_unit(values, "present_current"),
            error_bits=bits,
            faults=tuple(feetech.error_texts(bits)),
        )

    def settings(self, servo_id: int, drive_mode: int, partner: int | None) -> dict[str, int]:
        phase = self.read_raw(servo_id, "phase")
        if phase & REVERSED:
            raise BusError(
                f"{self.robot} on {self.port.name}: {self.name_of(servo_id)} turns or counts the other way round than "
                f"LeRobot's calibrations mean (phase (18) is {phase}, its bits 0 and 7 must be 0), so its positions are "
                f"not those of the calibration; edgevla calibrate --robot {self.robot} sets it right",
                port=self.port.name, motor_id=servo_id, register="phase",
            )  # fmt: skip
        return {**SETTINGS, **MEMORY, "phase": phase & ~MULTI_TURN | FORWARD}

    def to_calibrate(self, servo_id: int, drive_mode: int) -> dict[str, int]:
        phase = self.read_raw(servo_id, "phase")
        return {"operating_mode": 0, "phase": phase & ~(MULTI_TURN | REVERSED) | FORWARD}

    def speed_counts(self, servo_id: int, ticks_s: float) -> int:
        return max(1, round(ticks_s))

    def goal_range(self, servo_id: int) -> tuple[int, int] | None:
        low, high = self.read_raw(servo_id, "min_position"), self.read_raw(servo_id, "max_position")
        return None if (low, high) == (0, 0) else (low, high)

    def is_plausible(self, tick: int) -> bool:
        """Connecting has cleared multi-turn feedback."""
        return 0 <= tick <= LAST_TICK

    def has_restarted(
        self, servo_id: int, before: Mapping[str, int], now: Mapping[str, int], elapsed_ns: int
    ) -> bool:
        return now["acceleration"] == 0 != before["acceleration"]

    def count_foreign(self, heard: bytes, sizes: Collection[int]) -> int:
        """A question looks like an answer here. It is given away by its size, by what it asks for, or by an instruction
        that is no ERR byte."""
        frames = feetech.split_instructions(bytearray(heard))
        return sum(
            code > LAST_ERROR or len(data) not in (0, *sizes) or feetech.is_question(code, data)
            for _, code, data in frames
        )

    def probe_reading(self) -> str | None:
        """Firmware before 3.10 may not answer a sync read; then single reads are used."""
        self.uses_sync_read = True
        self.uses_sync_read = self._answers_whole(feetech.POSITION_BLOCK)
        if self.uses_sync_read:
            return None
        versions = {reply.firmware for reply in self.scan(self.ids)}
        return (
            f"{self.robot} on {self.port.name}: sync read does not work; servos are read one by one, which is slower. "
            f"Firmware before 3.10 cannot do it (here: {', '.join(sorted(versions))}); a bad cable may be why, too: "
            f"edgevla doctor --robot {self.robot}"
        )

    def ensure_answers(self) -> str | None:
        level = self.registers["response_level"]
        held = self.read_all(Block((level,)), self.ids, PATIENCE_NS)
        silent = [i for i, values in held.items() if values[level.name] != ANSWERS_ALL]
        if not silent:
            return None
        for name, value in (("lock", 0), (level.name, ANSWERS_ALL), ("lock", 1)):
            self.sync_write(name, dict.fromkeys(silent, value))
            self.clock.sleep_until(self.clock.now_ns() + FLASH_NS)
        names = ", ".join(self.name_of(i) for i in silent)
        where = f"{self.robot} on {self.port.name}: {names}"
        for servo_id in silent:
            if self.read_raw(servo_id, level.name) != ANSWERS_ALL:
                raise BusError(
                    f"{where} do not acknowledge what is written, and did not learn to: write 1 to response_level (8) "
                    "with the vendor's tool",
                    port=self.port.name, motor_id=servo_id, register=level.name,
                )  # fmt: skip
        return f"{where} did not acknowledge what was written (response_level (8) was 0); it is 1 now"

    @contextlib.contextmanager
    def unlocked(self, servo_id: int) -> Iterator[None]:
        self.write_raw(servo_id, "lock", 0)
        try:
            yield
        except BusError:
            with contextlib.suppress(BusError):  # the first error is the one to read
                self.write_raw(servo_id, "lock", 1)
            raise
        self.write_raw(servo_id, "lock", 1)
