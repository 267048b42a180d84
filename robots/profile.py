"""A robot as data: the TOML file that names its buses, servos, joints, limits, cameras and what happens when
something breaks.

`load_profile("so101")` finds a profile of this package, `load_profile("path/to/mine.toml")` a user's own. The
result is frozen and checked: an unknown key, a missing one or a wrong value is one sentence with file, table
and key. Code is per servo protocol, never per robot. No numpy here: the guardian imports this.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from edgevla.errors import ConfigError
from edgevla.kinds import say
from edgevla.strict import Within, nearest

from . import profile_checks
from .bus.protocols import BUSES
from .servo_settings import read_model, read_settings
from .toml_tables import Table, read_toml

PROFILES_DIR = Path(__file__).parent

JointUnit = Literal["deg", "range100", "percent", "rad", "unit"]
UNITS = ("body", "percent", "rad", "gripper")
WORLDS = ("", "so101", "aloha")
SPANS: dict[str, tuple[float, float]] = {
    "deg": (-360, 360), "range100": (-100, 100), "percent": (0, 100), "rad": (-6.2832, 6.2832), "unit": (-1, 2),
}  # fmt: skip
"""What a joint's limits may be, by unit."""
FASTEST = {"deg": 1000.0, "range100": 1000.0, "percent": 1000.0, "rad": 20.0, "unit": 20.0}
"""Unit per second; no servo that can be named turns faster."""
FULL_TURN = {"deg": 359.0, "rad": math.radians(359)}


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

    model: its name in lower case, or `model 1234` where only the number is known.
    drive_mode: direction as the servo (Dynamixel register 10) or LeRobot's calibration (Feetech) means it.
    settings: raw register values that connecting writes where they differ.
    """

    name: str
    bus: str
    id: int
    model: str
    model_number: int
    drive_mode: int = 0
    shadow_of: str | None = None
    settings: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Joint:
    """One element of state and action, in the profile's order.

    name: as in datasets. motor: the servo that gets its goals. unit: of state, action and all limits here.
    range_ticks: servo range where no calibration file gives it (None: from the calibration).
    is_full_turn: it turns all the way round, so it has no ends to find.
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
    is_full_turn: bool = False
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

    lease_ms: Annotated[int, Within(20, 10_000)] = 100
    hold_ms: Annotated[int, Within(0, 600_000)] = 2000
    park_ms: Annotated[int, Within(0, 600_000)] = 4000
    park_torque: Annotated[float, Within(0, 1)] = 0.4
    release: bool = True


@dataclass(frozen=True)
class Limits:
    """When measured values act, before the servo's own shutdown does.

    stale_hold_ms, stale_hold_ticks: a joint this long without a value: hold the goal, ask for no new chunk.
    stale_fail_ms: the run ends. overload_ms: a load of `overload_percent` this long stops.
    """

    stale_hold_ms: Annotated[int, Within(1, 10_000)] = 100
    stale_hold_ticks: Annotated[int, Within(1, 1000)] = 3
    stale_fail_ms: Annotated[int, Within(1, 60_000)] = 500
    temperature_warn_c: Annotated[float, Within(20, 100)] = 60.0
    temperature_stop_c: Annotated[float, Within(20, 100)] = 65.0
    voltage_min: Annotated[float, Within(0, 60)] = 4.5
    voltage_max: Annotated[float, Within(1, 60)] = 14.0
    voltage_ms: Annotated[int, Within(0, 60_000)] = 200
    overload_percent: Annotated[float, Within(1, 200)] = 90.0
    overload_ms: Annotated[int, Within(0, 60_000)] = 1000
    following_error: Annotated[float, Within(0.001, 10_000)] = 25.0
    following_ms: Annotated[int, Within(0, 60_000)] = 1000
    pair_ticks: Annotated[int, Within(1, 200)] = 20


@dataclass(frozen=True)
class Rates:
    """servo_hz: the fastest control loop this robot's buses carry. record_hz: how often a leader's pose is taken, and
    so the rate of datasets recorded from it. home_speed: share of `max_velocity`."""

    servo_hz: Annotated[int, Within(1, 1000)] = 100
    record_hz: Annotated[int, Within(1, 1000)] = 30
    home_speed: Annotated[float, Within(0.01, 1)] = 0.25
    watchdog_ms: Annotated[int, Within(0, 2540)] = 200


@dataclass(frozen=True)
class Profile:
    """One robot: its wiring, its joints and their limits, its cameras, and what happens when something breaks.

    joints: the elements of state and action, in order. joint_units: in which its datasets are recorded.
    lerobot_types: `robot_type` of LeRobot's datasets that are of this robot. path: the file that was read.
    """

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
        """A servo by its name; KeyError where there is none."""
        return self._motors[name]

    def bus_of_motor(self, motor: Motor) -> Bus:
        """The bus that a servo is on."""
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
    """The robots that come along."""
    return sorted(path.stem for path in PROFILES_DIR.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of a robot that comes along (`so101`), or of a file (`path/to/mine.toml`).

    Raises:
        ConfigError: no such robot or file, an unknown or missing key, a value that cannot be; names file, table and key.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = PROFILES_DIR / f"{name_or_path}.toml"
        if not path.exists():
            raise ConfigError(
                f"unknown robot '{name_or_path}'; known: {', '.join(profile_names())}, or a path to a .toml file"
                + nearest(str(name_or_path), profile_names())
            )
    return _read(read_toml(path))


def _read(root: Table) -> Profile:
    grippers = {name: _gripper(table) for name, table in root.tables("gripper").items()}
    base = Profile(
        name=root.word("name"),
        path=root.path,
        kind=root.choice("kind", ("follower", "leader")),  # type: ignore[arg-type]
        joint_units=root.choice("joint_units", ("degrees", "range100", "rad")),  # type: ignore[arg-type]
        lerobot_types=tuple(root.words("lerobot_types", ())),
        buses=tuple(_bus(table) for table in root.array("bus")),
        joints=(),
        cameras=_cameras(root),
        rates=root.dataclass("rates", Rates),
        limits=root.dataclass("limits", Limits),
        escalation=root.dataclass("escalation", Escalation),
        world=root.choice("world", WORLDS, ""),
    )
    tables = root.array("motor")
    is_by_file = any("range_ticks" not in table and "shadow_of" not in table for table in tables)
    motors = [_motor(table, base, is_by_file) for table in tables]
    joints = [
        _joint(table, base, motor, grippers)
        for table, motor in zip(tables, motors, strict=True)
        if motor.shadow_of is None
    ]
    for table in (*tables, root):
        table.finish()
    buses = tuple(
        dataclasses.replace(bus, motors=tuple(m for m in motors if m.bus == bus.name)) for bus in base.buses
    )
    made = dataclasses.replace(
        base, buses=buses, joints=tuple(joints), _motors={motor.name: motor for motor in motors}
    )
    profile_checks.check(made, motors, root)
    return made


def _bus(table: Table) -> Bus:
    protocol = table.choice("protocol", tuple(BUSES))
    bauds = tuple(BUSES[protocol].bauds)
    bus = Bus(
        name=table.word("name"),
        protocol=protocol,
        port=table.text("port", ""),
        baud=int(table.choice("baud", bauds)),
        calibration_suffix=table.word("calibration_suffix", ""),
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
    horn_m, arm_m = table.number("horn_m", 1e-4, 1), table.number("arm_m", 1e-4, 1)
    if not horn_m < arm_m:
        raise table.error(
            "arm_m", f"{arm_m:g} is not longer than horn_m, {horn_m:g}: the crank would not turn"
        )
    nearest_m, farthest_m = arm_m - horn_m - 1e-6, arm_m + horn_m + 1e-6
    gripper = GripperMap(
        horn_m,
        arm_m,
        open_m=table.number("open_m", nearest_m, farthest_m),
        closed_m=table.number("closed_m", nearest_m, farthest_m),
        open_rad=table.number("open_rad", *SPANS["rad"]),
        closed_rad=table.number("closed_rad", *SPANS["rad"]),
    )
    table.finish()
    for what in ("m", "rad"):
        if abs(getattr(gripper, f"open_{what}") - getattr(gripper, f"closed_{what}")) < 1e-4:
            raise table.error(f"open_{what}", f"it must differ from closed_{what}")
    return gripper


def _motor(table: Table, profile: Profile, is_by_file: bool) -> Motor:
    bus_name = table.choice("bus", tuple(bus.name for bus in profile.buses))
    bus = next(bus for bus in profile.buses if bus.name == bus_name)
    model, number = read_model(table, bus.protocol)
    shadow_of = table.word("shadow_of", "") or None
    if shadow_of and "secondary_id" not in BUSES[bus.protocol].registers:
        raise table.error("shadow_of", f"{bus.protocol} servos cannot obey for another one")
    if shadow_of and "joint" in table:
        raise table.error("joint", f"a shadow has no joint of its own: it obeys for '{shadow_of}'")
    return Motor(
        name=table.word("name"),
        bus=bus_name,
        id=table.whole("id", 0, BUSES[bus.protocol].codec.MAX_ID),
        model=model,
        model_number=number,
        drive_mode=table.whole("drive_mode", 0, 1, 0),
        shadow_of=shadow_of,
        settings=read_settings(table, bus.protocol, profile.kind, is_by_file),
    )


def _joint(table: Table, profile: Profile, motor: Motor, grippers: dict[str, GripperMap]) -> Joint:
    kind = table.choice("unit", UNITS)
    unit: Any = {"percent": "percent", "rad": "rad", "gripper": "unit"}.get(kind)
    if kind == "body":
        unit = {"degrees": "deg", "range100": "range100", "rad": "rad"}[profile.joint_units]
    gripper = None
    if kind == "gripper":
        if not grippers:
            raise table.error("gripper", "the file has no [gripper.NAME] table to name here")
        gripper = grippers[table.choice("gripper", tuple(grippers))]
    usual = {"percent": (0.0, 100.0), "unit": (0.0, 1.0)}.get(unit)
    low, high = table.pair("limits", *SPANS[unit], usual)
    return Joint(
        name=table.text("joint"),
        motor=motor.name,
        unit=unit,
        min=low,
        max=high,
        max_velocity=table.number("max_velocity", 1e-3, FASTEST[unit]),
        home=table.number("home", low, high),
        rest=table.number("rest", low, high, table.peek("home")),
        is_gripper=kind in ("percent", "gripper") and table.flag("is_gripper", True),
        is_full_turn=high - low > FULL_TURN.get(unit, math.inf),
        range_ticks=_ticks(table),
        gripper=gripper,
    )


def _ticks(table: Table) -> tuple[int, int] | None:
    if "range_ticks" not in table:
        return None
    low, high = table.pair("range_ticks", 0, 4095)
    if low != int(low) or high != int(high):
        raise table.error("range_ticks", f"expected whole numbers, got {say(table.peek('range_ticks'))}")
    return int(low), int(high)
