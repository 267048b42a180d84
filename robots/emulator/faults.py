"""Faults to inject into an emulated robot, by script, by test, or over the `fault` socket.

Which there are is one table: `fault_kinds`. A fault of an answer hits with a probability or the next `count` times, and
may be limited to one servo or bus.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any

from edgevla.errors import UsageError
from edgevla.strict import Mismatch, Within, nearest, read

from .fault_kinds import KINDS
from .servo import EmulatedServo

FOREVER_NS = 1 << 62


@dataclass
class InjectedFault:
    """One fault. target: servo id, motor name, bus name, or None for all (`register`: `motor.register`).

    probability: per answer; count: how many answers are hit at most (None: no limit); amount: what the kind's words in
    `fault_kinds` call AMOUNT, 0 for the usual.
    """

    kind: str
    target: int | str | None = None
    probability: Annotated[float, Within(0, 1)] = 1.0
    count: Annotated[int, Within(0, None)] | None = None
    duration_ms: Annotated[float, Within(0, None)] | None = None
    amount: float = 0.0
    end_ns: int = field(default=FOREVER_NS, init=False, repr=False)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> InjectedFault:
        """From a message or a script line.

        Raises:
            UsageError: an unknown kind or key, or a value that it cannot have.
        """
        try:
            fault = read(cls, values, "the fault")
        except Mismatch as error:
            raise UsageError(str(error)) from None
        if fault.kind not in KINDS:
            raise UsageError(
                f"unknown fault '{fault.kind}'; known: {', '.join(KINDS)}{nearest(str(fault.kind), KINDS)}"
            )
        return fault


class Faults:
    """The frame and line faults in force. `n_injected` counts what really happened, by kind."""

    def __init__(self, seed: int = 0) -> None:
        self._active: list[InjectedFault] = []
        self._random = random.Random(seed)
        self.n_injected: dict[str, int] = {}

    def add(self, fault: InjectedFault, now_ns: int) -> None:
        """A fault from now on. now_ns: of the emulator's clock."""
        if fault.duration_ms is not None:
            fault.end_ns = now_ns + int(fault.duration_ms * 1e6)
        self._active.append(fault)

    def clear(self) -> None:
        """Ends all of them."""
        self._active.clear()

    def take(
        self, kind: str, bus: str, now_ns: int, servo: EmulatedServo | None = None
    ) -> InjectedFault | None:
        """The first fault of this kind that hits now; its count goes down."""
        if not self._active:
            return None
        self._active = [f for f in self._active if now_ns < f.end_ns and f.count != 0]
        for fault in self._active:
            if fault.kind != kind or not self._aims(fault, bus, servo):
                continue
            if fault.probability < 1 and self._random.random() >= fault.probability:
                continue
            if fault.count is not None:
                fault.count -= 1
            self.n_injected[kind] = self.n_injected.get(kind, 0) + 1
            return fault
        return None

    @staticmethod
    def _aims(fault: InjectedFault, bus: str, servo: EmulatedServo | None) -> bool:
        if fault.target is None or fault.target == bus:
            return True
        return servo is not None and fault.target in (servo.id, servo.name)

    def damage(
        self, frame: bytes, servo: EmulatedServo, bus: str, now_ns: int, protocol: ModuleType
    ) -> tuple[bytes, int]:
        """What becomes of an answer, and by how much it is late (ns)."""
        if not self._active:
            return frame, 0
        late_ns = 0
        if self.take("drop", bus, now_ns, servo):
            return b"", 0
        if self.take("wrong_id", bus, now_ns, servo):
            at = 2 if protocol.HEADER == b"\xff\xff" else 4
            parts = protocol.Decoder().feed(frame)
            if parts:
                frame = protocol.status((frame[at] + 1) % 250, parts[0].error, parts[0].data)
        if self.take("corrupt", bus, now_ns, servo):
            at = self._random.randrange(len(frame))
            frame = frame[:at] + bytes((frame[at] ^ 1 << self._random.randrange(8),)) + frame[at + 1 :]
        if self.take("truncate", bus, now_ns, servo):
            frame = frame[: self._random.randrange(1, len(frame))]
        if self.take("noise", bus, now_ns, servo):
            frame = bytes(self._random.randrange(256) for _ in range(self._random.randrange(1, 12))) + frame
        if self.take("duplicate", bus, now_ns, servo):
            frame += frame
        if delay := self.take("delay", bus, now_ns, servo):
            late_ns = int(delay.amount * 1e6)
        return frame, late_ns
