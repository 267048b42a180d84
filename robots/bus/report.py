"""What a servo says of itself, whichever protocol it speaks, and what a person can do about it. No numpy here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

NO_LOAD_PERCENT = 5.0
UNKNOWN = "a condition that its manual does not name"
RESTARTED = "has restarted"
"""It has forgotten what connecting had set, so its supply was interrupted."""
CHANGED = "was changed by itself or by another program"
SHARED = "shares its line with another program"
CONCLUDED = (RESTARTED, CHANGED, SHARED)
"""Faults that no servo reports."""


@dataclass(frozen=True)
class PingReply:
    id: int
    model: int
    firmware: str
    error: int


@dataclass(frozen=True)
class ServoReport:
    """One servo's state as far as a block tells; None where it does not.

    load_percent: of its full load, signed. faults: conditions that the servo reports, in words.
    """

    torque_on: bool | None = None
    voltage_v: float | None = None
    temperature_c: float | None = None
    load_percent: float | None = None
    current_ma: float | None = None
    error_bits: int | None = None
    faults: tuple[str, ...] | None = None


@dataclass(frozen=True)
class OwnLimits:
    """What a servo allows by itself: supply in V, heat in degC."""

    voltage_v: tuple[float, float]
    temperature_c: float


@dataclass(frozen=True)
class Cure:
    """What to do about a fault. value: which measured value belongs to it. is_kept: whether the servo goes on reporting
    it until it is restarted."""

    do: str
    value: Literal["", "volts", "heat", "load"] = ""
    is_kept: bool = False


def named_bits(names: Mapping[int, str], bits: int) -> list[str]:
    """All conditions that are set, in words; bits without a name are one more."""
    unknown = bits & ~sum(names)
    return [text for bit, text in names.items() if bits & bit] + [f"{UNKNOWN} (bits 0x{unknown:02X})"] * bool(
        unknown
    )


def what_it_says(faults: Collection[str]) -> str:
    """`reports overload, voltage and has restarted`."""
    reported = ", ".join(fault for fault in faults if fault not in CONCLUDED)
    parts = [f"reports {reported}"] if reported else []
    return " and ".join([*parts, *(fault for fault in faults if fault in CONCLUDED)])


NOT_NAMED = Cure("ask who made the servo what it means", is_kept=True)
CONCLUSIONS = {
    RESTARTED: Cure("look after its power supply and its plugs, then start again", "volts"),
    CHANGED: Cure("close whatever else talks to this arm, then start again"),
    SHARED: Cure("close whatever else talks to this arm (LeRobot, the vendor's tool), then start again"),
}
"""The same for every protocol."""


def cure_words(
    cures: Mapping[str, Cure], faults: Iterable[str], report: ServoReport, own: OwnLimits | None, restart: str
) -> str:
    """One clause: the values with their limits, what to do, and last how the servo is restarted.

    restart: how a servo of this protocol forgets what it reports.
    """
    known = [cures[fault] for fault in faults if fault in cures]
    known += [NOT_NAMED] * any(fault.startswith(UNKNOWN) for fault in faults)
    values = [words for cure in known if (words := _measured(cure.value, report, own))]
    steps = [cure.do for cure in known] + [f"then {restart}"] * any(cure.is_kept for cure in known)
    return ": ".join(part for part in (", ".join(values), ", ".join(steps)) if part)


def _measured(value: str, report: ServoReport, own: OwnLimits | None) -> str:
    if value == "volts" and report.voltage_v is not None:
        allowed = (
            "" if own is None else f", the servo allows {own.voltage_v[0]:.1f} to {own.voltage_v[1]:.1f} V"
        )
        return f"it measures {report.voltage_v:.1f} V{allowed}"
    if value == "heat" and report.temperature_c is not None:
        limit = "" if own is None else f", its limit is {own.temperature_c:.0f}"
        return f"it has {report.temperature_c:.0f} degC{limit}"
    if value == "load" and abs(report.load_percent or 0.0) > NO_LOAD_PERCENT:
        return f"it pushes with {abs(report.load_percent or 0.0):.0f} %"
    return ""
