"""How the arm comes to rest: a few stages, one after another, each with its time.

    rest     move slowly to the profile's rest pose, then release          (a stop that was asked for)
    fault    hold where it is, sink at reduced torque, then release        (a fault, or nobody is left to ask)
    release  torque off at once                                            (second emergency stop)

The times are the profile's one escalation table, the same that the guardian uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from .profile import Escalation

Kind = Literal["rest", "fault", "release"]
REST_LIMIT_MS = 15_000
"""A rest pose that is not reached in this time is given up: the arm parks where it is."""


class Torque(Protocol):
    """What an ending does to the robot."""

    def set_torque(self, on: bool) -> Sequence[str]: ...

    def set_torque_limit(self, share: float) -> None: ...


class Ending:
    """Walks the stages. `goal` says what to send; torque is switched on the way."""

    def __init__(self, kind: Kind, rule: Escalation, now_ns: int, rest: np.ndarray) -> None:
        self.kind: Kind = kind
        self._rule, self._rest = rule, rest
        self._stage: Literal["rest", "hold", "park", "released"] = {
            "rest": "rest",
            "fault": "hold",
            "release": "released",
        }[kind]  # type: ignore[assignment]
        self._began_ns = now_ns
        self.is_done = False
        self.unreached: Sequence[str] = ()

    def step(self, torque: Torque, last_goal: np.ndarray, now_ns: int) -> np.ndarray | None:
        """The goal wanted now (None: as before). When the last stage is over, `is_done`."""
        spent_ms = (now_ns - self._began_ns) / 1e6
        if self._stage == "rest":
            if spent_ms > REST_LIMIT_MS:
                self._enter("hold", now_ns)
                return None
            if np.allclose(last_goal, self._rest, atol=1e-3):
                self._enter("released", now_ns)
            return self._rest
        if self._stage == "hold" and spent_ms >= self._rule.hold_ms:
            torque.set_torque_limit(self._rule.park_torque)
            self._enter("park", now_ns)
        elif self._stage == "park" and spent_ms >= self._rule.park_ms:
            self._enter("released", now_ns)
        if self._stage == "released" and not self.is_done:
            if self._rule.release or self.kind == "release":
                self.unreached = torque.set_torque(False)
            elif self.kind == "rest":
                torque.set_torque_limit(self._rule.park_torque)
            self.is_done = True
        return None

    def _enter(self, stage: Literal["hold", "park", "released"], now_ns: int) -> None:
        self._stage, self._began_ns = stage, now_ns
