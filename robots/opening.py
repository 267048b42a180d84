"""From `--port` on a command line to open ports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edgevla.errors import UsageError

from .bus.port import SerialPort
from .choose_ports import choose_ports
from .profile import Profile


def add_port_argument(parser: argparse.ArgumentParser, name: str = "--port", what: str = "") -> None:
    parser.add_argument(
        name,
        action="append",
        default=[],
        metavar="[BUS=]PATH",
        help=f"serial port{what}; repeat for several buses, or name a folder with one link per bus",
    )


def parse_ports(profile: Profile, texts: Sequence[str], option: str = "--port") -> dict[str, str]:
    """Bus name -> path, as far as it was said. Raises UsageError."""
    names = [bus.name for bus in profile.buses]
    given: dict[str, str] = {}
    for text in texts:
        bus, is_named, path = text.rpartition("=")
        if is_named:
            given[bus] = path
        elif Path(text).is_dir():
            given.update({name: str(Path(text) / name) for name in names})
        elif len(names) == 1:
            given[names[0]] = text
        else:
            raise UsageError(f"{profile.name} has several buses: say {option} {names[0]}={text}")
    return given


def open_ports(profile: Profile, texts: Sequence[str], option: str = "--port") -> dict[str, SerialPort]:
    """Opens the line of every bus, all or none. Raises UsageError or BusError with the cure."""
    paths = choose_ports(profile, parse_ports(profile, texts, option))
    opened: dict[str, SerialPort] = {}
    try:
        for bus in profile.buses:
            opened[bus.name] = SerialPort.open(paths[bus.name], bus.baud)
    except BaseException:
        for port in opened.values():
            port.close()
        raise
    return opened
