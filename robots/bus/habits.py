"""What is to be known of servos besides how to talk to them: one class with all of it, which every protocol fills in."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .registers import Block, Foreign, Register
from .report import Cure, PingReply, ServoReport

NEEDED = (
    "id", "baud", "model_number", "homing_offset", "min_position", "max_position", "min_voltage", "max_voltage",
    "max_temperature", "torque_enable", "goal_position", "present_position",
)  # fmt: skip
"""Registers by which this project knows any servo."""


class Habits:
    """What a protocol says; the defaults are those of a servo without the habit.

    codec: what builds and reads frames: `read`, `write`, `sync_read`, `sync_write`, `sync_read_bytes`, `refuses`,
    `Decoder`, `MAX_ID`.
    registers: by name; `NEEDED` and what the attributes below name must be there.
    known_models: model number by the name that profiles use. bauds: by the value of the baud register.
    full_torque: raw value of the register `torque_limit` at full torque; `own_limit`: the owner's, kept in EEPROM.
    ceilings: EEPROM registers by which an owner limits a servo: written lower, never higher than they are.
    bounds: registers that must not exceed another one, with that one.
    kept: registers of the health block that only a host's write changes.
    homing_sign: present position = encoder + sign * homing offset.
    speed: the register that limits a servo's own speed (0: none).
    cures: what a person does about each fault.
    foreign: servos on the same wire that are none of these. modes: values of `operating_mode` in which a joint has a
    position, by a profile's kind. ranges: what a register takes, where that is less than it can hold.
    """

    codec: Any
    registers: Mapping[str, Register]
    tick_block: Block
    health_block: Block
    known_models: Mapping[str, int]
    bauds: Sequence[int]
    torque_limit: str
    own_limit: str
    full_torque: int
    ceilings: Sequence[str] = ()
    bounds: Sequence[tuple[str, str]] = ()
    kept: Sequence[str] = ()
    homing_sign: int = 1
    speed: str
    cures: Mapping[str, Cure] = {}
    can_reboot = False
    foreign: Sequence[Foreign] = ()
    modes: Mapping[str, Sequence[int]] = {}
    ranges: Mapping[str, tuple[int, int]] = {}

    def ping(self, servo_id: int, n_tries: int = 3) -> PingReply | None:
        """Model and firmware of a servo; None when it does not answer."""
        raise NotImplementedError

    def report(self, servo_id: int, values: Mapping[str, int]) -> ServoReport:
        """What the registers of a block say of a servo."""
        raise NotImplementedError

    def settings(self, servo_id: int, drive_mode: int, partner: int | None) -> dict[str, int]:
        """Raw register values that connecting wants, besides the profile's. partner: id whose goals a shadow obeys.

        Raises BusError for a servo that is set up as no profile can mean it.
        """
        return {}

    def to_calibrate(self, servo_id: int, drive_mode: int) -> dict[str, int]:
        """Raw register values without which a measured range means nothing."""
        return {}

    def speed_counts(self, servo_id: int, ticks_s: float) -> int:
        """Raw value of the register `speed`, at least 1."""
        raise NotImplementedError

    def goal_range(self, servo_id: int) -> tuple[int, int] | None:
        """Goals (ticks) beyond which the servo clips or refuses by itself; None: it takes all."""
        return None

    def is_plausible(self, tick: int) -> bool:
        """Whether a servo can be there, as connecting has set it up."""
        return True

    def has_restarted(
        self, servo_id: int, before: Mapping[str, int], now: Mapping[str, int], elapsed_ns: int
    ) -> bool:
        """Whether two health blocks, so far apart, lie on both sides of a restart."""
        return False

    def count_foreign(self, heard: bytes, sizes: Collection[int]) -> int:
        """Whole frames in `heard` of another master's talk. sizes: data bytes of answers asked for lately."""
        return 0

    def probe_reading(self) -> str | None:
        """Finds the fastest way to read all servos; a sentence for the user when it is a slow one."""
        return None

    def quirks(self) -> list[str]:
        """Sentences for the user: what the firmware of these servos cannot do that a run would want."""
        return []

    def greet(self) -> None:
        """Before anything is asked: what servos need in order to answer at all. Nothing moves by it."""

    def ensure_answers(self) -> str | None:
        """Torque off: servos that do not acknowledge what is written learn to; a sentence when there were some."""
        return None

    @contextlib.contextmanager
    def unlocked(self, servo_id: int) -> Iterator[None]:
        """What is written inside stays when the power goes."""
        yield

    def arm_watchdog(self, ms: int) -> str | None:
        """From now on servos freeze by themselves when the line is silent for so long. Why not all of them do."""
        return None

    def clear_watchdog(self) -> None:
        """A watchdog is off; one that fired lets goals in again."""

    def reboot(self, servo_id: int) -> None:
        """Only where `can_reboot`: the servo forgets its faults, and its torque is off."""
        raise NotImplementedError

    def restart_words(self, servo_id: int) -> str:
        """How a person makes a servo forget what it reports."""
        return "switch the arm off and on"
