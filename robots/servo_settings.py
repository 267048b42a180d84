"""Which servos a profile may name, and which of their registers it may set to what.

A register that would make a servo unreachable, energise it, or contradict another key of the profile is refused with
the reason. No numpy here: the guardian imports this.
"""

from __future__ import annotations

from typing import Any, Literal

from .bus.protocols import BUSES
from .toml_tables import Table, say

LARGEST_MODEL = 0xFFFF

REFUSED = {
    "id": "the servo's id is the key 'id' of its [[motor]]",
    "baud": "the speed is the key 'baud' of its [[bus]]",
    "protocol": "the servo would not answer any more",
    "response_level": "the servo would not answer any more",
    "lock": "connecting unlocks the EEPROM and locks it again",
    "torque_enable": "it would energise the servo while connecting",
    "goal_position": "it would move the arm while connecting",
    "goal_velocity": "it would move the arm while connecting",
    "goal_time": "it is a goal, and would move the arm while connecting",
    "phase": "it turns the count round or lets it run on; connecting sets it",
    "angular_resolution": "every angle would be wrong",
    "drive_mode": "the direction is the key 'drive_mode' of its [[motor]]",
    "secondary_id": "a shadow is named by the key 'shadow_of' of its [[motor]]",
    "bus_watchdog": "it is the key 'watchdog_ms' of [rates]",
}
CALIBRATED = ("homing_offset", "min_position", "max_position")
"""Registers that belong to LeRobot's calibration, where there is one."""


def read_model(table: Table, protocol: str) -> tuple[str, int]:
    """Name and number of the key `model`: a known name, or the number of a servo with the same register table."""
    value, known = table.raw("model"), BUSES[protocol].known_models
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, str) and not is_number:
        raise table.error(
            "model", f"expected a name such as '{next(iter(known))}' or a number, got {say(value)}"
        )
    name = value.lower() if isinstance(value, str) else ""
    if name in known:
        return name, known[name]
    for foreign in BUSES[protocol].foreign:
        if (is_number and value in foreign.numbers) or (name and name.startswith(foreign.names)):
            raise table.error("model", f"{say(value)} cannot be driven: {foreign.why}")
    if not is_number:
        raise table.error(
            "model",
            f"{say(value)} is not one of {', '.join(known)}; a servo with the same registers is named by its model "
            "number, which edgevla doctor says: model = 1234",
            name,
            known,
        )
    if not 0 < value <= LARGEST_MODEL:
        raise table.error("model", f"{say(value)} is outside 1..{LARGEST_MODEL}, where model numbers lie")
    return next((n for n, number in known.items() if number == value), f"model {value}"), value


def read_settings(
    table: Table, protocol: str, kind: Literal["follower", "leader"], is_calibrated_by_file: bool
) -> tuple[tuple[str, int], ...]:
    """The key `settings`: register names with raw values, sorted, each one checked."""
    settings = table.raw("settings", {})
    if not isinstance(settings, dict):
        raise table.error("settings", f"expected a table of register = value, got {say(settings)}")
    for name, value in settings.items():
        _check(table, protocol, name, value)
        if name in CALIBRATED and is_calibrated_by_file:
            raise table.error(
                f"settings.{name}", "it belongs to the calibration, which edgevla calibrate writes"
            )
        modes = BUSES[protocol].modes.get(kind, (value,))
        if name == "operating_mode" and value not in modes:
            allowed = ", ".join(map(str, modes))
            raise table.error(
                f"settings.{name}",
                f"{value} is not one of {allowed}, in which a {kind}'s joint has a position",
            )
    return tuple(sorted(settings.items()))


def _check(table: Table, protocol: str, name: str, value: Any) -> None:
    key, registers = f"settings.{name}", BUSES[protocol].registers
    if name not in registers:
        raise table.error(key, f"{protocol} servos have no such register", name, registers)
    if registers[name].area == "read":
        raise table.error(key, "it can only be read")
    if name in REFUSED:
        raise table.error(key, f"it may not be set here: {REFUSED[name]}")
    low, high = BUSES[protocol].ranges.get(name, registers[name].limits)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise table.error(key, f"{say(value)} is not a whole number within {low}..{high}")
