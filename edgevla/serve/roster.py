"""What a policy server remembers of a robot that has joined: enough to tell whoever looks how it is served."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.descriptions import ServedRobot
from edgevla.serve.door import Caller
from edgevla.serve.gate import Gate
from edgevla.serve.hosted import Hosted
from edgevla.server_messages import Request

LATELY = 16
"""Requests of which the rate is made."""
NAME_BYTES, WORDS_BYTES = 48, 160
"""Of what a robot says itself: the list of a full server is one message."""


@dataclass
class Guest:
    """name: what it calls itself. fd, who: its connection, as the gate knows it. heard_ns: when it was last heard.

    times_ns: of its newest requests, without a longer silence between two of them. outcome, words: of `ServedRobot`.
    """

    name: str
    hosted: Hosted
    fd: int
    who: str
    joined_ns: int
    heard_ns: int
    times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=LATELY))
    task: str = ""
    buffered_ms: float = 0.0
    is_guided: bool = False
    outcome: str = ""
    words: str = ""
    spent_ns: int | None = None

    @property
    def chunk_ns(self) -> int:
        """So long the actions of one chunk last."""
        manifest = self.hosted.policy.manifest
        return round(manifest.chunk_size / manifest.fps * NS_PER_S)

    def asks(self, request: Request, caller: Caller, now_ns: int) -> None:
        """A request that fits has come."""
        if self.times_ns and now_ns - self.times_ns[-1] > 2 * self.chunk_ns + NS_PER_S:
            self.times_ns.clear()  # it was paused; its rate is made of what follows
        self.times_ns.append(now_ns)
        self.heard_ns, self.fd, self.who = now_ns, caller.fd, caller.who
        self.task, self.buffered_ms = request.task, request.buffered_ms
        self.is_guided = request.rtc is not None
        self.outcome = self.words = ""

    def is_told(self, outcome: str, words: str = "", spent_ns: int | None = None) -> None:
        """What became of its newest request."""
        self.outcome, self.words = outcome, words
        self.spent_ns = self.spent_ns if spent_ns is None else spent_ns

    def about(self, now_ns: int, identity: tuple[str, bytes], machine: str, gate: Gate) -> ServedRobot:
        """For whoever looks. identity: key and session. machine: the name that its key has; empty: it has none."""
        times = self.times_ns
        per_s = (len(times) - 1) * NS_PER_S / (times[-1] - times[0]) if len(times) > 1 else None
        return ServedRobot(
            id=hashlib.sha256(identity[0].encode() + identity[1]).hexdigest()[:16],
            robot=_short(self.name, NAME_BYTES),
            machine=machine,
            policy=self.hosted.name,
            task=_short(self.task, WORDS_BYTES),
            is_connected=gate.is_open(self.fd, self.who),
            joined_ms=(now_ns - self.joined_ns) / NS_PER_MS,
            asked_ms=(now_ns - times[-1]) / NS_PER_MS if times else None,
            per_s=per_s,
            buffered_ms=self.buffered_ms,
            chunk_ms=self.chunk_ns / NS_PER_MS,
            answer_ms=None if self.spent_ns is None else self.spent_ns / NS_PER_MS,
            is_guided=self.is_guided,
            outcome=self.outcome,
            words=_short(self.words, WORDS_BYTES),
        )


def _short(text: str, n_bytes: int) -> str:
    return text.encode(errors="replace")[:n_bytes].decode(errors="ignore")
