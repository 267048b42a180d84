"""A robot as data: the TOML file that names its buses, servos, joints, limits, cameras and what happens when
something breaks.

`load_profile("so101")` finds a profile of this package, `load_profile("path/to/mine.toml")` a user's own. The
result is frozen and checked: an unknown key, a missing one or a wrong value is one sentence with file, table
and key. Code is per servo protocol, never per robot. No numpy here: the guardian imports this.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgevla.errors import ConfigError
from edgevla.strict import nearest

from .bus.protocols import BUSES
from .toml_tables import Table, read_toml

PROFILES_DIR = Path(__file__).parent

JointUnit = Literal["deg", "range100", "percent", "rad", "unit"]
UNITS = ("body", "percent", "rad", "gripper")


@dataclass(frozen=True)
class GripperMap:
    """ALOHA's gripper: the state normalises the finger's linear position, the action the motor's angle.

    Finger position from the angle: x = r sin a + sqrt(L^2 - (r cos a)^2), r = horn_m, L = arm_m.
    """

    horn_m: float
    arm_m: float
    open_m: float
    closed_m: float
    open_rad: float
    closed_rad: float


@dataclass(frozen=True)
class Motor:
    """One servo. `joint` is None for a shadow, which obeys `shadow_of` and is never given a goal.

    drive_mode: direction as the servo (Dynamixel register 10) or LeRobot's calibration (Feetech) means it.
    settings: raw register values that connecting writes where they differ.
    """

    name: str
    bus: str
    id: int
    model: str
    drive_mode: int = 0
    shadow_of: str | None = None
    settings: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Joint:
    """One element of state and action, in the profile's order.

    name: as in datasets. motor: the servo that gets its goals. unit: of state, action and all limits here.
    range_ticks: servo range where no calibration file gives it (None: from the calibration).
    """

    name: str
    motor: str
    unit: JointUnit
    min: float
    max: float
    max_velocity: float
    home: float
    rest: float
    is_gripper: bool = False
    range_ticks: tuple[int, int] | None = None
    gripper: GripperMap | None = None


@dataclass(frozen=True)
class Bus:
    name: str
    protocol: str
    port: str
    baud: int
    calibration_suffix: str = ""
    motors: tuple[Motor, ...] = ()


@dataclass(frozen=True)
class Camera:
    """A camera of the robot. source: what `--camera NAME=SOURCE` takes; fps: frames per second.

    rotation: degrees, clockwise, by which its picture is turned: how it is mounted. width, height: after that.
    fit: what to do where another size is wanted than the camera gives: `exact` refuses, `crop` cuts the middle,
    `resize` averages areas.
    fourcc: pixel format to ask for (`MJPG`); empty: the driver's choice.
    exposure, gain, white_balance: locked to these driver units (white balance: kelvin) where given.
    """

    name: str
    source: str
    width: int
    height: int
    fps: float
    has_locked_exposure: bool = False
    fit: Literal["exact", "crop", "resize"] = "exact"
    fourcc: str = ""
    exposure: float | None = None
    gain: float | None = None
    white_balance: float | None = None
    rotation: int = 0


@dataclass(frozen=True)
class Escalation:
    """What happens, in order, when the loop dies, hangs or gives up.

    lease_ms: silence of the loop after which the guardian takes the bus.
    hold_ms: how long the arm is frozen where it is, at full torque.
    park_ms, park_torque: then at this share (0..1) of the torque limit, so that it sinks instead of falling.
    release: whether torque is switched off after that (else it stays parked until the power is cut).
    """

    lease_ms: int = 100
    hold_ms: int = 2000
    park_ms: int = 4000
    park_torque: float = 0.4
    release: bool = True


@dataclass(frozen=True)
class Limits:
    """When measured values act, before the servo's own shutdown does.

    stale_hold_ms, stale_hold_ticks: a joint this long without a value: hold the goal, ask for no new chunk.
    stale_fail_ms: the run ends. overload_ms: a load of `overload_percent` this long stops.
    """

    stale_hold_ms: int = 100
    stale_hold_ticks: int = 3
    stale_fail_ms: int = 500
    temperature_warn_c: float = 60.0
    temperature_stop_c: float = 65.0
    voltage_min: float = 4.5
    voltage_max: float = 14.0
    voltage_ms: int = 200
    overload_percent: float = 90.0
    overload_ms: int = 1000
    following_error: float = 25.0
    following_ms: int = 1000
    pair_ticks: int = 20


@dataclass(frozen=True)
class Rates:
    """servo_hz: the fastest control loop this robot's buses carry. record_hz: how often a leader's pose is taken, and
    so the rate of datasets recorded from it. home_speed: share of `max_velocity`."""

    servo_hz: int = 100
    record_hz: int = 30
    home_speed: float = 0.25
    watchdog_ms: int = 200


@dataclass(frozen=True)
class Profile:
    """See the module. `joints` are the elements of state and action, in order."""

    name: str
    path: Path
    kind: Literal["follower", "leader"]
    joint_units: Literal["degrees", "range100", "rad"]
    lerobot_types: tuple[str, ...]
    buses: tuple[Bus, ...]
    joints: tuple[Joint, ...]
    cameras: tuple[Camera, ...]
    rates: Rates
    limits: Limits
    escalation: Escalation
    world: str = ""
    """Which arm the simulated world draws; empty: none."""
    _motors: dict[str, Motor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_calibrated_by_file(self) -> bool:
        """Whether joint angles need a LeRobot calibration file."""
        return any(joint.range_ticks is None for joint in self.joints)

    def motor(self, name: str) -> Motor:
        return self._motors[name]

    def bus_of_motor(self, motor: Motor) -> Bus:
        return next(bus for bus in self.buses if bus.name == motor.bus)

    def with_units(self, joint_units: str) -> Profile:
        """The same robot, written in degrees, with its body joints in `range100`.

        Raises ConfigError for a robot whose units are not a choice.
        """
        if joint_units == self.joint_units:
            return self
        if self.joint_units != "degrees" or joint_units != "range100":
            raise ConfigError(f"robot {self.name} works in {self.joint_units}, not in {joint_units}")
        joints = tuple(_to_range100(joint) for joint in self.joints)
        return dataclasses.replace(self, joint_units="range100", joints=joints)


def _to_range100(joint: Joint) -> Joint:
    """A body joint in -100..100 of its nominal range instead of degrees from mid range."""
    if joint.unit != "deg":
        return joint
    scale = 200.0 / (joint.max - joint.min)
    return dataclasses.replace(
        joint, unit="range100", min=-100.0, max=100.0, max_velocity=joint.max_velocity * scale,
        home=joint.home * scale, rest=joint.rest * scale,
    )  # fmt: skip


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES_DIR.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of a known robot, or of a file. Raises ConfigError with file, table and key."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = PROFILES_DIR / f"{name_or_path}.toml"
        if not path.exists():
            raise ConfigError(
                f"unknown robot '{name_or_path}'; known: {', '.join(profile_names())}, or a path to a .toml file"
                + nearest(str(name_or_path), profile_names())
            )
    root = read_toml(path)
    grippers = {name: _gripper(table) for name, table in root.tables("gripper").items()}
    base = Profile(
        name=root.text("name"),
        path=path,
        kind=root.choice("kind", ("follower", "leader")),  # type: ignore[arg-type]
        joint_units=root.choice("joint_units", ("degrees", "range100", "rad")),  # type: ignore[arg-type]
        lerobot_types=tuple(root.texts("lerobot_types", ())),
        buses=(),
        joints=(),
        cameras=_cameras(root),
        rates=root.dataclass("rates", Rates),
        limits=root.dataclass("limits", Limits),
        escalation=root.dataclass("escalation", Escalation),
        world=root.text("world", ""),
    )
    buses = [_bus(table) for table in root.array("bus")]
    motors: dict[str, Motor] = {}
    joints: list[Joint] = []
    for table in root.array("motor"):
        _add_motor(table, base, buses, grippers, motors, joints)
    root.finish()
    _check_shadows(root, motors)
    filled = tuple(
        dataclasses.replace(b, motors=tuple(m for m in motors.values() if m.bus == b.name)) for b in buses
    )
    for bus in filled:
        if not bus.motors:
            raise ConfigError(f"{path}: bus '{bus.name}' has no motors; add [[motor]] tables with bus = ...")
    return dataclasses.replace(base, buses=filled, joints=tuple(joints), _motors=motors)


def _bus(table: Table) -> Bus:
    protocol = table.choice("protocol", tuple(BUSES))
    bauds = tuple(BUSES[protocol].bauds)
    bus = Bus(
        name=table.text("name"),
        protocol=protocol,
        port=table.text("port", ""),
        baud=int(table.choice("baud", bauds)),
        calibration_suffix=table.text("calibration_suffix", ""),
    )
    table.finish()
    return bus


def _cameras(root: Table) -> tuple[Camera, ...]:
    cameras: list[Camera] = []
    for table in root.array("camera", is_needed=False):
        cameras.append(_camera(table))
        if cameras[-1].name in [camera.name for camera in cameras[:-1]]:
            raise table.error("name", f"two cameras are called '{cameras[-1].name}'")
    return tuple(cameras)


def _camera(table: Table) -> Camera:
    camera = Camera(
        name=table.text("name"),
        source=table.text("source"),
        width=table.whole("width", 1, 8192),
        height=table.whole("height", 1, 8192),
        fps=table.number("fps", 0.1, 1000),
        has_locked_exposure=table.flag("locked_exposure", False),
        fit=table.choice("fit", ("exact", "crop", "resize"), "exact"),
        fourcc=table.text("fourcc", ""),
        exposure=_locked(table, "exposure"),
        gain=_locked(table, "gain"),
        white_balance=_locked(table, "white_balance"),
        rotation=table.choice("rotation", (0, 90, 180, 270), 0),
    )
    table.finish()
    if not re.fullmatch(r"[\w-]+", camera.name, re.ASCII):
        raise table.error("name", f"'{camera.name}' must be of letters, digits, '_' and '-'")
    if not re.fullmatch(r"([ -~]{4})?", camera.fourcc):
        raise table.error(
            "fourcc", f"'{camera.fourcc}' is no pixel format; give four letters such as MJPG or YUYV"
        )
    return camera


def _locked(table: Table, key: str) -> float | None:
    return table.number(key, 0, 1e6) if key in table else table.raw(key, None)


def _gripper(table: Table) -> GripperMap:
    keys = [f.name for f in dataclasses.fields(GripperMap)]
    gripper = GripperMap(**{key: table.number(key, -10, 10) for key in keys})
    table.finish()
    if gripper.open_m == gripper.closed_m or gripper.open_rad == gripper.closed_rad:
        raise table.error("open_m", "open and closed must differ")
    return gripper


def _add_motor(
    table: Table,
    profile: Profile,
    buses: list[Bus],
    grippers: dict[str, GripperMap],
    motors: dict[str, Motor],
    joints: list[Joint],
) -> None:
    name = table.text("name")
    bus_name = table.choice("bus", tuple(b.name for b in buses))
    bus = next(b for b in buses if b.name == bus_name)
    shadow_of = table.text("shadow_of", "") or None
    settings = table.raw("settings", {})
    motor = Motor(
        name=name,
        bus=bus_name,
        id=table.whole("id", 0, 252),
        model=table.choice("model", tuple(BUSES[bus.protocol].known_models)),
        drive_mode=table.whole("drive_mode", 0, 1, 0),
        shadow_of=shadow_of,
        settings=tuple(sorted(_checked_settings(table, bus.protocol, settings).items())),
    )
    if name in motors:
        raise table.error("name", f"two motors are called '{name}'")
    if any(m.bus == bus_name and m.id == motor.id for m in motors.values()):
        raise table.error("id", f"two motors of bus '{bus_name}' have id {motor.id}")
    motors[name] = motor
    if shadow_of is None:
        joints.append(_joint(table, profile, motor, grippers))
    table.finish()


def _joint(table: Table, profile: Profile, motor: Motor, grippers: dict[str, GripperMap]) -> Joint:
    kind = table.choice("unit", UNITS)
    unit: Any = {"percent": "percent", "rad": "rad", "gripper": "unit"}.get(kind)
    if kind == "body":
        unit = {"degrees": "deg", "range100": "range100", "rad": "rad"}[profile.joint_units]
    gripper = None
    if kind == "gripper":
        gripper = grippers[table.choice("gripper", tuple(grippers))]
    low, high = table.pair("limits", (0.0, {"percent": 100.0}.get(kind, 1.0)) if kind != "body" else None)
    joint = Joint(
        name=table.text("joint"),
        motor=motor.name,
        unit=unit,
        min=low,
        max=high,
        max_velocity=table.number("max_velocity", 1e-3, 1e6),
        home=table.number("home", low, high),
        rest=table.number("rest", low, high, table.peek("home")),
        is_gripper=kind in ("percent", "gripper") and table.flag("is_gripper", True),
        range_ticks=_ticks(table),
        gripper=gripper,
    )
    if not low < high:
        raise table.error("limits", f"the lower limit {low} is not below the upper {high}")
    return joint


def _ticks(table: Table) -> tuple[int, int] | None:
    if "range_ticks" not in table:
        return None
    low, high = table.pair("range_ticks", None)
    if not 0 <= low < high <= 4095:
        raise table.error("range_ticks", f"[{low:g}, {high:g}] is not an increasing range within 0..4095")
    return int(low), int(high)


def _checked_settings(table: Table, protocol: str, settings: Any) -> dict[str, int]:
    registers = BUSES[protocol].registers
    if not isinstance(settings, dict):
        raise table.error("settings", "expected a table of register = value")
    for name, value in settings.items():
        if name not in registers:
            raise table.error(f"settings.{name}", f"{protocol} servos have no such register", name, registers)
        low, high = registers[name].limits
        if not isinstance(value, int) or not low <= value <= high:
            raise table.error(f"settings.{name}", f"{value!r} is not a whole number within {low}..{high}")
    return settings


def _check_shadows(root: Table, motors: dict[str, Motor]) -> None:
    for motor in motors.values():
        if motor.shadow_of is None:
            continue
        leader = motors.get(motor.shadow_of)
        if leader is None or leader.bus != motor.bus or leader.shadow_of is not None:
            raise root.error(
                f"motor '{motor.name}'.shadow_of",
                f"'{motor.shadow_of}' is not a motor with a joint on bus '{motor.bus}'",
                motor.shadow_of,
                [m.name for m in motors.values() if m.shadow_of is None],
            )
