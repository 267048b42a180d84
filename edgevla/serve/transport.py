"""The network between robots and policy servers: addresses, who may listen where, and every option of the sockets.

A line is lost without a word when a cable is pulled, so the robot beats: a server that is silent for `SILENT_MS` is
left, and a robot that is silent for twice as long is disconnected, because its beats say so. Whoever connects tries
again several times a second. Off this machine nothing is said without keys: `as_server` and `as_robot` are where they
are given, and where an address without them is refused.
"""

from __future__ import annotations

import errno
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgevla.errors import UsageError

if TYPE_CHECKING:
    import zmq

    from edgevla.serve.keys import KeyPair

DEFAULT_BIND = "tcp://127.0.0.1:5599"
PAIR_PORT = 5598
PAIR_BIND = f"tcp://0.0.0.0:{PAIR_PORT}"
BEAT_MS, SILENT_MS = 250, 900
RECONNECT_MS, SLOWEST_RECONNECT_MS, CONNECT_MS = 50, 400, 700
"""An attempt to connect is given up early: a packet lost in it would otherwise be sent again after 1, 3, 7 seconds."""
HANDSHAKE_MS = 2000
MOST_QUEUED = 8
"""Messages of one robot that are kept until they are read; it has one open question at a time."""
ZAP_DOMAIN = "edgevla"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})(/(?P<name>.*))?")


@dataclass(frozen=True)
class Address:
    """Where a policy server listens, and which of its policies is meant; empty: its only one.

    key: the server's public key, own: this robot's; empty and None where they talk without (`authority.introduced`).
    """

    endpoint: str
    policy: str = ""
    key: str = ""
    own: KeyPair | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """In one spelling."""
        return plain_host(self.endpoint.removeprefix("tcp://").rpartition(":")[0])

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.policy}" if self.policy else self.endpoint


def address(text: str, option: str) -> Address:
    """`tcp://HOST:PORT[/NAME]`.

    Raises:
        UsageError: another form.
    """
    found = _TCP.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise UsageError(f"{option} {text}: expected tcp://HOST:PORT, such as {DEFAULT_BIND}")
    name = found["name"] or ""
    if name and not NAME.fullmatch(name):
        raise UsageError(
            f"{option} {text}: '{name}' cannot be a policy's name: letters, digits and _.-, at most 64"
        )
    return Address(f"tcp://{found['host']}:{found['port']}", name)


def addresses(text: str, option: str) -> tuple[Address, ...]:
    """Several, joined by commas; they are tried in turn.

    Raises:
        UsageError: one of another form, one twice, or different policies.
    """
    found = tuple(address(part.strip(), option) for part in text.split(","))
    if len({a.endpoint for a in found}) < len(found):
        raise UsageError(f"{option} {text}: one address is given twice; leave one of them out")
    if len({a.policy for a in found} - {""}) > 1:
        raise UsageError(
            f"{option} {text}: the addresses name different policies; they must run the same one"
        )
    return found


def hint_for_bind(number: int | None) -> str:
    """What to look at when the system would not let us listen at an address."""
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV) or (number or 0) < 0:  # negative: a name was looked up
        return "that host is no address of this machine; all of them: 0.0.0.0, this machine alone: 127.0.0.1"
    return "is another server running there?"


def is_served(policy: str) -> bool:
    """Whether a policy that somebody named is one of a policy server, and not a folder."""
    return policy.startswith("tcp://")


def is_loopback(endpoint: str) -> bool:
    """Whether nobody outside of this machine is reached, or reaches it."""
    found = _TCP.fullmatch(endpoint)
    if found is None:
        return endpoint.startswith(("ipc://", "inproc://"))
    host = found["host"].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def plain_host(text: str) -> str:
    """One spelling of a host."""
    bare = text.strip("[]").lower()
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


def as_server(socket: zmq.Socket, endpoint: str, most_bytes: int, keys: KeyPair | None = None) -> None:
    """Options of a server's socket, before it is bound. most_bytes: of one part of a message.

    keys: only robots that an authenticator of the same context takes get in; None: whoever is on this machine.
    """
    import zmq

    _as_either(socket, endpoint)
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
    # With beats of its own, libzmq 4.3 aborts the whole process when a peer whose queue here is full hangs up
    # (zeromq/libzmq#4364), so a robot could end the server. The robot's beats and TCP's own tell who has gone.
    socket.setsockopt(zmq.RCVHWM, MOST_QUEUED)
    for option, value in ((zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 5), (zmq.TCP_KEEPALIVE_INTVL, 2),
                          (zmq.TCP_KEEPALIVE_CNT, 3)):  # fmt: skip
        socket.setsockopt(option, value)
    if keys is None:
        _check_plain(endpoint)
        return
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def as_robot(socket: zmq.Socket, to: Address) -> None:
    """Options of a robot's socket, before it connects."""
    import zmq

    _as_either(socket, to.endpoint)
    socket.setsockopt(zmq.HEARTBEAT_IVL, BEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 2 * SILENT_MS)
    if to.own is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, to.key.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, to.own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, to.own.secret.encode())
    else:
        _check_plain(to.endpoint)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, SLOWEST_RECONNECT_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)


def _check_plain(endpoint: str) -> None:
    """The last look, whatever was looked at before.

    Raises:
        UsageError: whoever reaches the address could steer the arm.
    """
    if not is_loopback(endpoint):
        raise UsageError(
            f"{endpoint}: off this machine nothing is said without keys; edgevla pair --help says more"
        )


def _as_either(socket: zmq.Socket, endpoint: str) -> None:
    import zmq

    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
