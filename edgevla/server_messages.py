"""What a robot and a policy server say to each other, beside `describe` and `ack`: join, request, reply.

The server keeps nothing between requests but who has joined: the past that a policy looks at and the actions that
the arm is committed to travel with every request. It is told no robot's time, only how long an answer is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgevla.fields import Duration, F32s, Guidance, MessageBody, Payloads
from edgevla.strict import Int, Plain, UInt


@dataclass(frozen=True)
class Join(MessageBody):
    """A robot says what it is (`AboutRobot`) and which policy it will ask for; answered by `Ack`.

    policy: sha256 of the bundle's manifest.
    """

    policy: str
    robot: Plain


@dataclass(frozen=True)
class SentFrame:
    """One picture of a request: the policy's camera feature, and what its payload holds."""

    feature: str
    height: UInt
    width: UInt
    encoding: Literal["rgb8", "jpeg"]

    def misfit(self, payload: np.ndarray) -> str | None:
        wanted = (self.height, self.width, 3)
        if payload.dtype != np.uint8:
            return f"{payload.dtype} pixels of '{self.feature}'"
        if self.encoding == "rgb8" and payload.shape != wanted:
            return f"pixels of shape {payload.shape} of '{self.feature}', not {wanted}"
        return "a JPEG that is not flat" if self.encoding == "jpeg" and payload.ndim != 1 else None


@dataclass(frozen=True)
class Moment:
    """What the policy sees of one grid moment. steps_back: 0 is the request's own. state: (S,), policy units."""

    steps_back: UInt
    state: F32s
    frames: tuple[SentFrame, ...]


@dataclass(frozen=True)
class Request(MessageBody):
    """A robot asks a policy server for one chunk; answered by `Reply`. All in the policy's units and order.

    policy: sha256 of its manifest. budget_ms: after so long nobody needs the answer any more; buffered_ms: so long the
    arm still has actions. Both are relative, because the clocks differ. moments: oldest first. seed: of the noise, with
    the request's number. Payloads: with `rtc` the committed actions (T, A), then the pictures as the moments name them.
    """

    request_id: UInt
    policy: str
    budget_ms: Duration
    buffered_ms: Duration
    task: str
    moments: tuple[Moment, ...]
    n_steps: UInt | None
    seed: UInt
    rtc: Guidance | None

    PAYLOADS: ClassVar[Payloads] = Payloads(0, 64, ("uint8", "float32"))

    def frames(self) -> list[SentFrame]:
        """Of all moments, in the payloads' order."""
        return [frame for moment in self.moments for frame in moment.frames]

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        if [moment.steps_back for moment in self.moments][-1:] != [0]:
            return "no moment of its own at the end"
        frames, n_committed = self.frames(), int(self.rtc is not None)
        if len(payloads) != n_committed + len(frames):
            return f"{len(payloads)} payloads for {len(frames)} pictures and {n_committed} committed chunks"
        if self.rtc is not None:
            shape, n = payloads[0].shape, len(self.rtc.weights)
            if payloads[0].dtype != np.float32 or len(shape) != 2 or shape[0] != n:
                return f"committed actions of shape {shape} for {n} weights"
        found = (frame.misfit(payload) for frame, payload in zip(frames, payloads[n_committed:], strict=True))
        return next((words for words in found if words), None)


@dataclass(frozen=True)
class ServerTimes:
    """By the server's own clock, which is no robot's; only differences mean something."""

    received: Int
    started: Int
    done: Int


@dataclass(frozen=True)
class Stages:
    """What the inference itself spent where, ns."""

    prompt: Int
    encode: Int
    denoise: Int
    decode: Int


@dataclass(frozen=True)
class Answer:
    """policy: sha256 of the manifest of the policy that inferred."""

    policy: str
    is_guided: bool
    n_steps: UInt
    noise_seed: UInt
    server_ns: ServerTimes
    timing_ns: Stages


@dataclass(frozen=True)
class Refusal:
    """code: stable, for programs. text: one sentence, for people."""

    code: str
    text: str


@dataclass(frozen=True)
class Reply(MessageBody):
    """What became of one `Request`: an answer with its chunk, or a refusal. Payload: float32 (T, A), policy units."""

    request_id: UInt
    answer: Answer | None
    refused: Refusal | None

    PAYLOADS: ClassVar[Payloads] = Payloads(0, 1, ("float32",))

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        if (self.answer is None) == (self.refused is None):
            return "neither answer nor refusal, or both"
        if (self.answer is None) == bool(payloads):
            return "an answer without its chunk, or a refusal with one"
        return None if not payloads or payloads[0].ndim == 2 else f"a chunk of shape {payloads[0].shape}"
