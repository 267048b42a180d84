"""Calibrates an arm, guided in the terminal, and keeps LeRobot's file.

    edgevla calibrate --robot so101 --id blue            centre, sweep, save
    edgevla calibrate --robot so101 --id blue --check    does the file say what the servos hold?
    edgevla calibrate --robot so101 --id blue --write    the file is right: write it into the servos
    edgevla calibrate --robot so101 --id blue --adopt    the servos are right: write the file

Torque is off all the time: hold the arm. An older file is kept beside the new one as .bak-DATE.
"""

from __future__ import annotations

import argparse
import select
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from edgevla.errors import BusError, CalibrationError, UsageError

if TYPE_CHECKING:
    from ..bus.servo_bus import ServoBus
    from ..calibration import Calibration
    from ..profile import Profile

CENTRE_TICK = 2047
TURN = 4096
LAST_TICK = 4095
POLL_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..ports import add_port_argument

    parser.add_argument("--robot", required=True, help="name of a profile, or a path to a .toml file")
    add_port_argument(parser)
    parser.add_argument("--id", help="name of this arm: LeRobot's --robot.id")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--check", action="store_true", help="compare the file with the servos, change nothing"
    )
    group.add_argument("--write", action="store_true", help="write the file into the servos")
    group.add_argument("--adopt", action="store_true", help="write a file with what the servos hold")


def run(args: argparse.Namespace) -> int:
    from ..ports import open_ports
    from ..profile import load_profile
    from ..rescue import make_buses

    profile = load_profile(args.robot)
    if not profile.is_calibrated_by_file:
        raise UsageError(
            f"{profile.name} needs no calibration: its servos' ranges are in {profile.path.name}"
        )
    if args.id is not None and (not args.id or "/" in args.id):
        raise UsageError(
            f"--id '{args.id}' is no name of an arm; LeRobot's --robot.id is one word such as blue"
        )
    ports = open_ports(profile, args.port)
    try:
        lines = make_buses(profile, ports)
        if args.check:
            return check(profile, lines, args.id, sys.stdout)
        if args.write:
            return write(profile, lines, args.id, sys.stdout)
        if args.adopt:
            return adopt(profile, lines, args.id, sys.stdout)
        return guide(profile, lines, args.id, Terminal())
    finally:
        for port in ports.values():
            port.close()


def check(profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, out: TextIO) -> int:
    """0 when file and servos agree, else 1 and one line per difference."""
    from ..calibration import differences, load
    from ..handshake import held_calibration

    wanted = load(profile, calibration_id)
    found = differences(wanted, held_calibration(lines, profile, wanted))
    for line in found:
        print(line, file=out)
    print(
        f"{wanted.source}: " + (f"{len(found)} differences" if found else "the servos hold the same"),
        file=out,
    )
    return int(bool(found))


def write(profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, out: TextIO) -> int:
    from ..calibration import load
    from ..handshake import write_calibration

    wanted = load(profile, calibration_id)
    _torque_off(lines)
    changed = write_calibration(lines, profile, wanted)
    for line in changed or ["nothing to change"]:
        print(line, file=out)
    return 0


def adopt(profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, out: TextIO) -> int:
    from .. import calibration
    from ..handshake import held_calibration

    made = calibration.adopted(profile, held_calibration(lines, profile))
    for path in calibration.write(profile, made, calibration_id):
        print(f"wrote {path}", file=out)
    return 0


def _torque_off(lines: Mapping[str, ServoBus]) -> None:
    from ..rescue import torque_off

    for line in lines.values():
        if missing := torque_off(line):
            names = ", ".join(line.name_of(i) for i in missing)
            raise CalibrationError(f"torque could not be confirmed off on {names}; switch the arm off and on")


# ---- the guided way ----


class Terminal:
    """A person at a terminal. `is_live`: whether a table can be drawn over the last one."""

    def __init__(self, source: TextIO | None = None, out: TextIO | None = None) -> None:
        self._in, self._out = source or sys.stdin, out or sys.stdout
        self.is_live = self._out.isatty()
        self._n_drawn = 0

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def wait(self, text: str) -> None:
        """Until Enter. Raises UsageError when nobody can press it."""
        self.say(text)
        if not self._in.readline():
            raise UsageError("calibration needs somebody to press Enter: the input has ended")

    def pressed(self) -> bool:
        """Whether Enter was pressed; waits a moment for it."""
        if select.select([self._in], [], [], POLL_S)[0]:
            if not self._in.readline():
                raise UsageError("calibration needs somebody to press Enter: the input has ended")
            return True
        return False

    def draw(self, rows: list[str]) -> None:
        """Shows rows in the place of the rows drawn before."""
        if not self.is_live:
            return
        if self._n_drawn:
            self._out.write(f"\x1b[{self._n_drawn}A")
        self._out.write("".join(f"\x1b[2K{row}\n" for row in rows))
        self._out.flush()
        self._n_drawn = len(rows)


@dataclass
class Swept:
    """What a joint did while the user moved it, ticks in the offset-corrected frame."""

    low: int
    high: int
    last: int
    has_wrapped: bool = False

    def see(self, tick: int) -> None:
        if abs(tick - self.last) > TURN // 2:
            self.has_wrapped = True
        self.low, self.high, self.last = min(self.low, tick), max(self.high, tick), tick


def guide(
    profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, person: Terminal
) -> int:
    """Centre, sweep, check, save: into the servos and into LeRobot's file."""
    from .. import calibration
    from ..handshake import check_motors, held_calibration, write_calibration

    for bus in profile.buses:
        check_motors(lines[bus.name], bus, profile)
    _torque_off(lines)
    held = held_calibration(lines, profile)
    person.wait(
        f"Torque is off: hold the {profile.name}.\n1. Move every joint to the middle of its range, then press Enter."
    )
    try:
        offsets = home(profile, lines)
        person.say("2. Move every joint to both its ends, then press Enter.")
        swept = sweep(profile, lines, person.pressed, lambda s: person.draw(_table(profile, s)))
        made = conclude(profile, offsets, swept)
        write_calibration(lines, profile, made)
    except BaseException:
        person.say(put_back(profile, lines, held))
        raise
    for row in _table(profile, swept) if not person.is_live else []:
        person.say(row)
    for path in calibration.write(profile, made, calibration_id):
        person.say(f"Saved {path}")
    return 0


def put_back(profile: Profile, lines: Mapping[str, ServoBus], held: Mapping[str, Mapping[str, int]]) -> str:
    """Gives the servos the registers they had before a calibration that came to nothing; what became of it."""
    from ..handshake import write_differing

    try:
        for bus in profile.buses:
            for motor in bus.motors:
                write_differing(lines[bus.name], motor.id, held[motor.name])
    except BusError as error:
        return f"The servos hold half a calibration, which could not be taken back: {error}"
    return "Nothing was saved; the servos hold again what they held before."


def home(profile: Profile, lines: Mapping[str, ServoBus]) -> dict[str, int]:
    """Makes the present pose tick 2047 of every servo; returns the offsets written."""
    from ..handshake import write_differing

    offsets = {}
    for bus in profile.buses:
        line = lines[bus.name]
        for motor in bus.motors:
            write_differing(
                line, motor.id, {"homing_offset": 0, "min_position": 0, "max_position": LAST_TICK}
            )
            away = line.read_raw(motor.id, "present_position") % TURN - CENTRE_TICK
            away = max(-CENTRE_TICK, min(CENTRE_TICK, away))
            # Feetech: present = encoder - offset; Dynamixel: present = encoder + offset.
            offsets[motor.name] = away if bus.protocol == "feetech" else -away
            write_differing(line, motor.id, {"homing_offset": offsets[motor.name]})
    return offsets


def sweep(
    profile: Profile,
    lines: Mapping[str, ServoBus],
    is_done: Callable[[], bool],
    show: Callable[[Mapping[str, Swept]], None],
) -> dict[str, Swept]:
    """Follows all joints until the user is done."""
    swept: dict[str, Swept] = {}
    while True:
        for bus in profile.buses:
            names = {motor.id: motor.name for motor in bus.motors}
            for servo_id, values in lines[bus.name].sync_read(["present_position"]).items():
                tick, name = values["present_position"], names[servo_id]
                swept.setdefault(name, Swept(tick, tick, tick)).see(tick)
        show(swept)
        if is_done():
            return swept


def conclude(profile: Profile, offsets: Mapping[str, int], swept: Mapping[str, Swept]) -> Calibration:
    """The calibration, or CalibrationError naming the joint and what to do again."""
    from ..calibration import Calibration, MotorCalibration, implausible

    joints = {joint.motor: joint for joint in profile.joints}
    motors = {}
    for bus in profile.buses:
        for motor in bus.motors:
            seen = swept.get(motor.name)
            if motor.name in joints and joints[motor.name].is_full_turn:
                low, high = 0, LAST_TICK
            elif seen is None:
                raise CalibrationError(
                    f"joint '{motor.name}' was never read; check its cable and calibrate again"
                )
            elif seen.has_wrapped:
                raise CalibrationError(
                    f"joint '{motor.name}' passed the end of its encoder (tick 0/4095) while it was swept: it was not "
                    "in the middle of its range at the start. Calibrate again, and centre it more carefully"
                )
            else:
                low, high = seen.low, seen.high
            entry = MotorCalibration(motor.id, motor.drive_mode, offsets[motor.name], low, high)
            if fault := implausible(entry, motor.id):
                raise CalibrationError(f"joint '{motor.name}' {fault}; calibrate again")
            motors[motor.name] = entry
    return Calibration(motors, "this calibration")


def _table(profile: Profile, swept: Mapping[str, Swept]) -> list[str]:
    rows = [f"{'joint':<22} {'min':>6} {'now':>6} {'max':>6}  range"]
    joints = {joint.motor: joint for joint in profile.joints}
    for name, s in swept.items():
        note = (
            "whole turn"
            if name in joints and joints[name].is_full_turn
            else f"{(s.high - s.low) * 360 / LAST_TICK:.0f} deg"
        )
        note = "WRAPPED: centre it and start again" if s.has_wrapped and note != "whole turn" else note
        rows.append(f"{name:<22} {s.low:>6} {s.last:>6} {s.high:>6}  {note}")
    return rows
