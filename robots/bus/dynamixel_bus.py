"""The habits of Dynamixel X-series servos: modes, shadows, bus watchdog, reboot, and what their faults mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from edgevla.errors import ConfigError

from . import dynamixel
from .registers import Block
from .report import CONCLUSIONS, Cure, PingReply, ServoReport
from .servo_bus import N_TRIES, ServoBus

POSITION_MODE = 3
NO_PARTNER = 255
ANSWERS_ALL = 2
PATIENCE_NS = 100_000_000
SETTINGS = {"return_delay": 0, "operating_mode": POSITION_MODE}
MEMORY = {"profile_acceleration": 0, "profile_velocity": 0, "response_level": ANSWERS_ALL}
WATCHDOG_FIRMWARE = 38
WATCHDOG_MS, MOST_COUNTS = 20, 127
TICK_PERIOD_MS = 32_768
"""The servo's clock begins again after so long."""
TICK_ERROR_MS, TICK_ERROR = 100, 0.05
"""By so much, and this share of the time between two readings, the servo's clock and ours may differ."""

CURRENT_MA = {"xl330-m288": 1.0, "xl330-m077": 1.0, "xc330-t181": 1.0, "xc330-t288": 1.0}
"""One count of a current register; the others have 2.69 mA."""
LOAD_ONLY = frozenset({"xl430-w250", "xc430-w150"})
"""Without a current sensor: the same register holds the load in 0.1 %."""
FULL_LOAD = {"xm540-w270": 2047, "xl330-m288": 1750, "xl330-m077": 1750, "xc330-t181": 910, "xc330-t288": 910}
"""Raw present current at full load, the factory's current limit; others as the XM430."""
FULL_LOAD_XM430 = 1193

CURES = {
    **CONCLUSIONS,
    "voltage": Cure("use the supply that fits these servos and look after its plugs", "volts", is_kept=True),
    "hall sensor": Cure("its motor's sensor fails; if it comes back, replace the servo", is_kept=True),
    "over-temperature": Cure("let it cool down and look for what it pushes against", "heat", is_kept=True),
    "encoder": Cure("its position sensor fails; if it comes back, replace the servo", is_kept=True),
    "electrical shock": Cure("look for a damaged cable or too strong a supply", "volts", is_kept=True),
    "overload": Cure("free the joint", "load", is_kept=True),
    "bus watchdog": Cure("it was told nothing for so long that it froze by itself; start again"),
}  # fmt: skip


class DynamixelBus(ServoBus):
    """X-series servos, protocol 2.0."""

    codec = dynamixel
    registers = dynamixel.REGISTERS
    tick_block = dynamixel.TICK_BLOCK
    health_block = dynamixel.HEALTH_BLOCK
    known_models = dynamixel.MODELS
    bauds = dynamixel.BAUDS
    foreign, modes, ranges = dynamixel.FOREIGN, dynamixel.MODES, dynamixel.RANGES
    torque_limit, own_limit, full_torque = "goal_pwm", "pwm_limit", dynamixel.FULL_PWM
    ceilings = ("pwm_limit", "current_limit")
    bounds = (("goal_pwm", "pwm_limit"), ("goal_current", "current_limit"))
    kept = ("torque_enable", "goal_pwm")
    homing_sign = 1
    speed = "profile_velocity"
    cures = CURES
    can_reboot = True
    watchdog_counts = 0
    """What the servos were armed with; 0: off."""

    def ping(self, servo_id: int, n_tries: int = N_TRIES) -> PingReply | None:
        data = self.transact(dynamixel.ping(servo_id), servo_id, 3, None, n_tries)
        if data is None:
            return None
        self.firmware[servo_id] = str(data[2])
        return PingReply(
            servo_id, data[0] | data[1] << 8, self.firmware[servo_id], self.errors.get(servo_id, 0)
        )

    def report(self, servo_id: int, values: Mapping[str, int]) -> ServoReport:
        load, current_ma = self._load(servo_id, values.get("present_current"))
        torque, bits = values.get("torque_enable"), values.get("status")
        faults = None if bits is None else dynamixel.error_texts(bits)
        if faults is not None and values.get("bus_watchdog") == dynamixel.WATCHDOG_FIRED:
            faults.append("bus watchdog")
        return ServoReport(
            torque_on=None if torque is None else torque == 1,
            voltage_v=self.in_unit(values, "present_voltage"),
            temperature_c=self.in_unit(values, "present_temperature"),
            load_percent=load,
            current_ma=current_ma,
            error_bits=bits,
            faults=None if faults is None else tuple(faults),
        )

    def _load(self, servo_id: int, raw: int | None) -> tuple[float | None, float | None]:
        """Percent of full load, and mA where the servo measures them."""
        if raw is None:
            return None, None
        model = self.model_of.get(servo_id, "")
        if model in LOAD_ONLY:
            return raw * 0.1, None
        scale = CURRENT_MA.get(model, self.registers["present_current"].scale)
        return 100.0 * raw / FULL_LOAD.get(model, FULL_LOAD_XM430), raw * scale

    def settings(self, servo_id: int, drive_mode: int, partner: int | None) -> dict[str, int]:
        """The drive mode's other bits (profiles in time, torque by goal) are off in every profile."""
        secondary = NO_PARTNER if partner is None else partner
        return {**SETTINGS, **MEMORY, "drive_mode": drive_mode, "secondary_id": secondary}

    def to_calibrate(self, servo_id: int, drive_mode: int) -> dict[str, int]:
        return {"drive_mode": drive_mode}

    def speed_counts(self, servo_id: int, ticks_s: float) -> int:
        return max(1, round(ticks_s / dynamixel.VELOCITY_UNIT_TICKS_S))

    def goal_range(self, servo_id: int) -> tuple[int, int] | None:
        if self.read_raw(servo_id, "operating_mode") != POSITION_MODE:
            return None
        return self.read_raw(servo_id, "min_position"), self.read_raw(servo_id, "max_position")

    def has_restarted(
        self, servo_id: int, before: Mapping[str, int], now: Mapping[str, int], elapsed_ns: int
    ) -> bool:
        if self.watchdog_counts and now["bus_watchdog"] == 0 != before["bus_watchdog"]:
            return True
        elapsed_ms = elapsed_ns / 1e6
        late_ms = now["realtime_tick"] - before["realtime_tick"] - elapsed_ms
        off_ms = abs((late_ms + TICK_PERIOD_MS / 2) % TICK_PERIOD_MS - TICK_PERIOD_MS / 2)
        return off_ms > TICK_ERROR_MS + TICK_ERROR * elapsed_ms

    def count_foreign(self, heard: bytes, sizes: Collection[int]) -> int:
        """Questions: nobody here asks them while answers are awaited."""
        frames = dynamixel.split_instructions(bytearray(heard))
        return sum(code != dynamixel.STATUS for _, code, _ in frames)

    def probe_reading(self) -> str | None:
        """Whether all servos join in a merged answer (firmware 45 and later)."""
        self.uses_fast_read = True
        self.uses_fast_read = self._answers_whole(dynamixel.POSITION_BLOCK)
        self._n_fast_failures = 0
        return None

    def quirks(self) -> list[str]:
        old = [i for i in self.ids if not self._has_watchdog(i)]
        if not old:
            return []
        names = ", ".join(self.name_of(i) for i in old)
        return [
            f"{self.robot} on {self.port.name}: {names} have no bus watchdog (firmware {WATCHDOG_FIRMWARE} and later "
            "have): if everything here dies, they hold their last goal until the power is cut; update their firmware"
        ]

    def _has_watchdog(self, servo_id: int) -> bool:
        return int(self.firmware.get(servo_id, WATCHDOG_FIRMWARE)) >= WATCHDOG_FIRMWARE

    def greet(self) -> None:
        """Servos below this level answer nothing but a ping."""
        self.sync_write("response_level", dict.fromkeys(self.ids, ANSWERS_ALL))

    def ensure_answers(self) -> str | None:
        self.greet()
        return None

    def arm_watchdog(self, ms: int) -> str | None:
        able = [i for i in self.ids if self._has_watchdog(i)]
        if not able:
            return None
        counts = max(1, min(MOST_COUNTS, ms // WATCHDOG_MS))
        self.sync_write("bus_watchdog", dict.fromkeys(able, counts))
        self.watchdog_counts = counts
        held = self.read_all(Block((self.registers["bus_watchdog"],)), able, PATIENCE_NS)
        missing = [self.name_of(i) for i in able if held.get(i, {}).get("bus_watchdog") != counts]
        if not missing:
            return None
        return (
            f"{self.robot} on {self.port.name}: {', '.join(missing)} did not take the bus watchdog: if everything here "
            "dies, they hold their last goal until the power is cut"
        )

    def clear_watchdog(self) -> None:
        self.watchdog_counts = 0
        self.sync_write("bus_watchdog", dict.fromkeys(self.ids, 0))

    def reboot(self, servo_id: int) -> None:
        """Clears hardware errors; the servo's torque is off afterwards and it is silent for a while."""
        self.transact(dynamixel.reboot(servo_id), servo_id, 0)

    def restart_words(self, servo_id: int) -> str:
        return f"reboot it: edgevla doctor --robot {self.robot} --reboot {servo_id} (the arm may drop)"

    def map_indirect(self, names: Sequence[str], ids: Sequence[int] | None = None) -> Block:
        """Lays registers from anywhere side by side, so that one read fetches them; returns the block to read.

        The map is lost when a servo reboots (its values are then zeros). Raises ConfigError for more than 28 bytes.
        """
        wanted = [self.register(name) for name in names]
        bytes_ = [r.address + k for r in wanted for k in range(r.size)]
        if len(bytes_) > dynamixel.N_INDIRECT:
            raise ConfigError(f"{len(bytes_)} bytes do not fit the {dynamixel.N_INDIRECT} indirect addresses")
        for servo_id in ids or self.ids:
            for k, address in enumerate(bytes_, 1):
                self.write_raw(servo_id, f"indirect_address_{k}", address)
        at, mapped = self.registers["indirect_data_1"].address, []
        for r in wanted:
            mapped.append(replace(r, address=at))
            at += r.size
        return Block(tuple(mapped))
