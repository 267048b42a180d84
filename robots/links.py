"""Everything between the control loop and the other processes, as the loop sees it; and the bytes of its lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the guardian imports this: no numpy
    import numpy as np

    from edgevla.codec import Message

RUNNING, STOPPING, PARKED, RELEASED = b"r", b"s", b"p", b"x"
"""Bytes of the lease. STOPPING: torque is on or being switched, servo by servo. PARKED: torque is on, reduced, and is to
be left so. RELEASED: torque is off."""


class Links(Protocol):
    """Everything between the loop and the other processes. Nothing here blocks."""

    def requests(self) -> Sequence[Any]:
        """Commands since the last call: `action`, `arguments`, `answer(is_accepted, reason)`."""
        ...

    def signals(self) -> Sequence[str]:
        """`emergency_stop` from the guardian; `guardian_gone`, `supervisor_gone`, `terminated`."""
        ...

    def chunks(self) -> Sequence[Message]: ...

    def ask(self, fields: dict[str, Any], payloads: Sequence[np.ndarray], observed_ns: int) -> bool:
        """Sends `infer` for the grid moment at `observed_ns`; whether somebody is there to get it."""
        ...

    def publish(self, type: str, fields: dict[str, Any], observed_ns: int | None = None) -> None: ...

    def event(self, severity: str, code: str, text: str, **fields: Any) -> None: ...

    def lease(self, byte: bytes) -> None: ...

    def counters(self) -> dict[str, int]:
        """What the sockets counted."""
        ...
