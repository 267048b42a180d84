"""Gives new servos their ids and their speed, one by one.

    edgevla setup-motors --robot so101 --port /dev/ttyACM0
    edgevla setup-motors --robot so101 --port /dev/ttyACM0 --motor gripper

New servos all have the same id, so exactly one may be connected at a time. Follow the questions; each servo is checked
under its new id before the next one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevla.errors import BusError, UsageError

if TYPE_CHECKING:
    from ..bus.port import Port
    from ..bus.servo_bus import PingReply, ServoBus
    from ..profile import Bus, Motor, Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..ports import add_port_argument

    parser.add_argument("--robot", required=True, help="name of a profile, or a path to a .toml file")
    add_port_argument(parser)
    parser.add_argument("--motor", action="append", metavar="NAME", help="only this servo (may be repeated)")


def run(args: argparse.Namespace) -> int:
    from ..bus.port import SerialPort
    from ..ports import choose_ports
    from ..profile import load_profile

    profile = load_profile(args.robot)
    known = [m.name for bus in profile.buses for m in bus.motors]
    for name in args.motor or ():
        if name not in known:
            raise UsageError(f"{profile.name} has no motor '{name}'; it has {', '.join(known)}")
    paths = choose_ports(profile, args.port)
    for bus in profile.buses:
        motors = [m for m in reversed(bus.motors) if args.motor is None or m.name in args.motor]
        path = paths[bus.name]
        for motor in motors:
            setup_one(profile, bus, motor, lambda baud, path=path: SerialPort.open(path, baud), ask)  # type: ignore[misc]
    print("Done. Connect all servos in their chain, then: edgevla doctor --robot " + profile.name)
    return 0


def ask(question: str) -> str:
    """A line from the user. Raises UsageError when nobody is there."""
    print(question, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise UsageError("setup-motors needs somebody to answer: the input has ended")
    return line.strip()


def setup_one(
    profile: Profile, bus: Bus, motor: Motor, open_at: Callable[[int], Port], ask: Callable[[str], str]
) -> bool:
    """Finds the one servo that is connected and gives it the motor's id and the bus's speed.

    open_at: opens the line at a baud rate. Returns False when the user skipped this motor. Raises BusError when the
    servo does not answer under its new id.
    """
    while True:
        answer = ask(
            f"Connect ONLY the servo of {motor.name} (to become id {motor.id}) to bus {bus.name}, power on, then press "
            "Enter (s skips it):"
        )
        if answer.lower() == "s":
            return False
        try:
            baud, reply = find_single(profile, bus, open_at)
            break
        except BusError as error:
            print(f"  {error}. Try again.")
    port = open_at(baud)
    try:
        _check_model(bus, motor, reply)
        assign(_line(profile, bus, port), bus, reply.id, motor.id)
    finally:
        port.close()
    port = open_at(bus.baud)
    try:
        line = _line(profile, bus, port)
        if line.ping(motor.id) is None:
            raise BusError(
                f"{motor.name} does not answer as id {motor.id} at {bus.baud} baud; switch it off and on and run "
                "this again"
            )
        if bus.protocol == "feetech":
            line.write_raw(motor.id, "lock", 1)
    finally:
        port.close()
    print(f"  {motor.name}: id {reply.id} -> {motor.id}, {baud} -> {bus.baud} baud")
    return True


def _line(profile: Profile, bus: Bus, port: Port) -> ServoBus:
    from ..bus.protocols import BUSES

    return BUSES[bus.protocol](port, {}, robot=profile.name)


def find_single(profile: Profile, bus: Bus, open_at: Callable[[int], Port]) -> tuple[int, PingReply]:
    """Speed and id of the only servo on the line. Raises BusError when there is none, or more than one."""
    from .checkup import line_bauds, scan

    for baud in line_bauds(bus):
        try:
            port = open_at(baud)
        except BusError:
            continue
        try:
            line = _line(profile, bus, port)
            found = scan(line, range(line.codec.MAX_ID + 1))
            if len(found) > 1:
                raise BusError(
                    f"{len(found)} servos answer (ids {', '.join(map(str, found))}); connect only one"
                )
            if found and (reply := line.ping(found[0])) is not None:
                return baud, reply
        finally:
            port.close()
    raise BusError("no servo answers at any speed; check its power and its cable")


def _check_model(bus: Bus, motor: Motor, reply: PingReply) -> None:
    from ..bus.protocols import BUSES

    expected = BUSES[bus.protocol].known_models[motor.model]
    if reply.model != expected:
        raise BusError(
            f"the connected servo has model number {reply.model}; {motor.name} needs a {motor.model} ({expected})"
        )


def assign(line: ServoBus, bus: Bus, old_id: int, new_id: int) -> None:
    """Writes id and speed. Both act at once, so the servo's word may come from its new address: it is not asked for."""
    from ..bus import feetech

    line.write_raw(old_id, "torque_enable", 0)
    if line.codec is feetech:
        line.write_raw(old_id, "lock", 0)
    if new_id != old_id:
        line.write_raw(old_id, "id", new_id, is_checked=False)
    code = line.codec.BAUDS.index(bus.baud)
    if line.read_raw(new_id, "baud") != code:
        line.write_raw(new_id, "baud", code, is_checked=False)
