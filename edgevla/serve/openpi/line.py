"""One websocket to one openpi server, with a time limit on everything. A line that was silent too long is not mended.

openpi's messages carry no numbers: an answer that comes late could be taken for that to the next question. So a line on
which one was not answered in time is closed, and a new one asks again. Bytes are moved here; the websocket's own rules
are the library's (`websockets`, its part without sockets).
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.serve.openpi.address import WsAddress

MOST_BYTES = 8 << 20
"""Of what a server says: a chunk is a few kilobytes, a reply that repeats the state little more."""
CONNECT_NS = 700 * NS_PER_MS
MOST_TURNS = 256
"""Of what came between two questions; whoever says more is no openpi server."""
LOOK_NS = 50 * NS_PER_MS
"""How soon `is_closing` is seen."""


class OpenpiLine:
    """is_closing: ends every wait, from another thread."""

    def __init__(self, address: WsAddress, is_closing: threading.Event) -> None:
        self.address, self._is_closing = address, is_closing
        self._socket: socket.socket | None = None
        self._poller = select.poll()
        self._protocol = ClientProtocol(parse_uri(str(address)), max_size=MOST_BYTES)
        self._outgoing: deque[memoryview] = deque()
        self._parts: list[Frame] = []
        self._messages: deque[str | bytes] = deque()
        self._has_ended = False
        self.why = "does not answer"

    def open(self, until_ns: int) -> str | bytes | None:
        """What the server says first: its metadata; None: nobody answers, `why` says what did. Whoever infers within its
        event loop says it late.
        """
        limit_s = max(0.001, min(CONNECT_NS, until_ns - time.monotonic_ns()) / NS_PER_S)
        try:
            self._socket = socket.create_connection((self.address.host, self.address.port), limit_s)
        except OSError:
            return None
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poller.register(self._socket, select.POLLIN)
        self._protocol.send_request(self._protocol.connect())
        return self._next(until_ns)

    @property
    def is_lost(self) -> bool:
        """Whether the server has closed it; what arrived meanwhile, pings for one, is answered."""
        for _ in range(MOST_TURNS):
            if self._has_ended or not self._turn(0):
                return self._has_ended
        return True

    def ask(self, data: bytes, until_ns: int) -> str | bytes | None:
        """The answer; None: there is none until then, and the line is of no use any more."""
        if self.is_lost or self._messages:  # whatever is there is no answer to this
            return None
        self._protocol.send_binary(data)
        return self._next(until_ns)

    def close(self) -> None:
        """Says so if that can be said at once."""
        if self._socket is None:
            return
        if self._protocol.state is State.OPEN and not self._outgoing:
            self._protocol.send_close()
            with contextlib.suppress(OSError):
                self._socket.send(b"".join(self._protocol.data_to_send()))
        self._socket.close()
        self._socket = None

    def _next(self, until_ns: int) -> str | bytes | None:
        while not self._messages:
            left_ns = until_ns - time.monotonic_ns()
            if self._has_ended or left_ns <= 0 or self._is_closing.is_set():
                return None
            self._turn(min(left_ns, LOOK_NS))
        return self._messages.popleft()

    def _turn(self, wait_ns: int) -> bool:
        """Sends and hears once; whether there was anything."""
        assert self._socket is not None
        self._outgoing += [memoryview(data) for data in self._protocol.data_to_send() if data]
        self._poller.modify(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        events = self._poller.poll(-(-wait_ns // NS_PER_MS))
        try:
            for _, event in events:
                if event & select.POLLOUT:
                    self._send(self._socket)
                if event & ~select.POLLOUT:
                    self._hear(self._socket)
        except BlockingIOError:
            return False
        except OSError:
            self._has_ended = True
        return bool(events)

    def _send(self, to: socket.socket) -> None:
        data = self._outgoing.popleft()
        n = to.send(data)
        if n < len(data):
            self._outgoing.appendleft(data[n:])

    def _hear(self, source: socket.socket) -> None:
        data = source.recv(1 << 18)
        self._protocol.receive_data(data) if data else self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._take(event)
        if data and self._protocol.handshake_exc is not None:
            self.why = f"refuses the connection ({str(self._protocol.handshake_exc)[:100]})"
        self._has_ended = not data or self._protocol.state not in (State.CONNECTING, State.OPEN)

    def _take(self, frame: Frame) -> None:
        """A message may come in several frames; their whole is bounded by the protocol."""
        self._parts.append(frame)
        if frame.fin:
            data = b"".join(bytes(part.data) for part in self._parts)
            is_text = self._parts[0].opcode is Opcode.TEXT
            self._messages.append(data.decode(errors="replace") if is_text else data)
            self._parts.clear()
