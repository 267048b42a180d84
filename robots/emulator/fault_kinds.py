"""The table of all faults: name, what happens, and for faults of a servo the function that does it.

`--help`, the refusal of an unknown name and the emulator itself read this one table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .servo import EmulatedServo

Hurt = Callable[[EmulatedServo, float, int], None]
"""(servo, the fault's amount, now in ns)"""


@dataclass(frozen=True)
class FaultKind:
    """words: what happens, for people; AMOUNT stands for the fault's `amount`. hurt: only of a servo's faults."""

    name: str
    words: str
    hurt: Hurt | None = None


def _report(servo: EmulatedServo, amount: float, now_ns: int, name: str = "overload") -> None:
    servo.extra_error |= servo.error_bits[name]


def _reports(name: str) -> Hurt:
    return lambda servo, amount, now_ns: _report(servo, amount, now_ns, name)


def _heat(servo: EmulatedServo, amount: float, now_ns: int) -> None:
    if amount:
        servo.axis.temperature_c = amount
    else:
        _report(servo, amount, now_ns, "overheat")


def _starve(servo: EmulatedServo, amount: float, now_ns: int) -> None:
    if amount:
        servo.supply_v = amount
    else:
        _report(servo, amount, now_ns, "voltage")


def _mute(servo: EmulatedServo, amount: float, now_ns: int) -> None:
    servo.is_mute = True


def _stick(servo: EmulatedServo, amount: float, now_ns: int) -> None:
    servo.axis.is_stuck = True


def _jump(servo: EmulatedServo, amount: float, now_ns: int) -> None:
    servo.axis.jump(amount or 700)


def _jitter(servo: EmulatedServo, amount: float, now_ns: int) -> None:
    servo.jitter_ticks = int(amount) or 1


FRAME = (
    FaultKind("drop", "an answer is lost"),
    FaultKind("corrupt", "one bit of an answer is wrong"),
    FaultKind("truncate", "an answer is cut off"),
    FaultKind("delay", "an answer comes AMOUNT ms late"),
    FaultKind("duplicate", "an answer comes twice"),
    FaultKind("noise", "random bytes before an answer"),
    FaultKind("wrong_id", "an answer bears another servo's id"),
)
"""What happens to one answer: each with `probability`, or `count` times."""

LINE = (
    FaultKind("echo", "the adapter returns what the host sends"),
    FaultKind("latency", "the adapter hands over after 16 ms"),
    FaultKind("foreign", "another master on the line: its question and the servo's answer are heard, too"),
    FaultKind("unplug", "the adapter is pulled out"),
    FaultKind("replug", "and put back"),
)

SERVO = (
    FaultKind("mute", "says nothing and does nothing that it is told", _mute),
    FaultKind("overload", "reports overload, whatever is done", _reports("overload")),
    FaultKind("trip", "its overload protection has acted: Feetech until torque is enabled again, Dynamixel until reboot",
         lambda servo, amount, now_ns: servo.trip()),
    FaultKind("overheat", "has AMOUNT degC; without, reports heat", _heat),
    FaultKind("voltage", "is supplied AMOUNT volts; without, reports its voltage", _starve),
    FaultKind("sensor", "reports its angle sensor", _reports("sensor")),
    FaultKind("overcurrent", "reports over-current (Feetech), electrical shock (Dynamixel)", _reports("overcurrent")),
    FaultKind("brownout", "loses its power for a moment", lambda servo, amount, now_ns: servo.power_up(now_ns)),
    FaultKind("torque_off", "torque goes off behind the host's back",
         lambda servo, amount, now_ns: servo.put("torque_enable", 0)),
    FaultKind("torque_on", "torque goes on where it is, behind the host's back",
         lambda servo, amount, now_ns: servo.hold()),
    FaultKind("weak", "its owner's torque limit is AMOUNT percent (30)",
         lambda servo, amount, now_ns: servo.limit((amount or 30) / 100)),
    FaultKind("quiet", "its response level is AMOUNT (0: it answers reads only, Dynamixel pings only)",
         lambda servo, amount, now_ns: servo.put("response_level", int(amount))),
    FaultKind("stuck", "does not turn", _stick),
    FaultKind("jump", "its encoder jumps by AMOUNT ticks (700)", _jump),
    FaultKind("jitter", "every reading is off by up to AMOUNT ticks (1)", _jitter),
    FaultKind("wrong_model", "says it is model AMOUNT (1284)",
         lambda servo, amount, now_ns: servo.burn("model_number", int(amount) or 1284)),
    FaultKind("wrong_firmware", "says it has firmware AMOUNT (9; Feetech: 3.AMOUNT)",
         lambda servo, amount, now_ns: servo.burn(servo.firmware_register, int(amount) or 9)),
    FaultKind("duplicate_id", "has id AMOUNT (1)", lambda servo, amount, now_ns: servo.put("id", int(amount) or 1)),
)  # fmt: skip

ARM = (
    FaultKind(
        "hand",
        "a person puts the joint of servo TARGET to AMOUNT (unit of its state), beyond its range if need be",
    ),
    FaultKind("register", "register TARGET (servo.register) changes to AMOUNT by itself"),
    FaultKind("clear", "ends all that can end"),
)

GROUPS: Sequence[tuple[str, Sequence[FaultKind]]] = (
    ("of an answer (`probability`, `count`)", FRAME), ("of the line", LINE), ("of a servo", SERVO), ("of the arm", ARM),
)  # fmt: skip
KINDS: dict[str, FaultKind] = {kind.name: kind for _, group in GROUPS for kind in group}


def help_text(width: int = 118) -> str:
    """The table for `--help`."""
    lines = []
    for title, group in GROUPS:
        lines.append(f"faults {title}:")
        for kind in group:
            lines += textwrap.wrap(f"{kind.name:<15} {kind.words}", width - 2, initial_indent="  ",
                                   subsequent_indent=" " * 18)  # fmt: skip
    return "\n".join(lines)
