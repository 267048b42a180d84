"""Everything between the control loop and the other processes, as the loop sees it; and the bytes of its lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # the guardian imports this: no numpy
    import numpy as np

    from edgevla.messages import Chunk, Infer, Message, MessageBody, Severity

Driver = Literal["policy", "leader"]
RUNNING, STOPPING, PARKED, RELEASED = b"r", b"s", b"p", b"x"
"""Bytes of the lease. STOPPING: torque is on or being switched, servo by servo. PARKED: torque is on, reduced, and is to
be left so. RELEASED: torque is off."""


class Links(Protocol):
    """Everything between the loop and the other processes. Nothing here blocks."""

    def requests(self) -> Sequence[Any]:
        """Commands since the last call: `action`, `arguments` (`edgevla.arguments`), `answer(is_accepted, reason)`."""
        ...

    def signals(self) -> Sequence[str]:
        """`emergency_stop` from the guardian; `guardian_gone`, `supervisor_gone`, `terminated`."""
        ...

    def chunks(self) -> Sequence[Message[Chunk]]:
        """The chunks that came since the last call."""
        ...

    def ask(self, driver: Driver, request: Infer, payloads: Sequence[np.ndarray], observed_ns: int) -> bool:
        """Asks for the chunk of the grid moment at `observed_ns`; whether the driver is there to hear."""
        ...

    def publish(self, body: MessageBody, observed_ns: int | None = None) -> None:
        """Tells everybody who listens. observed_ns: monotonic, when it was so."""
        ...

    def event(self, severity: Severity, code: str, text: str, **fields: Any) -> None:
        """Tells people: one sentence, with a code for programs."""
        ...

    def lease(self, byte: bytes) -> None:
        """Tells the guardian that the loop lives."""
        ...

    def counters(self) -> dict[str, int]:
        """What the sockets counted."""
        ...
