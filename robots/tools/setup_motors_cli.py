"""Gives new servos their ids and their speed, one by one.

    edgevla setup-motors --robot so101 --port /dev/ttyACM0
    edgevla setup-motors --robot so101 --port /dev/ttyACM0 --motor gripper

New servos all have the same id, so exactly one may be connected at a time. Follow the questions; each servo is checked
under its new id before the next one.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevla.errors import BusError, UsageError

if TYPE_CHECKING:
    from ..bus.port import Port
    from ..bus.report import PingReply
    from ..bus.servo_bus import ServoBus
    from ..profile import Bus, Motor, Profile
    from .terminal import Terminal

CLOSE_LOOKS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..ports import add_port_argument

    parser.add_argument("--robot", required=True, help="name of a profile, or a path to a .toml file")
    add_port_argument(parser)
    parser.add_argument("--motor", action="append", metavar="NAME", help="only this servo (may be repeated)")


def run(args: argparse.Namespace) -> int:
    from ..bus.port import SerialPort, refuse_if_in_use
    from ..ports import choose_ports
    from ..profile import load_profile
    from .terminal import Terminal

    profile, person = load_profile(args.robot), Terminal("setup-motors")
    known = [m.name for bus in profile.buses for m in bus.motors]
    for name in args.motor or ():
        if name not in known:
            raise UsageError(f"{profile.name} has no motor '{name}'; it has {', '.join(known)}")
    paths = choose_ports(profile, args.port)
    for path in paths.values():
        refuse_if_in_use(path)
    for bus in profile.buses:
        motors = [m for m in reversed(bus.motors) if args.motor is None or m.name in args.motor]
        path = paths[bus.name]
        for motor in motors:
            setup_one(profile, bus, motor, lambda baud, path=path: SerialPort.open(path, baud), person)  # type: ignore[misc]
    given = [word for port in args.port for word in ("--port", port)]
    doctor = shlex.join(["edgevla", "doctor", "--robot", args.robot, *given])
    person.say(f"Done. Connect all servos in their chain, then: {doctor}")
    return 0


def setup_one(
    profile: Profile, bus: Bus, motor: Motor, open_at: Callable[[int], Port], person: Terminal
) -> bool:
    """Finds the one servo that is connected and gives it the motor's id and the bus's speed.

    open_at: opens the line at a baud rate. Returns False when the user skipped this motor. Raises BusError when the
    servo does not answer under its new id.
    """
    from .terminal import unbroken

    while True:
        answer = person.ask(
            f"Connect ONLY the servo of {motor.name} (to become id {motor.id}) to bus {bus.name}, power on, then press "
            "Enter (s skips it):",
            ("", "s"),
        )
        if answer == "s":
            return False
        try:
            baud, reply = find_single(profile, bus, open_at)
            _check_model(bus, motor, reply)
            break
        except BusError as error:
            person.say(f"  {error}. Try again.")
    _relax(profile, bus, reply.id, open_at(baud), person)
    with unbroken():
        rename(profile, bus, motor, reply.id, baud, open_at)
    person.say(f"  {motor.name}: id {reply.id} -> {motor.id}, {baud} -> {bus.baud} baud")
    return True


def _relax(profile: Profile, bus: Bus, servo_id: int, port: Port, person: Terminal) -> None:
    """A servo that holds something up is let go only when a person holds it."""
    try:
        if _line(profile, bus, port, servo_id).read_raw(servo_id, "torque_enable"):
            person.wait(
                "  It has torque. Hold what hangs on it, then press Enter: its torque is switched off."
            )
    finally:
        port.close()


def rename(
    profile: Profile, bus: Bus, motor: Motor, old_id: int, baud: int, open_at: Callable[[int], Port]
) -> None:
    """Gives the servo that has `old_id` at `baud` the motor's id and the bus's speed, and looks whether it has them."""
    port = open_at(baud)
    try:
        assign(_line(profile, bus, port, old_id, motor.id), bus, old_id, motor.id)
    finally:
        port.close()
    port = open_at(bus.baud)
    try:
        line = _line(profile, bus, port, motor.id)
        if line.ping(motor.id) is None:
            raise BusError(
                f"{motor.name} does not answer as id {motor.id} at {bus.baud} baud; switch it off and on and run "
                "this again"
            )
        if "lock" in line.registers:
            line.write_raw(motor.id, "lock", 1)
    finally:
        port.close()


def _line(profile: Profile, bus: Bus, port: Port, *ids: int) -> ServoBus:
    from ..bus.protocols import BUSES

    return BUSES[bus.protocol](port, dict.fromkeys(ids, "the new servo"), robot=profile.name)


def find_single(profile: Profile, bus: Bus, open_at: Callable[[int], Port]) -> tuple[int, PingReply]:
    """Speed and id of the only servo on the line. Raises BusError when there is none, or more than one."""
    from .checkup import LIKELY_IDS, line_bauds, scan

    single: tuple[int, PingReply] | None = None
    for baud in line_bauds(bus):
        try:
            port = open_at(baud)
        except BusError:
            continue
        try:
            every = range(_line(profile, bus, port).codec.MAX_ID + 1)
            found = scan(_line(profile, bus, port), LIKELY_IDS if single else every)
            if len(found) > 1:
                raise BusError(
                    f"{len(found)} servos answer (ids {', '.join(map(str, found))}); connect only one"
                )
            if found and single:
                raise BusError(
                    f"id {single[1].id} answers at {single[0]} baud and id {found[0]} at {baud}; connect only one"
                )
            if found:
                single = baud, _close_look(_line(profile, bus, port, found[0]), found[0])
        finally:
            port.close()
    if single is None:
        raise BusError("no servo answers at any speed; check its power and its cable")
    return single


def _close_look(line: ServoBus, servo_id: int) -> PingReply:
    """Model and firmware. Raises BusError for two servos that answer as one, which would both be renamed."""
    from .checkup import n_damaged

    line.greet()
    reply = line.ping(servo_id)
    damaged = [n_damaged(line, servo_id) for _ in range(CLOSE_LOOKS)]
    if reply is None or any(damaged):
        raise BusError(
            f"two servos answer as id {servo_id}, for their answers damage each other; connect only one (if it is only "
            "one, its cable is bad)"
        )
    return reply


def _check_model(bus: Bus, motor: Motor, reply: PingReply) -> None:
    if reply.model != motor.model_number:
        raise BusError(
            f"the connected servo has model number {reply.model}; {motor.name} needs a {motor.model} "
            f"({motor.model_number})"
        )


def assign(line: ServoBus, bus: Bus, old_id: int, new_id: int) -> None:
    """Writes id and speed. Both act at once, so the servo's word may come from its new address: it is not asked for."""
    line.write_raw(old_id, "torque_enable", 0)
    if "lock" in line.registers:
        line.write_raw(old_id, "lock", 0)
    if new_id != old_id:
        line.write_raw(old_id, "id", new_id, is_checked=False)
    code = list(line.bauds).index(bus.baud)
    if line.read_raw(new_id, "baud") != code:
        line.write_raw(new_id, "baud", code, is_checked=False)
