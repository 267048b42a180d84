"""One conversation of a robot with one policy server, from connecting to the first sign that the server has gone.

It is never mended: whoever holds it leaves it and opens another, so that nothing of an old server can be mistaken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from edgevla import strict
from edgevla.clock import NS_PER_MS
from edgevla.descriptions import About, AboutPolicy, AboutRobot, AboutServed, AboutServer, AskedAbout
from edgevla.errors import UsageError, WireError
from edgevla.messages import Ack, Describe, Message, MessageBody, holds
from edgevla.serve.transport import Address, as_robot
from edgevla.server_messages import Join, Reply, Request
from edgevla.strict import Mismatch, nearest
from edgevla.wire import Dealer

SLICE_MS = 50
"""So often it is looked whether the process ends."""
PAIR = "edgevla serve --pair there, edgevla pair {host} here"
BARRED: dict[int, tuple[str, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: (
        "",
        f"does not take this robot: it is not paired there, or not any more; to pair it: {PAIR}",
    ),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: (
        f"takes paired robots only; to pair this one: {PAIR}",
        "talks without keys, but this robot was paired with it: start it with --paired, or forget it here: "
        "edgevla pair --list, edgevla pair --revoke NAME",
    ),
}
"""What it means when the handshake fails: to a robot without, and with a key of the server."""
HINT = f"; if it runs, it talks without keys or its key is another one than at pairing; to pair again: {PAIR}"
"""When it breaks off in the handshake, as a server does that just ends."""
A = TypeVar("A", bound=About)


class ServerLine:
    """is_closing: set when nobody waits any more."""

    def __init__(
        self, ctx: zmq.Context, address: Address, session: bytes, source: str, is_closing: threading.Event
    ) -> None:
        self.address, self._is_closing = address, is_closing
        self._has_gone = self._is_connected = False
        self.barred = ""
        """Why the server does not even listen to this robot, in words; empty: it does, or is not there."""
        self.hint = ""
        """What may be wrong where it is not there."""
        self._dealer = Dealer(ctx, address.endpoint, session, source, self._prepare)
        self._poller = zmq.Poller()
        for socket in (self._dealer.socket, self._monitor):
            self._poller.register(socket, zmq.POLLIN)

    def _prepare(self, socket: zmq.Socket) -> None:
        as_robot(socket, self.address)
        events = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        for event in BARRED:
            events |= event
        self._monitor = socket.get_monitor_socket(events)

    @property
    def is_lost(self) -> bool:
        """Whether the server has gone since the line was opened, even if one is there again."""
        while self._monitor.poll(0):
            event, has_keys = recv_monitor_message(self._monitor)["event"], self.address.own is not None
            if event == zmq.EVENT_CONNECTED:
                self._is_connected = True
                continue
            self._has_gone = True
            if event in BARRED:
                self.barred = BARRED[event][has_keys].format(host=self.address.host)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and has_keys:
                self.hint = HINT.format(host=self.address.host)
        return self._has_gone

    @property
    def refusals(self) -> dict[str, int]:
        """What came and was no message of ours, by reason."""
        return {k: v for k, v in self._dealer.counters.items() if k.startswith("wire_")}

    def reach(self, until_ns: int) -> bool:
        """Whether somebody has taken the connection, by then. Who it is, the handshake says."""
        while not self._is_over(until_ns) and not self._is_connected:
            self._monitor.poll(self._slice_ms(until_ns))
        return self._is_connected

    def send(self, body: MessageBody, payloads: Sequence[np.ndarray], until_ns: int) -> int | None:
        """Sequence number, once the server is connected; None when it is not until then."""
        while not self._is_over(until_ns):
            if (seq := self._dealer.send(body, payloads, copy=False)) is not None:
                return seq
            self._dealer.socket.poll(self._slice_ms(until_ns), zmq.POLLOUT)
        return None

    def hear(self, until_ns: int) -> list[Message[MessageBody]]:
        """What has come, at least one message; none when the server has gone or time is over."""
        while True:
            is_over = self._is_over(until_ns)  # first: what a server said before it went is still there
            ready = dict(self._poller.poll(0 if is_over else self._slice_ms(until_ns)))
            if is_over or self._dealer.socket in ready:
                found = self._dealer.poll()
                if found or is_over:
                    return found

    def _is_over(self, until_ns: int) -> bool:
        return self.is_lost or self._is_closing.is_set() or time.monotonic_ns() >= until_ns

    @staticmethod
    def _slice_ms(until_ns: int) -> int:
        left = -(-(until_ns - time.monotonic_ns()) // NS_PER_MS)
        return int(max(0, min(SLICE_MS, left)))

    def close(self) -> None:
        self._dealer.socket.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close()

    # -- conversations ----------------------------------------------------------------------------------------

    def describe(self, cls: type[A], asked: AskedAbout | None, until_ns: int) -> A | None:
        """What the server tells of itself, or of one policy; None: it does not answer.

        Raises:
            WireError: it tells something else. UsageError: it has no such policy.
        """
        seq = self.send(Describe(None if asked is None else strict.write(asked)), (), until_ns)
        while seq is not None and (messages := self.hear(until_ns)):
            for body in (message.body for message in messages):
                if isinstance(body, Ack) and body.of_seq == seq:
                    raise UsageError(f"{self.address}: {body.reason}")
                if isinstance(body, Describe) and body.about is not None:
                    try:
                        return strict.read(cls, body.about, f"the description of {self.address}")
                    except Mismatch as error:
                        raise WireError(str(error), error.reason) from None
        return None

    def join(self, policy: str, robot: AboutRobot, until_ns: int) -> Ack | None:
        """Whether the server takes this robot; None: it does not answer. policy: sha256 of its manifest."""
        seq = self.send(Join(policy, strict.write(robot)), (), until_ns)
        while seq is not None and (messages := self.hear(until_ns)):
            for body in (message.body for message in messages):
                if isinstance(body, Ack) and body.of_seq == seq:
                    return body
        return None

    def ask(self, request: Request, payloads: Sequence[np.ndarray], until_ns: int) -> Message[Reply] | None:
        """The reply to this very request, whatever else arrives; None: it does not answer."""
        if self.send(request, payloads, until_ns) is None:
            return None
        while messages := self.hear(until_ns):
            for message in messages:
                if holds(message, Reply) and message.body.request_id == request.request_id:
                    return message
        return None


def policy_of(line: ServerLine, until_ns: int) -> AboutPolicy | None:
    """The description of the policy that the line's address names, or of the server's only one; None: no answer.

    Raises:
        UsageError: the server has several, or not this one. WireError: it tells something else.
    """
    server = line.describe(AboutServer, None, until_ns)
    if server is None:
        return None
    name = chosen(server.policies, line.address).name
    return line.describe(AboutPolicy, AskedAbout(name), until_ns)


def chosen(policies: Sequence[AboutServed], address: Address) -> AboutServed:
    """
    Raises:
        UsageError: it is not clear which one is meant, or there is no such one.
    """
    names = [policy.name for policy in policies]
    if not address.policy and len(policies) == 1:
        return policies[0]
    if address.policy in names:
        return policies[names.index(address.policy)]
    have = ", ".join(names) or "none"
    if not address.policy:
        raise UsageError(f"{address} has several policies, say which one: {address}/NAME with one of {have}")
    raise UsageError(
        f"{address.endpoint} has no policy '{address.policy}'; it has {have}{nearest(address.policy, names)}"
    )
