"""From `--port` on a command line to open lines, one per bus. No numpy: the guardian imports this."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgevla.errors import BusError, UsageError

if TYPE_CHECKING:
    from .bus.port import SerialPort
    from .profile import Profile


def add_port_argument(parser: argparse.ArgumentParser, name: str = "--port", what: str = "") -> None:
    parser.add_argument(
        name,
        action="append",
        default=[],
        metavar="[BUS=]PATH",
        help=f"serial port{what}; repeat for several buses, or name a folder with one link per bus",
    )


def choose_ports(profile: Profile, texts: Sequence[str], option: str = "--port") -> dict[str, str]:
    """Bus name -> port: what was said, else the profile's, else the only adapter that is plugged in.

    texts: `BUS=PATH`, a bare path where there is one bus, or a folder with one link per bus, as `edgevla emulate` makes.
    Raises UsageError or BusError, naming the bus.
    """
    from .bus.adapters import candidate_ports

    given = _said(profile, texts, option)
    ports = {bus.name: given.get(bus.name) or bus.port for bus in profile.buses}
    found = candidate_ports()
    for name, port in ports.items():
        if port:
            continue
        if len(found) != 1 or len(profile.buses) > 1:
            what = ", ".join(found) or "none"
            hint = " (unplug the arm's and see which name goes)" if len(found) > 1 else ""
            raise BusError(
                f"which serial port is bus '{name}' of {profile.name}? Adapters on this machine: {what}{hint}. Name it "
                f"with {option} {name}=PATH, or emulate it: edgevla emulate {profile.name} --link DIR/, then {option} "
                "DIR"
            )
        ports[name] = found[0]
    for name, port in ports.items():
        for other in ports:
            if other != name and is_same_line(ports[other], port):
                raise UsageError(
                    f"buses '{other}' and '{name}' are both on {port}; each has an adapter of its own"
                )
    return ports


def is_same_line(one: str, other: str) -> bool:
    """Whether two ports are one adapter, whatever links lead there."""
    return os.path.realpath(one) == os.path.realpath(other)


def open_ports(profile: Profile, texts: Sequence[str], option: str = "--port") -> dict[str, SerialPort]:
    """Opens the line of every bus, all or none. Raises UsageError or BusError with the cure."""
    from .bus.port import SerialPort

    paths = choose_ports(profile, texts, option)
    opened: dict[str, SerialPort] = {}
    try:
        for bus in profile.buses:
            opened[bus.name] = SerialPort.open(paths[bus.name], bus.baud)
    except BaseException:
        for port in opened.values():
            port.close()
        raise
    return opened


def _said(profile: Profile, texts: Sequence[str], option: str) -> dict[str, str]:
    names = [bus.name for bus in profile.buses]
    given: dict[str, str] = {}
    for text in texts:
        bus, equals, path = text.partition("=")
        if not equals or "/" in bus:  # a path, whatever is in its name
            bus, path = "", text
        if bus and bus not in names:
            raise UsageError(f"{profile.name} has no bus '{bus}'; it has {', '.join(names)}")
        if not path:
            raise UsageError(f"{option} {text}: expected BUS=PATH")
        if bus and Path(path).is_dir():
            raise UsageError(
                f"{option} {text}: a folder; name the port in it, or {option} {path} for every bus"
            )
        if bus or (len(names) == 1 and not Path(path).is_dir()):
            new = {bus or names[0]: path}
        elif Path(path).is_dir():
            new = {name: str(Path(path) / name) for name in names}
        else:
            buses = " and ".join(f"{option} {name}=PATH" for name in names)
            raise UsageError(f"{profile.name} has {len(names)} buses; say which port is which: {buses}")
        for name, port in new.items():
            if name in given:
                raise UsageError(f"{option}: bus '{name}' is given twice, {given[name]} and {port}")
            given[name] = port
    return given
