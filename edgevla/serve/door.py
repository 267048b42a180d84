"""Where robots come in: one ROUTER. Whatever arrives is a message of ours or is counted; nothing of it is kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zmq

from edgevla.codec import MAX_HEADER_BYTES, decode, encode
from edgevla.errors import WireError
from edgevla.messages import Ack, Body, Header, Message
from edgevla.serve.transport import as_server
from edgevla.wire import make_socket

SOURCE = "serve"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a message: the way back to him, and what he said."""

    peer: bytes
    asked: Message[Body]

    @property
    def session(self) -> bytes:
        return self.asked.header.session


class Door:
    """most_bytes: of one picture that a policy here takes; longer parts close the connection.

    Raises:
        zmq.ZMQError: the address is taken, or none of this machine.
    """

    def __init__(self, ctx: zmq.Context, endpoint: str, most_bytes: int) -> None:
        self.counters: Counter[str] = Counter()
        self._socket = make_socket(ctx, zmq.ROUTER)
        as_server(self._socket, endpoint, most_bytes + MAX_HEADER_BYTES)
        self._socket.setsockopt(zmq.LINGER, 500)  # the last answers
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            raise

    @property
    def socket(self) -> zmq.Socket:
        """For a poller; reading is `poll`'s."""
        return self._socket

    @property
    def endpoint(self) -> str:
        """Where it really listens: a port 0 has become one."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def poll(self, most: int = 64) -> list[Caller]:
        """Up to `most` messages. Never blocks."""
        found = []
        for _ in range(most):
            try:
                peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            try:
                found.append(Caller(peer.bytes, decode([part.buffer for part in parts], None)))
            except WireError as error:
                self.counters[error.reason] += 1
        return found

    def answer(self, caller: Caller, body: Body, payloads: Sequence[np.ndarray] = ()) -> None:
        """In the robot's session, with the number of what it answers. Whoever has gone, or reads nothing, loses it."""
        now = time.monotonic_ns()
        header = Header(caller.session, SOURCE, caller.asked.seq, now, now)
        try:
            frames = encode(Message(header, body, payloads))
            self._socket.send_multipart([caller.peer, *frames], zmq.NOBLOCK, copy=True)
        except zmq.ZMQError:
            self.counters["unsent"] += 1

    def ack(self, caller: Caller, is_accepted: bool, reason: str = "") -> None:
        self.answer(caller, Ack(caller.asked.seq, is_accepted, reason))

    def close(self) -> None:
        self._socket.close()
