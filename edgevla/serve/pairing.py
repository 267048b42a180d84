"""How a robot and a policy server come to know each other's keys: a short code, typed on the robot, used once.

    server -> robot   Offer   who I am, my key, my share                shown there: the code
    robot  -> server  Claim   who I am, my key, my share, my proof      typed here: the code
    server -> robot   Proof   mine; or Refused, a sentence
    robot  -> server  Kept    your key is written down

Names, keys and shares are under both proofs (`edgevla.serve.pake`), so whoever stands between and changes one of them
must know the code. One claim is one try; the server's proof comes after the robot's, so an open door tells nothing.
One line of JSON per message over plain TCP: nothing of it is secret.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from edgevla import strict
from edgevla.errors import ConfigError, EdgeVLAError, WireError
from edgevla.serve.keys import KeyPair, is_key
from edgevla.serve.paired import Paired, keep, own_name
from edgevla.serve.pake import Exchange, proof
from edgevla.serve.transport import NAME, PAIR_PORT, hint_for_bind

VERSION = 1
VALID_S = 120.0
TRIES = 3
DIGITS = 6
MEETING_S = 10.0
"""For one exchange: the code is typed before it begins."""
CONNECT_S = 5.0
MOST_AT_ONCE = 8
MOST_BYTES = 4096
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Offer:
    edgevla_pairing: int
    name: str
    key: str
    nonce: str
    share: str


@dataclass(frozen=True)
class Claim:
    name: str
    key: str
    share: str
    proof: str


@dataclass(frozen=True)
class Proof:
    """refused: why there is none."""

    proof: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Kept:
    kept: bool


def _transcript(offer: Offer, name: str, key: str, share: str) -> list[bytes]:
    seen = (str(offer.edgevla_pairing), offer.name, offer.key, offer.nonce, offer.share, name, key, share)
    return [text.encode() for text in seen]


def _is_proof(said: str, key: bytes, side: str) -> bool:
    try:
        return hmac.compare_digest(bytes.fromhex(said), proof(key, side))
    except ValueError:
        return False


# -- at the server ---------------------------------------------------------------------------------------------


class Pairing:
    """One code, at one address, until a robot has proved to know it or time or tries are over.

    say: is told what happens, from several threads.

    Raises:
        ConfigError: the address is taken, or none of this machine.
    """

    def __init__(
        self, host: str, port: int, keys: KeyPair, say: Say, *, valid_s: float = VALID_S, tries: int = TRIES
    ) -> None:
        self.code = "".join(secrets.choice("0123456789") for _ in range(DIGITS))
        self._keys, self._say = keys, say
        self._until = time.monotonic() + valid_s
        self._lock, self._decided = threading.Lock(), threading.Event()
        self._tries = tries
        self._paired: Paired | None = None
        self._failure: EdgeVLAError | None = None
        self._meetings: dict[threading.Thread, socket.socket] = {}
        """Oldest first."""
        self._last: threading.Thread | None = None
        """The one that decided."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            both = host == "::" and socket.has_dualstack_ipv6()
            self._listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise ConfigError(
                f"cannot pair at {shown(host, port)}: {_why(error)}; {hint_for_bind(error.errno)} "
                "(--bind tcp://HOST:PORT)"
            ) from error

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def run(self) -> Paired:
        """The robot that was paired.

        Raises:
            ConfigError: the code was not used in time, or guessed at too often; the list cannot be written.
        """
        self._listener.settimeout(0.1)
        while not self._decided.is_set() and time.monotonic() < self._until:
            with contextlib.suppress(TimeoutError):
                connection, address = self._listener.accept()
                self._begin(connection, address[0])
        with self._lock:
            self._until = 0.0
        if self._last is not None:
            self._last.join()  # within MEETING_S: the robot hears the answer
        if self._failure is not None:
            raise self._failure
        if self._paired is None:
            raise ConfigError("nobody was paired in time, and the code is void; again: edgevla serve --pair")
        return self._paired

    def close(self) -> None:
        """Also ends what strangers began."""
        self._listener.close()
        for thread, connection in self._meetings.items():
            _hang_up(connection)
            thread.join(timeout=1)

    def _begin(self, connection: socket.socket, address: str) -> None:
        """When too many are here, whoever waits longest must go: a robot that has its code needs a moment only."""
        self._meetings = {thread: one for thread, one in self._meetings.items() if thread.is_alive()}
        if len(self._meetings) >= MOST_AT_ONCE:
            _hang_up(next(iter(self._meetings.values())))
        thread = threading.Thread(target=self._meet, args=(connection, address), daemon=True)
        self._meetings[thread] = connection
        thread.start()

    def _meet(self, connection: socket.socket, address: str) -> None:
        made = None
        with connection:
            line = _Line(connection, MEETING_S)
            try:
                nonce = secrets.token_hex(16)
                exchange = Exchange(self.code, bytes.fromhex(nonce))
                offer = Offer(VERSION, own_name(), self._keys.public, nonce, exchange.share.hex())
                line.send(offer)
                claim = line.hear(Claim)
                answer, made = self._judge(offer, exchange, claim, address)
                line.send(answer)
                if made is not None:
                    line.hear(Kept)
            except (
                WireError,
                OSError,
            ):  # before a claim: a port scanner, or a robot that only looked who is here
                if made is not None:
                    self._say(f"! '{made.name}' did not say that it kept this server's key; if it does not connect, "
                              "pair it again")  # fmt: skip

    def _judge(
        self, offer: Offer, exchange: Exchange, claim: Claim, address: str
    ) -> tuple[Proof, Paired | None]:
        """One at a time: a try is counted before the next one is looked at."""
        with self._lock:
            if self._paired is not None:
                return Proof(refused="the code was used already; a new one: edgevla serve --pair"), None
            if self._failure is not None or time.monotonic() >= self._until:
                return Proof(refused="the code is void; a new one: edgevla serve --pair"), None
            key = _agreed(offer, exchange, claim)
            if key is None or not _is_proof(claim.proof, key, "robot"):
                return Proof(refused=self._wrong(address)), None
            try:
                self._paired = keep("robots", claim.name, claim.key)
            except EdgeVLAError as error:
                self._fail(error)
                return Proof(refused="the server could not write the key down; its screen says why"), None
            if self._paired.name != claim.name:
                self._say(f"! another machine is called '{claim.name}' here already; this robot is "
                          f"'{self._paired.name}'")  # fmt: skip
            self._decide()
            return Proof(proof(key, "server").hex()), self._paired

    def _decide(self) -> None:
        self._last = threading.current_thread()
        self._decided.set()

    def _fail(self, error: EdgeVLAError) -> None:
        self._failure = error
        self._decide()

    def _wrong(self, address: str) -> str:
        self._tries -= 1
        left = f"{self._tries} {'try' if self._tries == 1 else 'tries'} left"
        if self._tries:
            self._say(f"! a wrong code from {address}; {left}")
            return f"the code is wrong, or somebody between here and there changes what is sent; {left}"
        self._fail(ConfigError(
            f"too many wrong codes, the last from {address}: nobody was paired and the code is void. If nobody "
            "mistyped, somebody in this network guesses; again: edgevla serve --pair"
        ))  # fmt: skip
        return "the code is wrong, and void now; a new one: edgevla serve --pair"


def _agreed(offer: Offer, exchange: Exchange, claim: Claim) -> bytes | None:
    """None: no share, name or key that can be one. Counts as a wrong code."""
    if not NAME.fullmatch(claim.name) or not is_key(claim.key):
        return None
    try:
        transcript = _transcript(offer, claim.name, claim.key, claim.share)
        return exchange.key(bytes.fromhex(claim.share), transcript)
    except (WireError, ValueError):
        return None


# -- at the robot ----------------------------------------------------------------------------------------------


def look(host: str, port: int) -> str:
    """The name of the server that pairs there; nothing is tried.

    Raises:
        WireError: nobody does.
    """
    with _connected(host, port) as connection:
        return _offer(_Line(connection, MEETING_S), host, port).name


def pair(host: str, port: int, code: str, name: str, keys: KeyPair, host_kept: str) -> Paired:
    """Proves to know the code and keeps the server's key. host_kept: under which the server will be found.

    Raises:
        WireError: nobody pairs there, the code is wrong, or somebody stands between. ConfigError: the list cannot be
            written.
    """
    with _connected(host, port) as connection:
        line = _Line(connection, MEETING_S)
        offer = _offer(line, host, port)
        exchange = Exchange(code, bytes.fromhex(offer.nonce))
        share = exchange.share.hex()
        key = exchange.key(bytes.fromhex(offer.share), _transcript(offer, name, keys.public, share))
        try:
            line.send(Claim(name, keys.public, share, proof(key, "robot").hex()))
            answer = line.hear(Proof)
        except (WireError, OSError) as error:
            raise WireError(
                f"{shown(host, port)} broke off; look at its screen, and begin again: edgevla serve --pair there",
                "timeout",
            ) from error
        if answer.refused:
            raise WireError(f"{shown(host, port)}: {plain(answer.refused)}", "refused")
        if not _is_proof(answer.proof, key, "server"):
            raise WireError(
                f"what answers at {shown(host, port)} does not know the code: it is not the server whose screen you "
                "read. Nothing was kept; find out what stands between",
                "refused",
            )
        made = keep("servers", offer.name, offer.key, host_kept)
        with contextlib.suppress(WireError, OSError):  # it has this robot's key already
            line.send(Kept(True))
        return made


def _offer(line: _Line, host: str, port: int) -> Offer:
    try:
        offer = line.hear(Offer)
        is_sound = NAME.fullmatch(offer.name) is not None and is_key(offer.key)
        is_sound = is_sound and len(bytes.fromhex(offer.nonce)) == 16 and len(bytes.fromhex(offer.share)) > 0
    except (WireError, OSError, ValueError):
        is_sound = False
    if not is_sound:
        raise WireError(
            f"what answers at {shown(host, port)} does not pair; on the server: edgevla serve --pair, "
            f"which listens at port {PAIR_PORT} unless --bind says another"
        )
    if offer.edgevla_pairing != VERSION:
        raise WireError(
            f"{shown(host, port)} pairs in another way ({offer.edgevla_pairing}) than this version "
            f"({VERSION}); install the same edgevla on both"
        )
    return offer


def _connected(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), CONNECT_S)
    except OSError as error:
        why = "it does not answer" if isinstance(error, TimeoutError) else _why(error)
        raise WireError(
            f"nobody pairs at {shown(host, port)} ({why}); begin on the server, then here: edgevla serve --pair",
            "timeout",
        ) from error


# -- both ------------------------------------------------------------------------------------------------------


class _Line:
    """Messages as lines, all of them within so many seconds."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._until = connection, time.monotonic() + seconds
        self._rest = b""

    def send(self, message: Offer | Claim | Proof | Kept) -> None:
        self._wait()
        self._connection.sendall(json.dumps(strict.write(message)).encode() + b"\n")

    def hear(self, kind: type[T]) -> T:
        """
        Raises:
            WireError: something else, or nothing in time. OSError: the connection broke.
        """
        while b"\n" not in self._rest:
            self._wait()
            more = self._connection.recv(MOST_BYTES)
            if not more or len(self._rest) + len(more) > MOST_BYTES:
                raise WireError("the other end broke off, or says too much", "size")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\n")
        try:
            return strict.read(kind, json.loads(text))
        except (ValueError, RecursionError) as error:
            raise WireError("the other end said something else", "schema") from error

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise WireError("the other end took too long", "timeout")
        self._connection.settimeout(left)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _why(error: OSError) -> str:
    """Without what Python adds to the system's words."""
    number = error.errno or 0  # negative where a name was looked up
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def shown(host: str, port: int) -> str:
    """HOST:PORT as a person types it; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain(text: str) -> str:
    """What a stranger said, for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
