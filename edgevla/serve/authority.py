"""Who may talk where no plain word is said: a server's list of robots, and a robot's key of a server.

Off loopback both ends have keys (CURVE): the server takes robots that are on its list, by their keys, and the robot
takes the server whose key it kept. ZeroMQ asks for a key only when somebody connects, so the list is looked at again
and again: who was taken off is thrown out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgevla.errors import ConfigError, UsageError
from edgevla.serve.keys import KeyPair, fingerprint, machine_keys
from edgevla.serve.paired import Paired, paired, place_of, read_list
from edgevla.serve.transport import ZAP_DOMAIN, Address, is_loopback

if TYPE_CHECKING:
    import zmq

SAY_S = 10.0
"""So often a person is told of robots that are not paired."""


@dataclass(frozen=True)
class News:
    """gone: keys that were taken off the list, with their names. words: what a person should read."""

    gone: dict[str, str]
    words: tuple[str, ...] = ()


class Authority:
    """Which robots a server takes. Its list may change at any time; `news` says what did.

    Raises:
        ConfigError: nobody is paired, or keys or list cannot be read.
    """

    def __init__(self) -> None:
        self._place = place_of("robots")
        self._seen = _stamp(self._place)
        self._names = _names(self._place)
        if not self._names:
            raise ConfigError(
                "no robot is paired with this server, and only paired ones are served here; pair one first: "
                "edgevla serve --pair"
            )
        self.keys: KeyPair = machine_keys()
        self._lock = threading.Lock()
        self._strangers, self._last, self._said_s = 0, "", -SAY_S

    def start(self, ctx: zmq.Context) -> None:
        """Before a socket of this context is bound."""
        from zmq.auth.thread import ThreadAuthenticator

        self._zap = ThreadAuthenticator(ctx)
        self._zap.start()
        self._zap.configure_curve_callback(ZAP_DOMAIN, self)

    def close(self) -> None:
        self._zap.stop()

    def name_of(self, key: str) -> str | None:
        """None: not paired, or not any more."""
        return self._names.get(key)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the robots that may come in."""
        return tuple(self._names.values())

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by ZeroMQ's thread when somebody connects."""
        if key.decode("ascii", "replace") in self._names:
            return True
        with self._lock:
            self._strangers, self._last = self._strangers + 1, key.decode("ascii", "replace")
        return False

    def news(self) -> News:
        """What has changed since the last call. A list that cannot be read changes nothing."""
        words = self._about_strangers()
        stamp = _stamp(self._place)
        if stamp == self._seen:
            return News({}, words)
        self._seen = stamp
        try:
            names = _names(self._place)
        except ConfigError as error:
            return News({}, (*words, f"{error}; until then, the robots of before are served"))
        gone = {key: name for key, name in self._names.items() if key not in names}
        new = tuple(f"'{name}' is paired now" for key, name in names.items() if key not in self._names)
        self._names = names
        return News(gone, (*words, *new))

    def _about_strangers(self) -> tuple[str, ...]:
        now = time.monotonic()
        with self._lock:
            n, last = self._strangers, self._last
            if not n or now - self._said_s < SAY_S:
                return ()
            self._strangers, self._said_s = 0, now
        times = "" if n == 1 else f" {n} times"
        return (f"a robot that is not paired was refused{times} (fingerprint {fingerprint(last)}); "
                "to pair one: edgevla serve --pair",)  # fmt: skip


def _names(place: Path) -> dict[str, str]:
    return {one.key: one.name for one in read_list(place)}


def _stamp(place: Path) -> tuple[int, ...]:
    """Another one for another content: a list is replaced, never written into."""
    try:
        state = place.stat()
    except OSError:
        return ()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


# -- on the robot ----------------------------------------------------------------------------------------------


def introduced(servers: Sequence[Address], option: str) -> tuple[Address, ...]:
    """The addresses with the keys that belong to their hosts.

    Raises:
        UsageError: one is off this machine, and no server was paired there. ConfigError: keys cannot be read.
    """
    known = {host: one for one in paired("servers") for host in one.hosts}
    return tuple(_introduced(server, known, option) for server in servers)


def _introduced(server: Address, known: Mapping[str, Paired], option: str) -> Address:
    one = known.get(server.host)
    if one is not None:
        return replace(server, key=one.key, own=machine_keys())
    if is_loopback(server.endpoint):
        return server
    have = f"; this robot knows servers at {', '.join(known)}" if known else ""
    raise UsageError(
        f"{option} {server.endpoint}: this robot is not paired with a server at {server.host}{have}; pair them first: "
        f"edgevla serve --pair there, edgevla pair {server.host} here"
    )
