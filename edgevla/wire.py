"""Sockets between processes. What arrives is a `Message` or is counted under `wire_<reason>` and dropped.

    Publisher -> Inbox                 streams; the inbox is a thread that empties sockets into bounded rings, so
                                       "newest only" is made by the receiver
                                       (docs/decisions.md#the-newest-by-the-receiver)
    CommandClient <-> CommandServer    commands and `describe`, each answered
    Dealer <-> Router                  the same without the answer: `infer`

The types are in `edgevla.messages`, the bytes are `edgevla.codec`'s, the folder of sockets `edgevla.session`'s.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import zmq

from edgevla import strict
from edgevla.arguments import Arguments, arguments_from, arguments_to
from edgevla.codec import MAX_PAYLOAD_BYTES, decode, encode
from edgevla.descriptions import About
from edgevla.errors import UsageError, WireError
from edgevla.messages import (
    NAMES,
    Ack,
    Action,
    B,
    Command,
    Describe,
    Event,
    Header,
    Message,
    MessageBody,
    Severity,
)
from edgevla.session import endpoint, find_deployment, new_session, read_deployment, run_dir, tell_guardian

__all__ = [
    "Ack",
    "CommandClient",
    "CommandRequest",
    "CommandServer",
    "Dealer",
    "Inbox",
    "Message",
    "Publisher",
    "Router",
    "endpoint",
    "find_deployment",
    "new_session",
    "read_deployment",
    "run_dir",
    "tell_guardian",
]

HIGH_WATER_MARK = 64
A = TypeVar("A", bound=About)
Stream = tuple[str | Sequence[str], int]
"""Endpoint or several, and the size of the ring of each source."""


def make_socket(ctx: zmq.Context, kind: int, *, hwm: int = HIGH_WATER_MARK) -> zmq.Socket:
    """A socket with our limits: bounded queues, bounded parts, no lingering."""
    made = ctx.socket(kind)
    made.setsockopt(zmq.SNDHWM, hwm)
    made.setsockopt(zmq.RCVHWM, hwm)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.MAXMSGSIZE, MAX_PAYLOAD_BYTES)
    return made


def _bound_socket(ctx: zmq.Context, kind: int, address: str) -> zmq.Socket:
    """A socket that listens at `address`; closed again when the address is taken. Raises zmq.ZMQError."""
    made = make_socket(ctx, kind)
    made.setsockopt(zmq.LINGER, 200)  # the last words of a node are worth 0.2 s
    try:
        made.bind(address)
    except zmq.ZMQError:
        made.close()
        raise
    return made


class _Writer:
    """Gives every message its common header: session, source, and a sequence number per type."""

    def __init__(self, session: bytes, source: str) -> None:
        self.session, self.source = session, source
        self._seq: Counter[str] = Counter()

    def frames(
        self, body: MessageBody, payloads: Sequence[np.ndarray], observed_ns: int | None
    ) -> tuple[int, list[bytes | memoryview]]:
        name, now = NAMES[type(body)], time.monotonic_ns()
        seq = self._seq[name]
        header = Header(self.session, self.source, seq, now if observed_ns is None else observed_ns, now)
        frames = encode(Message(header, body, payloads))
        self._seq[name] += 1
        return seq, frames


class Publisher:
    """What a node says to everybody. Never blocks: a full queue drops, and the receiver counts the gap."""

    def __init__(self, ctx: zmq.Context, address: str, session: bytes, source: str) -> None:
        self._writer = _Writer(session, source)
        self._socket = _bound_socket(ctx, zmq.PUB, address)

    def send(
        self, body: MessageBody, payloads: Sequence[np.ndarray] = (), observed_ns: int | None = None
    ) -> int:
        """Sequence number of the message. `observed_ns`: monotonic ns when the content was true, default now."""
        seq, frames = self._writer.frames(body, payloads, observed_ns)
        self._socket.send_multipart(frames, copy=True)
        return seq

    def event(self, severity: Severity, code: str, text: str, **fields: Any) -> None:
        """One sentence for people; `code` is stable, for programs."""
        self.send(Event(severity, code, text, fields))

    def close(self) -> None:
        self._socket.close()


class _Receiver:
    """Decodes and counts: `wire_<reason>` for what was refused, `lost_<type>` for gaps in sequence numbers."""

    def __init__(self, session: bytes | None) -> None:
        self._session = session
        self._next_seq: dict[tuple[str, str], int] = {}
        self.counters: Counter[str] = Counter()
        self.last_refusal = ""

    def accept(self, frames: Sequence[Any]) -> Message[MessageBody] | None:
        try:
            message = decode(frames, self._session)
        except WireError as error:
            self.counters[f"wire_{error.reason}"] += 1
            self.last_refusal = str(error)
            return None
        key = (message.type, message.source)
        expected = self._next_seq.get(key)
        if expected is not None and message.seq > expected:
            self.counters[f"lost_{message.type}"] += message.seq - expected
        self._next_seq[key] = message.seq + 1  # a smaller number is a node that was started again
        self.counters[f"received_{message.type}"] += 1
        return message


class Inbox:
    """A thread that empties subscriptions into bounded rings, one per (class, source).

    streams: class of the body -> `Stream`. What overflows a ring is the oldest.
    """

    def __init__(
        self, ctx: zmq.Context, streams: Mapping[type[MessageBody], Stream], session: bytes | None
    ) -> None:
        self._receiver = _Receiver(session)
        self._sizes = {cls: size for cls, (_, size) in streams.items()}
        self._rings: dict[tuple[type[MessageBody], str], deque[tuple[int, Message[MessageBody]]]] = {}
        self._lock = threading.Lock()
        self._arrived = 0
        self._arrival = threading.Event()
        self._stopping = threading.Event()
        self._socket = make_socket(ctx, zmq.SUB, hwm=0)  # the rings bound it; a bound here keeps the oldest
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        connected: set[str] = set()
        for cls, (endpoints, _) in streams.items():
            self._socket.setsockopt(zmq.SUBSCRIBE, NAMES[cls].encode())
            for address in [endpoints] if isinstance(endpoints, str) else endpoints:
                if address not in connected:
                    self._socket.connect(address)
                    connected.add(address)
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> Counter[str]:
        return self._receiver.counters

    @property
    def last_refusal(self) -> str:
        """The newest sentence about a message that was refused."""
        return self._receiver.last_refusal

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                if poller.poll(50):
                    self._empty()
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()

    def _empty(self) -> None:
        while not self._stopping.is_set():  # more may arrive than a slow machine reads
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            message = self._receiver.accept([part.buffer for part in parts])
            if message is not None and type(message.body) in self._sizes:
                self._keep(message)

    def _keep(self, message: Message[MessageBody]) -> None:
        with self._lock:
            cls = type(message.body)
            ring = self._rings.setdefault((cls, message.source), deque(maxlen=max(1, self._sizes[cls])))
            if len(ring) == ring.maxlen:
                self.counters[f"ring_{message.type}"] += 1
            self._arrived += 1
            ring.append((self._arrived, message))
        self._arrival.set()

    def newest(self, cls: type[B], source: str | None = None) -> Message[B] | None:
        """The newest message of a class (of one source); it stays in its ring."""
        with self._lock:
            rings = [r for (c, s), r in self._rings.items() if c is cls and source in (None, s) and r]
            newest = max((ring[-1] for ring in rings), key=lambda item: item[0], default=None)
        return cast("Message[B] | None", newest and newest[1])

    def recent(self, cls: type[B], source: str) -> list[Message[B]]:
        """All that the ring of one source holds, oldest first; nothing is removed."""
        with self._lock:
            return [cast("Message[B]", message) for _, message in self._rings.get((cls, source), ())]

    def drain(self, cls: type[B]) -> list[Message[B]]:
        """All messages of a class in the order of arrival; the rings are empty afterwards."""
        with self._lock:
            rings = [ring for (c, _), ring in self._rings.items() if c is cls]
            items = sorted((item for ring in rings for item in ring), key=lambda item: item[0])
            for ring in rings:
                ring.clear()
        return [cast("Message[B]", message) for _, message in items]

    def wait(self, timeout_s: float) -> bool:
        """Until anything new arrived since the last call; whether it did."""
        arrived = self._arrival.wait(timeout_s)
        self._arrival.clear()
        return arrived

    def stop(self) -> None:
        """Ends its thread, which closes the socket: nobody destroys the context under it."""
        self._stopping.set()
        self._thread.join()


class Dealer:
    """One end of a conversation: sends to a Router and reads its answers, never blocking.

    prepare: sets more options of the socket before it connects.
    """

    def __init__(
        self,
        ctx: zmq.Context,
        address: str,
        session: bytes,
        source: str,
        prepare: Callable[[zmq.Socket], None] = lambda _: None,
    ) -> None:
        self._writer = _Writer(session, source)
        self._receiver = _Receiver(session)
        self._socket = make_socket(ctx, zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues up for a peer that is not there
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        prepare(self._socket)
        self._socket.connect(address)

    @property
    def socket(self) -> zmq.Socket:
        """For a poller; reading is `poll`'s."""
        return self._socket

    @property
    def counters(self) -> Counter[str]:
        return self._receiver.counters

    def send(
        self,
        body: MessageBody,
        payloads: Sequence[np.ndarray] = (),
        observed_ns: int | None = None,
        *,
        copy: bool = True,
    ) -> int | None:
        """Sequence number, or None when nobody is connected at the other end.

        copy: without it large payloads are sent from where they lie; nobody may write into them any more.
        """
        seq, frames = self._writer.frames(body, payloads, observed_ns)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=copy)
        except zmq.Again:
            self.counters[f"unsent_{NAMES[type(body)]}"] += 1
            return None
        return seq

    def poll(self, timeout_s: float = 0.0) -> list[Message[MessageBody]]:
        """All messages that are there; waits up to `timeout_s` for the first."""
        if timeout_s > 0 and not self._socket.poll(int(timeout_s * 1000)):
            return []
        found: list[Message[MessageBody]] = []
        while True:
            try:
                message = self._receiver.accept(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return found
            if message is not None:
                found.append(message)

    def close(self) -> None:
        self._socket.close()


class Router:
    """The end that many dealers talk to. `poll` never blocks; `send` answers one of them."""

    def __init__(self, ctx: zmq.Context, address: str, session: bytes, source: str) -> None:
        self._writer = _Writer(session, source)
        self._receiver = _Receiver(session)
        self._socket = _bound_socket(ctx, zmq.ROUTER, address)

    @property
    def counters(self) -> Counter[str]:
        return self._receiver.counters

    @property
    def socket(self) -> zmq.Socket:
        """For a poller; reading is `poll`'s."""
        return self._socket

    def poll(self, most: int = 16) -> list[tuple[bytes, Message[MessageBody]]]:
        """Up to `most` messages, each with whom it came from."""
        found = []
        for _ in range(most):
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = self._receiver.accept(frames)
            if message is not None:
                found.append((peer, message))
        return found

    def send(self, peer: bytes, body: MessageBody) -> None:
        """To one peer; what it cannot be given is counted."""
        _, frames = self._writer.frames(body, (), None)
        try:
            self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=True)
        except zmq.ZMQError:  # the peer has gone or reads nothing: its loss
            self.counters[f"unsent_{NAMES[type(body)]}"] += 1

    def close(self) -> None:
        self._socket.close()


@dataclass
class CommandRequest:
    """One command that waits for its answer. arguments: of the class that belongs to the action, read and checked."""

    action: Action
    arguments: Arguments | None
    source: str
    _seq: int
    _peer: bytes
    _router: Router

    def answer(self, is_accepted: bool, reason: str = "") -> None:
        """Yes, or no with the reason; once."""
        self._router.send(self._peer, Ack(self._seq, is_accepted, reason))


class CommandServer:
    """A node's ears. `about` is what it answers to `describe`; None until it is ready."""

    def __init__(self, ctx: zmq.Context, address: str, session: bytes, source: str) -> None:
        self._router = Router(ctx, address, session, source)
        self.about: About | None = None

    @property
    def counters(self) -> Counter[str]:
        return self._router.counters

    def poll(self) -> list[CommandRequest]:
        """Commands since the last call. Never blocks.

        On the way `describe` is answered, and a command whose arguments do not fit is refused with the reason.
        """
        commands = []
        for peer, message in self._router.poll():
            if isinstance(message.body, Describe):
                about = None if self.about is None else strict.write(self.about)
                self._router.send(peer, Describe(about))
            elif isinstance(message.body, Command):
                request = self._request(peer, message, message.body)
                commands += [request] if request is not None else []
            else:
                self.counters["wire_type"] += 1
        return commands

    def _request(self, peer: bytes, message: Message[MessageBody], command: Command) -> CommandRequest | None:
        try:
            arguments = arguments_from(command.action, command.arguments)
        except UsageError as error:
            self._router.send(peer, Ack(message.seq, False, str(error)))
            return None
        return CommandRequest(command.action, arguments, message.source, message.seq, peer, self._router)

    def close(self) -> None:
        self._router.close()


class CommandClient:
    """Commands one node. `folder`: the run directory; an emergency stop then goes to the guardian as well."""

    def __init__(
        self, ctx: zmq.Context, address: str, session: bytes, source: str, folder: Path | None = None
    ) -> None:
        self._dealer = Dealer(ctx, address, session, source)
        self._address, self._folder = address, folder

    def request(self, action: Action, arguments: Arguments | None = None, timeout_s: float = 2.0) -> Ack:
        """Sends one command and waits for its answer.

        Raises:
            WireError: no answer in time; the command may or may not have been obeyed.
        """
        if self._folder is not None and action == "emergency_stop":
            tell_guardian(self._folder)
        deadline = time.monotonic() + timeout_s
        seq = self._send(Command(action, arguments_to(action, arguments)), deadline)
        while (left := deadline - time.monotonic()) > 0:
            for message in self._dealer.poll(left):
                if isinstance(message.body, Ack) and message.body.of_seq == seq:
                    return message.body
        raise WireError(f"'{action}' was not answered at {self._address} within {timeout_s:g} s", "timeout")

    def describe(self, cls: type[A], timeout_s: float = 2.0) -> A | None:
        """What the node is, or None while it is not ready. cls: what such a node tells.

        Raises:
            WireError: no answer in time, or one that does not fit; names the field.
        """
        deadline = time.monotonic() + timeout_s
        self._send(Describe(None), deadline)
        while (left := deadline - time.monotonic()) > 0:
            for message in self._dealer.poll(left):
                if isinstance(message.body, Describe):
                    about = message.body.about
                    return None if about is None else _described(cls, about, message.source)
        raise WireError(f"'describe' was not answered at {self._address} within {timeout_s:g} s", "timeout")

    def _send(self, body: MessageBody, deadline: float) -> int:
        while True:
            seq = self._dealer.send(body)
            if seq is not None:
                return seq
            if time.monotonic() > deadline:
                raise WireError(f"nobody listens at {self._address}", "timeout")
            time.sleep(0.01)

    def close(self) -> None:
        self._dealer.close()


def _described(cls: type[A], about: Mapping[str, Any], source: str) -> A:
    try:
        return strict.read(cls, about, f"the description of {source}")
    except strict.Mismatch as error:
        raise WireError(str(error), error.reason) from None
