"""Calibrates an arm, guided in the terminal, and keeps LeRobot's file.

    edgevla calibrate --robot so101 --id blue            centre, sweep, save
    edgevla calibrate --robot so101 --id blue --check    does the file say what the servos hold?
    edgevla calibrate --robot so101 --id blue --write    the file is right: write it into the servos
    edgevla calibrate --robot so101 --id blue --adopt    the servos are right: write the file

An arm that has torque is asked about and let down first; then torque is off: hold the arm. An older file is kept beside
the new one as .bak-DATE.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from edgevla.errors import UsageError

if TYPE_CHECKING:
    from ..bus.servo_bus import ServoBus
    from ..profile import Profile
    from .terminal import Terminal


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
    from .guided import guide
    from .terminal import Terminal

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
        if args.adopt:
            return adopt(profile, lines, args.id, sys.stdout)
        person = Terminal("calibration")
        return (write if args.write else guide)(profile, lines, args.id, person)
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


def write(
    profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, person: Terminal
) -> int:
    from ..calibration import load, out_of_reach
    from ..handshake import write_calibration
    from .holding import release
    from .terminal import unbroken

    wanted = load(profile, calibration_id)
    release(profile, lines, person)
    with unbroken():
        changed = write_calibration(lines, profile, wanted)
    for line in [*(changed or ["nothing to change"]), *out_of_reach(profile, wanted)]:
        person.say(line)
    return 0


def adopt(profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, out: TextIO) -> int:
    from .. import calibration
    from ..handshake import held_calibration

    made = calibration.adopted(profile, held_calibration(lines, profile))
    for line in calibration.out_of_reach(profile, made):
        print(line, file=out)
    for path in calibration.write(profile, made, calibration_id):
        print(f"wrote {path}", file=out)
    return 0
