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
from edgevla.messages import Ack, Describe, Header, Message, MessageBody
from edgevla.serve.authority import Authority
from edgevla.serve.gate import (
    GREETINGS_AT_ONCE,
    GREETINGS_PER_S,
    MESSAGES_AT_ONCE,
    MESSAGES_PER_S,
    Allowances,
    Gate,
)
from edgevla.serve.transport import as_server
from edgevla.server_messages import Join
from edgevla.wire import make_socket

SOURCE = "serve"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a message: the way back to him, and what he said. key: his, where robots are paired; or empty.

    fd: the file number of his connection.
    """

    peer: bytes
    asked: Message[MessageBody]
    key: str = ""
    fd: int = -1

    @property
    def session(self) -> bytes:
        """Of the deployment that asks: 8 bytes."""
        return self.asked.header.session

    @property
    def identity(self) -> tuple[str, bytes]:
        """Of the robot: nobody gets into another one's session without its key."""
        return self.key, self.session

    @property
    def who(self) -> str:
        """As the gate knows him."""
        return self.key or self.peer.hex()


class Door:
    """most_bytes: of one picture that a policy here takes; longer parts close the connection.

    authority: who may come in, by his key, already started in this context; None: whoever is on this machine.

    Raises:
        zmq.ZMQError: the address is taken, or none of this machine.
    """

    def __init__(
        self, ctx: zmq.Context, endpoint: str, most_bytes: int, authority: Authority | None = None
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._authority = authority
        self._socket = make_socket(ctx, zmq.ROUTER)
        keys = None if authority is None else authority.keys
        as_server(self._socket, endpoint, most_bytes + MAX_HEADER_BYTES, keys)
        self._socket.setsockopt(zmq.LINGER, 500)  # the last answers
        self.gate = Gate(self._socket)
        self._messages = Allowances(MESSAGES_PER_S, MESSAGES_AT_ONCE)
        self._greetings = Allowances(GREETINGS_PER_S, GREETINGS_AT_ONCE)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError:
            self.gate.close()
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
        found, now_ns = [], time.monotonic_ns()
        self.gate.look()
        for _ in range(most):
            try:
                peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            try:
                found += self._let_in(peer, parts, now_ns)
            except WireError as error:
                self.counters[error.reason] += 1
        return found

    def _let_in(self, peer: zmq.Frame, parts: Sequence[zmq.Frame], now_ns: int) -> list[Caller]:
        """The message, if who sent it may say so much.

        Raises:
            WireError: it is none of ours.
        """
        key = str(peer.get("User-Id")) if self._authority is not None else ""
        who = key or peer.bytes.hex()
        fd = int(peer.get(zmq.SRCFD))
        self.gate.heard(fd, who)
        if self._authority is not None and self._authority.name_of(key) is None:
            self.gate.throw_out(who)
            self.counters["not_paired"] += 1
        elif not self._messages.allows(who, now_ns):
            self.counters["rate"] += 1
        else:
            caller = Caller(peer.bytes, decode([part.buffer for part in parts], None), key, fd)
            if not isinstance(caller.asked.body, Join | Describe) or self._greetings.allows(who, now_ns):
                return [caller]
            self.counters["rate"] += 1
        return []

    def answer(self, caller: Caller, body: MessageBody, payloads: Sequence[np.ndarray] = ()) -> None:
        """In the robot's session, with the number of what it answers. Whoever has gone, or reads nothing, loses it."""
        now = time.monotonic_ns()
        header = Header(caller.session, SOURCE, caller.asked.seq, now, now)
        try:
            frames = encode(Message(header, body, payloads))
            self._socket.send_multipart([caller.peer, *frames], zmq.NOBLOCK, copy=True)
        except zmq.ZMQError:
            self.counters["unsent"] += 1

    def ack(self, caller: Caller, is_accepted: bool, reason: str = "") -> None:
        """Yes, or no with the reason."""
        self.answer(caller, Ack(caller.asked.seq, is_accepted, reason))

    def close(self) -> None:
        self.gate.close()
        self._socket.close()
