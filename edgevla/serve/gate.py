"""Who is connected to a server's socket, and how much of everything one of them may do.

ZeroMQ hides its connections; what is needed of them comes from the socket's monitor and from the messages themselves.
A connection is closed by shutting its file down, which ZeroMQ sees as the peer's leaving. The number may by then belong
to another connection: that one is opened again by whoever holds it.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
from collections import Counter

import zmq
from zmq.utils.monitor import recv_monitor_message

from edgevla.clock import NS_PER_S

MOST_CONNECTIONS, MOST_PER_KEY = 256, 8
MOST_LINES_PER_KEY = 12
"""Connections: its deployments', and those of who looks at them, which must not cost a robot its own."""
MESSAGES_PER_S, MESSAGES_AT_ONCE = 1000, 2000
GREETINGS_PER_S, GREETINGS_AT_ONCE = 10, 40
"""Joins and descriptions: each is answered at length."""
REMEMBERED = 1024
FAILED: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "not_paired",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "protocol",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "broken_off",
}
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


class Gate:
    """failed: handshakes, by reason. closed: connections that were closed here, by reason."""

    def __init__(self, socket: zmq.Socket) -> None:
        events = EVENTS
        for event in FAILED:
            events |= event
        self._socket = socket
        self._monitor = socket.get_monitor_socket(events)
        self._open: dict[int, str] = {}
        """File number -> who speaks there; empty: nobody yet. In the order in which they came."""
        self.failed: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def look(self) -> None:
        """Hears who has come and gone. When there are too many, whoever waits longest without a word must go."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            kind, fd = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                self._open.pop(fd, None)
                self._open[fd] = ""
                if len(self._open) > MOST_CONNECTIONS:
                    self._close(next((fd for fd, who in self._open.items() if not who), fd), "too_many")
            elif kind in FAILED:
                self.failed[FAILED[kind]] += 1
            else:
                self._open.pop(fd, None)

    def heard(self, fd: int, who: str) -> None:
        """A message came in there. One who has too many connections loses its oldest."""
        if self._open.get(fd) == who:
            return
        self.look()  # its coming is known before its words are
        self._open.pop(fd, None)
        self._open[fd] = who
        own = [fd for fd, one in self._open.items() if one == who]
        if len(own) > MOST_LINES_PER_KEY:
            self._close(own[0], "too_many_of_one")

    def is_open(self, fd: int, who: str) -> bool:
        """Whether the connection in which it spoke is still there."""
        return self._open.get(fd) == who

    def throw_out(self, who: str) -> None:
        """Closes all its connections."""
        self.look()
        for fd in [fd for fd, one in self._open.items() if one == who]:
            self._close(fd, "not_paired_any_more")

    def _close(self, fd: int, reason: str) -> None:
        self._open.pop(fd, None)
        self.closed[reason] += 1
        with contextlib.suppress(OSError), sockets.socket(fileno=os.dup(fd)) as own:
            own.shutdown(sockets.SHUT_RDWR)

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)


class Allowances:
    """Allowances that fill up with time, one per name; the names that were seen last are remembered.

    per_s: of each. at_once: after a silence.
    """

    def __init__(self, per_s: float, at_once: float) -> None:
        self._per_ns, self._most = per_s / NS_PER_S, float(at_once)
        self._left: dict[str, tuple[float, int]] = {}

    def allows(self, who: str, now_ns: int) -> bool:
        """Whether somebody may ask once more; takes a turn where it may. now_ns: monotonic."""
        left, at_ns = self._left.pop(who, (self._most, now_ns))
        left = min(self._most, left + (now_ns - at_ns) * self._per_ns)
        is_allowed = left >= 1
        self._left[who] = (left - is_allowed, now_ns)
        if len(self._left) > REMEMBERED:
            del self._left[next(iter(self._left))]
        return is_allowed
