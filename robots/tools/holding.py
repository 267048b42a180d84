"""An arm that a tool is about to let go of: whether it has torque is found out first, and a person holds it.

Every tool that switches torque off comes through here. The arm is lowered; it is never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from edgevla.errors import BusError

from .terminal import unbroken

if TYPE_CHECKING:
    from ..bus.servo_bus import ServoBus
    from ..profile import Profile
    from .terminal import Terminal


def release(profile: Profile, lines: Mapping[str, ServoBus], person: Terminal) -> None:
    """Torque off on all servos. An arm that has torque is said and asked about first, then lowered.

    Raises UsageError when nobody is there to hold it, BusError when torque could not be confirmed off.
    """
    from ..handshake import energised
    from ..rescue import torque_off, unconfirmed

    for line in lines.values():
        line.greet()
    if motors := energised(lines, profile):
        n_motors = sum(len(bus.motors) for bus in profile.buses)
        who = "all its servos" if len(motors) == n_motors else ", ".join(motors)
        person.wait(
            f"{profile.name} has torque ({who}) and is held where it is. Hold the arm, then press Enter: it is let down "
            "slowly, and its torque switched off."
        )
        _lower(profile, lines)
    missing = []
    for bus in profile.buses:
        unheard = torque_off(lines[bus.name])
        missing += [motor.name for motor in bus.motors if motor.id in unheard]
    if missing:
        raise BusError(unconfirmed(missing))


def _lower(profile: Profile, lines: Mapping[str, ServoBus]) -> None:
    """Down to no torque, also where the profile never releases the arm by itself: somebody holds it."""
    from ..rescue import Rescue

    held = replace(profile, escalation=replace(profile.escalation, release=True))
    clock = next(iter(lines.values())).clock
    rescue = Rescue(held, {name: line.port for name, line in lines.items()}, clock)
    with unbroken():
        rescue.freeze()  # where it is now, whatever it was last told
        rescue.lower()
        rescue.release()
