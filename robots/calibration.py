"""LeRobot's calibration files: found, read, checked, written; and compared with what the servos hold.

The homing offset lives in the servo. A file that is right and a servo that holds another offset mean that every
angle is wrong by the difference, so a difference stops the arm before it moves. No numpy here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgevla.errors import CalibrationError
from edgevla.strict import Mismatch, read

from .profile import Bus, Joint, Profile

MAX_OFFSET = 2047
LAST_TICK = 4095
REGISTER_OF = {"homing_offset": "homing_offset", "range_min": "min_position", "range_max": "max_position"}
KIND_FOLDERS = {"follower": "robots", "leader": "teleoperators"}
LEAST_RANGE = 100
CENTRE_TICK, TURN = 2048, 4096
REACH_TOLERANCE = 0.005
"""Of a joint's range: a pose less than this beyond its end is at its end."""


@dataclass(frozen=True)
class MotorCalibration:
    """One servo: what registers 31, 9 and 11 hold, and LeRobot's drive mode."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


@dataclass(frozen=True)
class Calibration:
    """By motor name of the profile (with the arm's prefix). `source`: where it is from, in words."""

    motors: Mapping[str, MotorCalibration]
    source: str = ""


def folders() -> list[Path]:
    """Where LeRobot keeps calibrations, the first that applies to this environment first."""
    if root := os.environ.get("HF_LEROBOT_CALIBRATION"):
        return [Path(root)]
    roots = []
    if home := os.environ.get("HF_LEROBOT_HOME"):
        roots.append(Path(home) / "calibration")
    if home := os.environ.get("HF_HOME"):
        roots.append(Path(home) / "lerobot" / "calibration")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    roots.append(cache / "huggingface" / "lerobot" / "calibration")
    return roots


def candidates(profile: Profile, bus: Bus, calibration_id: str | None) -> list[Path]:
    """All files that could calibrate this bus, newest naming first. Without an id LeRobot wrote `None.json`."""
    kind = KIND_FOLDERS[profile.kind]
    name = f"{calibration_id}{bus.calibration_suffix}.json"
    return [root / kind / t / name for root in folders() for t in profile.lerobot_types]


def find(profile: Profile, bus: Bus, calibration_id: str | None) -> Path | None:
    """The calibration file of a bus, None when there is none.

    Raises CalibrationError when several exist and differ: only a person knows which belongs to this arm.
    """
    there = [path for path in candidates(profile, bus, calibration_id) if path.is_file()]
    if not there:
        return None
    first = read_file(there[0])
    for other in there[1:]:
        if read_file(other) != first:
            raise CalibrationError(
                f"{there[0]} and {other} are both calibrations of '{calibration_id}' and differ; name one with "
                "--calibration FILE, or delete the wrong one"
            )
    return there[0]


def load(
    profile: Profile, calibration_id: str | None = None, files: Mapping[str, Path] | None = None
) -> Calibration:
    """The calibration of all buses of a robot.

    files: bus name -> file, instead of searching. Raises CalibrationError when one is missing or implausible.
    """
    motors: dict[str, MotorCalibration] = {}
    sources = []
    for bus in profile.buses:
        path = (files or {}).get(bus.name) or find(profile, bus, calibration_id)
        if path is None:
            looked = candidates(profile, bus, calibration_id)
            named = f"id {calibration_id}" if calibration_id is not None else "no id"
            option = f" --id {calibration_id}" if calibration_id is not None else ""
            raise CalibrationError(
                f"no calibration of {profile.name} (bus {bus.name}, {named}); looked for {looked[0]} and "
                f"{len(looked) - 1} older places. Run: edgevla calibrate --robot {profile.name}{option}"
            )
        motors.update(match(profile, bus, read_file(path), str(path)))
        sources.append(str(path))
    _refuse_blank(profile, motors, ", ".join(sources))
    return Calibration(motors, ", ".join(sources))


def find_calibration(profile: Profile, wanted: str | None) -> Calibration | None:
    """The calibration that a user named: an id, a file, `nominal` (emulated arms), or `servos`.

    None (take what the servos hold) for `servos` and for robots that need no file. Without a name: the only file
    there is. Raises CalibrationError when it is not clear which.
    """
    if not profile.is_calibrated_by_file or wanted == "servos":
        return None
    if wanted == "nominal":
        return nominal(profile)
    if wanted is not None and wanted.endswith(".json"):
        if len(profile.buses) > 1:
            raise CalibrationError(
                f"{profile.name} has {len(profile.buses)} arms: name their common id, not a file"
            )
        return load(profile, None, {profile.buses[0].name: Path(wanted)})
    return load(profile, wanted if wanted is not None else _only_id(profile))


def _only_id(profile: Profile) -> str | None:
    """The id of the only calibration there is; None when there is none or it has no id."""
    suffix = profile.buses[0].calibration_suffix
    paths = [p.parent for p in candidates(profile, profile.buses[0], None)]
    ids = sorted({f.stem.removesuffix(suffix) for folder in paths for f in folder.glob(f"*{suffix}.json")})
    if len(ids) > 1:
        raise CalibrationError(
            f"several calibrations of {profile.name} exist: {', '.join(ids)}; choose with --calibration ID"
        )
    return None if not ids or ids[0] == "None" else ids[0]


def read_file(path: Path) -> dict[str, MotorCalibration]:
    """Entries as the file names them. Raises CalibrationError with file, joint and value."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CalibrationError(f"calibration file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CalibrationError(f"calibration file {path} is not readable JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise CalibrationError(f"calibration file {path} holds no joints")
    if "motor_names" in content or any(isinstance(value, list) for value in content.values()):
        raise CalibrationError(
            f"calibration file {path} has the list form from before LeRobot 0.2, whose zero differs; "
            "calibrate again: edgevla calibrate"
        )
    try:
        return read(dict[str, MotorCalibration], content, f"calibration file {path}:")
    except Mismatch as error:
        raise CalibrationError(str(error)) from None


def match(
    profile: Profile, bus: Bus, entries: Mapping[str, MotorCalibration], source: str
) -> dict[str, MotorCalibration]:
    """Entries by the profile's motor names, checked. LeRobot's files of a two-arm robot have no arm prefix."""
    prefix = f"{bus.name}_" if bus.calibration_suffix else ""
    wanted = {motor.name.removeprefix(prefix): motor for motor in bus.motors}
    if set(entries) != set(wanted):
        lacks, extra = sorted(set(wanted) - set(entries)), sorted(set(entries) - set(wanted))
        raise CalibrationError(
            f"{source} does not fit {profile.name}: "
            + "; ".join(
                f"{what} {', '.join(names)}"
                for what, names in (("lacks", lacks), ("has also", extra))
                if names
            )
        )
    for name, entry in entries.items():
        if fault := implausible(entry, wanted[name].id):
            raise CalibrationError(
                f"{source}: joint '{name}' {fault}; calibrate again: edgevla calibrate --robot {profile.name}"
            )
    return {wanted[name].name: entry for name, entry in entries.items()}


def implausible(entry: MotorCalibration, servo_id: int) -> str | None:
    """What cannot be right about an entry, None when nothing."""
    if entry.id != servo_id:
        return f"has id {entry.id}, the profile says {servo_id}"
    if entry.drive_mode not in (0, 1):
        return f"has drive_mode {entry.drive_mode}, expected 0 or 1"
    if abs(entry.homing_offset) > MAX_OFFSET:
        return f"has homing_offset {entry.homing_offset}, which register 31 cannot hold (-2047..2047)"
    if not 0 <= entry.range_min < entry.range_max <= LAST_TICK:
        return (
            f"has the range {entry.range_min}..{entry.range_max}, expected an increasing one within 0..4095"
        )
    if entry.range_max - entry.range_min < LEAST_RANGE:
        return f"has a range of only {entry.range_max - entry.range_min} ticks: it was not moved while calibrating"
    return None


def never_calibrated(profile: Profile, motors: Mapping[str, MotorCalibration]) -> list[str]:
    """Motors that hold what a new servo holds, where that cannot be a calibration.

    A jaw that was swept has not the whole turn. Another joint may have been homed only, but not to offset 0. One that
    turns all the way round looks the same before and after, unless all servos do.
    """
    suspects = {}
    for joint in profile.joints:
        entry = motors.get(joint.motor)
        if joint.range_ticks is None and entry is not None and _has_whole_turn(entry):
            suspects[joint.motor] = (joint, entry)
    blank = [name for name, (_, entry) in suspects.items() if entry.homing_offset == 0]
    if blank and len(blank) == len(motors):
        return blank
    return [
        name
        for name, (joint, entry) in suspects.items()
        if not joint.is_full_turn and (entry.homing_offset == 0 or joint.unit == "percent")
    ]


def _has_whole_turn(entry: MotorCalibration) -> bool:
    return (entry.range_min, entry.range_max) == (0, LAST_TICK)


def _refuse_blank(profile: Profile, motors: Mapping[str, MotorCalibration], source: str) -> None:
    names = never_calibrated(profile, motors)
    if not names:
        return
    who = "all servos" if len(names) == len(motors) else ", ".join(names)
    raise CalibrationError(
        f"{source}: {who} of {profile.name} {'was' if len(names) == 1 else 'were'} never calibrated: offset and range "
        f"(0..4095) are a new servo's. Run: edgevla calibrate --robot {profile.name}"
    )


def out_of_reach(profile: Profile, calibration: Calibration) -> list[str]:
    """One sentence per joint whose home or rest pose lies outside its calibrated range: the sweep was not complete, or
    this arm cannot go there."""
    lines = []
    for joint in profile.joints:
        entry = calibration.motors.get(joint.motor)
        if entry is None or joint.unit not in ("deg", "rad"):
            continue
        low, high = _reach(joint, entry)
        for what in ("home", "rest"):
            value = getattr(joint, what)
            end = max(low, min(high, value))
            if abs(value - end) > (high - low) * REACH_TOLERANCE:
                lines.append(
                    f"{joint.motor}: {what} is {value:g} in {profile.path.name}, its calibrated range ends at {end:.4g}"
                )
    return lines


def _reach(joint: Joint, entry: MotorCalibration) -> tuple[float, float]:
    """Ends of the calibrated range in the joint's unit."""
    if joint.unit == "deg":
        half = (entry.range_max - entry.range_min) / 2 * 360 / LAST_TICK
        return -half, half
    low, high = joint.range_ticks or (entry.range_min, entry.range_max)
    return (low - CENTRE_TICK) * math.tau / TURN, (high - CENTRE_TICK) * math.tau / TURN


def differences(calibration: Calibration, held: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One line per register in which file and servo differ. held: motor -> register name -> raw value."""
    lines = []
    for name, entry in calibration.motors.items():
        for key, register in REGISTER_OF.items():
            wanted, found = getattr(entry, key), held[name][register]
            if wanted != found:
                lines.append(f"{name}: {key} is {wanted} in the file, {found} in the servo")
    return lines


def refuse_other_kind(profile: Profile, held: Mapping[str, Mapping[str, int]], port: str) -> None:
    """held: as `differences`. port: where the arm is, for the sentence.

    Raises:
        CalibrationError: a leader arm stands where a follower should, or the other way round: its servos hold, to the
            tick, what the calibration file of one says, and that of no arm of the kind that was asked for.
    """
    other = "leader" if profile.kind == "follower" else "follower"
    path = _file_of(profile, KIND_FOLDERS[other], held)
    if path is not None and _file_of(profile, KIND_FOLDERS[profile.kind], held) is None:
        raise CalibrationError(
            f"{profile.name} on {port}: this arm is a {other}, its servos hold what {path} says. Were the two ports "
            "exchanged? Give --port the follower's, --leader-port the leader's. The arm was not moved"
        )


def _file_of(profile: Profile, folder: str, held: Mapping[str, Mapping[str, int]]) -> Path | None:
    """A calibration below `folder` that says of one bus what its servos hold."""
    for bus in profile.buses:
        prefix = f"{bus.name}_" if bus.calibration_suffix else ""
        wanted = {
            motor.name.removeprefix(prefix): [held[motor.name][name] for name in REGISTER_OF.values()]
            for motor in bus.motors
        }
        for path in (path for root in folders() for path in sorted((root / folder).glob("*/*.json"))):
            # Another robot's file, or a damaged one, says nothing of this arm.
            with contextlib.suppress(CalibrationError):
                entries = read_file(path)
                said = {name: [getattr(entry, key) for key in REGISTER_OF] for name, entry in entries.items()}
                if said == wanted:
                    return path
    return None


def adopted(profile: Profile, held: Mapping[str, Mapping[str, int]]) -> Calibration:
    """What the servos hold, as a calibration. Raises CalibrationError when it is implausible (never calibrated)."""
    motors = {}
    for bus in profile.buses:
        for motor in bus.motors:
            values = held[motor.name]
            entry = MotorCalibration(
                motor.id,
                motor.drive_mode,
                values["homing_offset"],
                values["min_position"],
                values["max_position"],
            )
            if fault := implausible(entry, motor.id):
                raise CalibrationError(
                    f"the registers of motor '{motor.name}' are no calibration: it {fault}"
                )
            motors[motor.name] = entry
    _refuse_blank(profile, motors, "the servos hold no calibration")
    return Calibration(motors, "the servos' registers")


def targets(profile: Profile, calibration_id: str | None) -> dict[str, Path]:
    """Bus name -> the file that `write` will write: the one there is, else where LeRobot looks first.

    Raises CalibrationError when it is not clear which, or when nothing can be written there.
    """
    paths = {}
    for bus in profile.buses:
        path = find(profile, bus, calibration_id) or candidates(profile, bus, calibration_id)[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CalibrationError(
                f"{path.parent} cannot be made ({error.strerror}); name another folder in HF_LEROBOT_CALIBRATION"
            ) from error
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise CalibrationError(
                f"{path.parent} cannot be written; take it into your hands: sudo chown -R $USER {path.parent}"
            )
        paths[bus.name] = path
    return paths


def write(profile: Profile, calibration: Calibration, calibration_id: str | None) -> list[Path]:
    """Writes one LeRobot file per bus where LeRobot looks first; an older file is kept beside it as .bak-DATE."""
    paths = targets(profile, calibration_id)
    for bus in profile.buses:
        prefix, path = f"{bus.name}_" if bus.calibration_suffix else "", paths[bus.name]
        entries = {m.name.removeprefix(prefix): asdict(calibration.motors[m.name]) for m in bus.motors}
        if path.exists():
            backup = path.with_suffix(f".json.bak-{time.strftime('%Y%m%d-%H%M%S')}")
            backup.write_bytes(path.read_bytes())
        partial = path.with_suffix(".json.part")
        partial.write_text(json.dumps(entries, indent=4) + "\n", encoding="utf-8")
        partial.replace(path)
    return list(paths.values())


def nominal(profile: Profile) -> Calibration:
    """A plausible calibration of an arm as drawn: what emulated servos are born with.

    Offsets differ in size and sign per servo, so that a forgotten one shows.
    """
    motors = {}
    joints = {joint.motor: joint for joint in profile.joints}
    for bus in profile.buses:
        for motor in bus.motors:
            low, high = _nominal_range(joints.get(motor.name))
            offset = (-1) ** motor.id * (100 + 137 * motor.id) if profile.is_calibrated_by_file else 0
            motors[motor.name] = MotorCalibration(motor.id, motor.drive_mode, offset, low, high)
    return Calibration(motors, f"the nominal calibration of {profile.name}")


def _nominal_range(joint: Joint | None) -> tuple[int, int]:
    if joint is None or joint.unit == "range100":
        return 0, LAST_TICK
    if joint.range_ticks is not None:
        return joint.range_ticks
    if joint.unit == "percent":  # SO101's jaw: -10 .. +100 degrees
        return 2030, 2030 + round(110 * 4095 / 360)
    if joint.unit == "unit":
        return 0, LAST_TICK
    span_deg = math.degrees(joint.max - joint.min) if joint.unit == "rad" else joint.max - joint.min
    half = round(span_deg / 2 * 4095 / 360)
    return max(0, 2047 - half), min(LAST_TICK, 2047 + half)
