"""What must hold between the values of a profile: each may be right, and all of them together wrong.

Errors name file, table and key, as those of single values do. No numpy here: the guardian imports this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .bus.protocols import BUSES
from .toml_tables import Table, say

if TYPE_CHECKING:
    from .profile import Motor, Profile

TICKS_PER_LEASE = 2
WATCHDOG_STEP_MS = 20


def check(profile: Profile, motors: Sequence[Motor], root: Table) -> None:
    """Raises ConfigError for the first that does not hold."""
    _check_names(profile, motors, root)
    _check_buses(profile, root)
    _check_shadows(motors, root)
    _check_times(profile, root)
    limits = profile.limits
    table = Table(root.path, "[limits]", {})
    for low, high in (
        ("temperature_warn_c", "temperature_stop_c"),
        ("voltage_min", "voltage_max"),
        ("stale_hold_ms", "stale_fail_ms"),
    ):
        if getattr(limits, low) > getattr(limits, high):
            raise table.error(low, f"{getattr(limits, low):g} is more than {high}, {getattr(limits, high):g}")
    if profile.is_calibrated_by_file and not profile.lerobot_types:
        raise root.error(
            "lerobot_types",
            "is needed, such as ['so_follower']: where LeRobot keeps calibrations of this arm; or give every motor its "
            "range_ticks",
        )


def _check_names(profile: Profile, motors: Sequence[Motor], root: Table) -> None:
    for what, key, names in (
        ("bus", "name", [bus.name for bus in profile.buses]),
        ("motor", "name", [motor.name for motor in motors]),
        ("motor", "joint", [joint.name for joint in profile.joints]),
    ):
        if name := _doubled(names):
            raise Table(root.path, f"[[{what}]] '{name}'", {}).error(key, f"two of them are called '{name}'")


def _check_buses(profile: Profile, root: Table) -> None:
    for bus in profile.buses:
        table = Table(root.path, f"[[bus]] '{bus.name}'", {})
        if not bus.motors:
            raise table.error("name", "it has no motors; add [[motor]] tables with bus = ...")
        if twice := _doubled(motor.id for motor in bus.motors):
            second = [motor for motor in bus.motors if motor.id == twice][1]
            motor_table = Table(root.path, f"[[motor]] '{second.name}'", {})
            raise motor_table.error("id", f"two motors of bus '{bus.name}' have id {twice}")
        others = [other for other in profile.buses if other is not bus]
        if bus.port and any(other.port == bus.port for other in others):
            raise table.error("port", f"two buses have the port {bus.port}; each has an adapter of its own")
        if profile.is_calibrated_by_file and any(
            other.calibration_suffix == bus.calibration_suffix for other in others
        ):
            raise table.error(
                "calibration_suffix",
                f"{say(bus.calibration_suffix)} is another bus's, too: both would share one file",
            )


def _check_shadows(motors: Sequence[Motor], root: Table) -> None:
    known = {motor.name: motor for motor in motors}
    for motor in motors:
        if motor.shadow_of is None:
            continue
        table = Table(root.path, f"[[motor]] '{motor.name}'", {})
        leader = known.get(motor.shadow_of)
        if leader is None or leader.bus != motor.bus or leader.shadow_of is not None:
            raise table.error(
                "shadow_of",
                f"'{motor.shadow_of}' is not a motor with a joint on bus '{motor.bus}'",
                motor.shadow_of,
                [m.name for m in motors if m.shadow_of is None],
            )


def _check_times(profile: Profile, root: Table) -> None:
    """The guardian and the servos' watchdog must bear the pace of the control loop."""
    rates, lease_ms = profile.rates, profile.escalation.lease_ms
    needed_ms = TICKS_PER_LEASE * 1000 / rates.servo_hz
    if lease_ms < needed_ms:
        raise Table(root.path, "[escalation]", {}).error(
            "lease_ms",
            f"{lease_ms} is less than two ticks at servo_hz = {rates.servo_hz}, {needed_ms:.0f} ms",
        )
    table = Table(root.path, "[rates]", {})
    if rates.record_hz > rates.servo_hz:
        raise table.error("record_hz", f"{rates.record_hz} is more than servo_hz, {rates.servo_hz}")
    least_ms = max(WATCHDOG_STEP_MS, needed_ms)
    if rates.watchdog_ms and rates.watchdog_ms < least_ms and _has_watchdog(profile):
        raise table.error(
            "watchdog_ms",
            f"{rates.watchdog_ms} is less than two ticks at servo_hz = {rates.servo_hz}, {least_ms:.0f} ms; 0 is off",
        )


def _has_watchdog(profile: Profile) -> bool:
    return any("bus_watchdog" in BUSES[bus.protocol].registers for bus in profile.buses)


def _doubled(values: Iterable[str | int]) -> str | int | None:
    """The first value that comes a second time."""
    seen: set[str | int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
