"""What a calibration measures: where each servo's middle is, and how far its joint goes to both sides.

Nothing is written here. Positions are read as the servos say them and counted from the encoder, so a calibration that
ends in between leaves the servos as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..bus.registers import Block
from ..calibration import LAST_TICK, LEAST_RANGE, MAX_OFFSET

if TYPE_CHECKING:
    from ..bus.servo_bus import ServoBus
    from ..profile import Joint, Profile

CENTRE_TICK = 2047
TURN = 4096
READ_NS = 100_000_000
LEAST_SHARE = 0.5
"""A joint that was moved through less than this share of the profile's range was hardly moved to its ends."""
LEAST_SIDE_TICKS, LEAST_SIDE_SHARE = 57, 0.1
"""5 degrees, and a tenth of the way: an end no farther from the middle than this is the middle."""


class Encoders:
    """The servos of one robot, read in ticks counted from the middle that each was given.

    held: registers as `handshake.held_calibration` reads them. offsets: homing offset by motor, once `home` has set it.
    """

    def __init__(
        self, profile: Profile, lines: Mapping[str, ServoBus], held: Mapping[str, Mapping[str, int]]
    ) -> None:
        self._profile, self._lines = profile, lines
        self._held = {name: registers["homing_offset"] for name, registers in held.items()}
        self.offsets: dict[str, int] = {}

    def home(self, motors: Collection[str] | None = None) -> None:
        """The present pose of these motors (None: of all that answer) becomes tick 2047."""
        for name, (tick, sign) in self._read().items():
            if motors is None or name in motors:
                away = (
                    CENTRE_TICK - (tick - sign * self._held[name]) % TURN
                )  # present = encoder + sign * offset
                self.offsets[name] = max(-MAX_OFFSET, min(MAX_OFFSET, sign * away))

    def ticks(self) -> dict[str, int]:
        """Position of every motor that answers and has a middle, as its servo will say it with the new offset."""
        return {
            name: (tick + sign * (self.offsets[name] - self._held[name])) % TURN
            for name, (tick, sign) in self._read().items()
            if name in self.offsets
        }

    def _read(self) -> dict[str, tuple[int, int]]:
        """Raw position and sign of the homing offset, by motor."""
        found = {}
        for bus in self._profile.buses:
            line = self._lines[bus.name]
            register = line.registers["present_position"]
            read = line.read_all(Block((register,)), line.ids, READ_NS)
            names = {motor.id: motor.name for motor in bus.motors}
            found.update({names[i]: (values[register.name], line.homing_sign) for i, values in read.items()})
        return found


@dataclass
class Swept:
    """What a joint did while the user moved it, in ticks counted from its middle."""

    low: int
    high: int
    last: int
    has_wrapped: bool = False

    def see(self, tick: int) -> None:
        if abs(tick - self.last) > TURN // 2:
            self.has_wrapped = True
        self.low, self.high, self.last = min(self.low, tick), max(self.high, tick), tick

    @property
    def from_middle_deg(self) -> tuple[float, float]:
        """(lowest, highest), degrees from the servo's middle."""
        return tuple((tick - CENTRE_TICK) * 360 / LAST_TICK for tick in (self.low, self.high))  # type: ignore[return-value]


def sweep(
    encoders: Encoders,
    is_done: Callable[[], bool],
    show: Callable[[Mapping[str, Swept]], None],
    motors: Collection[str] | None = None,
) -> dict[str, Swept]:
    """Follows the joints (all, or those of some motors) until the user is done."""
    swept: dict[str, Swept] = {}
    while True:
        for name, tick in encoders.ticks().items():
            if motors is None or name in motors:
                swept.setdefault(name, Swept(tick, tick, tick)).see(tick)
        show(swept)
        if is_done():
            return swept


@dataclass(frozen=True)
class Doubt:
    """Why a sweep is not taken as it is. kind: `again` must be repeated, `centre` needs a new middle as well, `ask`: a
    person may say that it is right."""

    kind: Literal["again", "centre", "ask"]
    text: str


def doubt(motor: str, joint: Joint | None, seen: Swept | None) -> Doubt | None:
    """None for a sweep that can be right."""
    if joint is not None and joint.is_full_turn:
        return None
    if seen is None:
        return Doubt("centre", f"{motor} did not answer; look after its cable")
    if seen.has_wrapped:
        return Doubt("centre", f"{motor} passed the end of its encoder: its middle was not the middle")
    low, high = seen.from_middle_deg
    if seen.high - seen.low < LEAST_RANGE:
        return Doubt("again", f"{motor} was not moved: {high - low:.0f} degrees were seen")
    moved = f"{motor} was seen from {low:+.0f} to {high:+.0f} degrees of its middle"
    expected = _expected_deg(joint)
    about = f"; {-expected / 2:+.0f} to {expected / 2:+.0f} is expected" if expected else ""
    sides = (CENTRE_TICK - seen.low, seen.high - CENTRE_TICK)
    if min(sides) < max(LEAST_SIDE_TICKS, LEAST_SIDE_SHARE * max(sides)):
        return Doubt("ask", f"{moved}, to one side only{about}")
    if expected and high - low <= LEAST_SHARE * expected:
        return Doubt("ask", f"{moved}{about}")
    return None


def _expected_deg(joint: Joint | None) -> float:
    """The profile's range of a joint in degrees; 0 where it is given in shares."""
    if joint is None:
        return 0.0
    span = joint.max - joint.min
    return {"deg": span, "rad": math.degrees(span)}.get(joint.unit, 0.0)
