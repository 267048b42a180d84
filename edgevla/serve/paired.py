"""Whom this machine is paired with: `robots.json`, whom its policy servers take, and `servers.json`, whom its robots
ask.

A name is for people and is given once over both lists; what counts is the key. A robot knows a server by the host it
was paired at, as ssh does.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import socket
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Literal

from edgevla import strict
from edgevla.errors import ConfigError, UsageError
from edgevla.serve.keys import is_key, keys_folder, locked, read_private, write_private
from edgevla.serve.transport import NAME
from edgevla.strict import nearest

Side = Literal["robots", "servers"]
SIDES: tuple[Side, ...] = ("robots", "servers")


@dataclass(frozen=True)
class Paired:
    """since: the day. hosts: where a server was paired, as typed; empty for robots."""

    name: str
    key: str
    since: str
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    paired: tuple[Paired, ...]


def place_of(side: Side) -> Path:
    """The file of whoever is paired with this side."""
    return keys_folder() / f"{side}.json"


def paired(side: Side) -> tuple[Paired, ...]:
    """The list; empty while there is no file.

    Raises:
        ConfigError: it is damaged, or others may write it.
    """
    return read_list(place_of(side))


def read_list(path: Path) -> tuple[Paired, ...]:
    """The list in a file, as `paired`."""
    if not path.exists():
        return ()
    found = read_private(path, _File).paired
    for one in found:
        if not is_key(one.key) or not NAME.fullmatch(one.name):
            raise ConfigError(
                f"{path}: '{one.name[:64]}' has no name or key that can be; mend it, or pair again"
            )
    return found


def keep(side: Side, name: str, key: str, host: str = "") -> Paired:
    """Adds a machine, or what is new of one that is there. The name may get a number, if another machine has it.

    Raises:
        ConfigError: a list is damaged, or cannot be written.
    """
    with locked():
        lists = {s: paired(s) for s in SIDES}
        known = next((one for one in lists[side] if one.key == key), None)
        others = [
            replace(one, hosts=tuple(h for h in one.hosts if h != host))  # one host, one server
            for one in lists[side]
            if one is not known
        ]
        others = [one for one in others if side == "robots" or one.hosts]
        taken = {one.name for one in chain(others, *(lists[s] for s in SIDES if s != side))}
        today = datetime.date.today().isoformat()
        hosts = tuple(dict.fromkeys([*(known.hosts if known else ()), *([host] if host else [])]))
        made = Paired(_free(name, taken), key, today, hosts)
        _write(side, [*others, made])
        return made


def revoke(name: str) -> list[Side]:
    """Takes a machine off. Returns the lists on which it was.

    Raises:
        UsageError: there is no such machine. ConfigError: a list is damaged, or cannot be written.
    """
    with locked():
        lists = {side: paired(side) for side in SIDES}
        found = [side for side in SIDES if any(one.name == name for one in lists[side])]
        names = [one.name for side in SIDES for one in lists[side]]
        if not found:
            raise UsageError(
                f"no paired machine is called '{name}'; edgevla pair --list shows all{nearest(name, names)}"
            )
        for side in found:
            _write(side, [one for one in lists[side] if one.name != name])
    return found


def _write(side: Side, machines: list[Paired]) -> None:
    write_private(place_of(side), json.dumps(strict.write(_File(tuple(machines))), indent=1))


def _free(name: str, taken: set[str]) -> str:
    numbered = (f"{name[:60]}-{i}" for i in count(2))
    return next(one for one in chain([name], numbered) if one not in taken)


def reached_at(host: str) -> list[str]:
    """How another machine may call this one, if it listens at `host`."""
    if host not in ("0.0.0.0", "::"):
        return [host]
    found = [socket.gethostname()]
    family, far = (socket.AF_INET, "192.0.2.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((far, 9))  # sends nothing; the system only chooses a way out
        found.append(probe.getsockname()[0])
    return found


def own_name() -> str:
    """What this machine calls itself, as a name that can be one."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60].strip("-._")
    return name or "machine"
