"""Whoever may stand at a policy server's door, and what nobody should send."""

from dataclasses import replace

import msgpack
import numpy as np
import zmq
from serve_kit import FRONT, STATE, robot, until

from edgevla import strict
from edgevla.codec import encode
from edgevla.messages import Header, Message
from edgevla.serve.transport import as_robot
from edgevla.server_messages import Join, Moment, Request, SentFrame
from edgevla.wire import Dealer

FRAME = SentFrame(FRONT, 24, 32, "rgb8")
PIXELS = np.zeros((24, 32, 3), np.uint8)


class Stranger:
    """Anything at the server's door. address: with keys."""

    def __init__(self, endpoint, session=b"stranger", address=None):
        self.ctx = zmq.Context()
        self.session = session
        self.dealer = Dealer(
            self.ctx, endpoint, session, "stranger", lambda socket: self._prepare(socket, address)
        )

    @staticmethod
    def _prepare(socket, address):
        if address is not None:
            as_robot(socket, address)
            socket.setsockopt(zmq.HEARTBEAT_IVL, 0)  # who reads so little would abort (transport.as_server)

    def tell(self, body, payloads=()):
        return until(lambda: (seq := self.dealer.send(body, payloads)) is not None and [seq])[0]

    def throw(self, parts):
        until(lambda: self.dealer.socket.poll(100, zmq.POLLOUT))
        self.dealer.socket.send_multipart(parts)

    def hear(self, timeout_s=5.0):
        return until(lambda: self.dealer.poll(0.05), timeout_s)[0].body

    def join_without_waiting(self, serving):
        self.tell(Join(serving.policies[0].sha256, strict.write(robot())))

    def join(self, serving, about=None):
        self.tell(Join(serving.policies[0].sha256, strict.write(about or robot())))
        return self.hear()

    def close(self):
        self.dealer.close()
        self.ctx.destroy(linger=0)


def request_for(serving, **changes):
    asked = Request(
        0, serving.policies[0].sha256, 1000.0, 0.0, "", (Moment(0, STATE, (FRAME,)),), None, 0, None
    )
    return replace(asked, **changes)


def sound_request(guest, serving):
    """The parts of a request that could be answered, but for its picture."""
    request = request_for(serving, moments=(Moment(0, STATE, (replace(FRAME, encoding="jpeg"),)),))
    message = Message(Header(guest.session, "stranger", 1, 2, 3), request, [np.arange(40, dtype=np.uint8)])
    return [bytes(part) for part in encode(message)]


def hostile(rng, sound):
    """Something that nobody should send."""
    topic, header, *payloads = sound
    kind = rng.integers(7)
    if kind == 0:
        return [rng.bytes(int(rng.integers(1, 200))) for _ in range(rng.integers(1, 5))]
    if kind == 1:  # a flipped byte
        damaged = bytearray(header)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        return [topic, bytes(damaged), *payloads]
    if kind == 2:
        return [topic, header[: rng.integers(len(header))], *payloads]
    if kind == 3:
        return [topic, header] + [b"x" * 10] * int(rng.integers(80))
    if kind == 4:  # a value of another type somewhere
        fields = msgpack.unpackb(header)
        fields[list(fields)[rng.integers(len(fields))]] = [None, -1, "x", {"a": []}, 1e300][rng.integers(5)]
        return [topic, msgpack.packb(fields), *payloads]
    if kind == 5:
        return [b"\x80\x04cos\nsystem\n(S'true'\ntR.", header, *payloads]
    return [topic, header, b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x03" + rng.bytes(20)]
