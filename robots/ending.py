"""How the arm comes to rest: a few stages, one after another, each with its time, so that an end always ends.

    rest     move slowly to the rest pose, then torque off                              (a stop that was asked for)
    fault    hold where it is, sink with less and less torque, then torque off          (a fault, or nobody is left)
    release  torque off at once                                                         (second emergency stop)

A rest pose that is not reached becomes a fault's end: an arm is let go only where it lies. The times are the profile's
one escalation table, the same that the guardian uses; a profile that does not release ends parked at its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from .lowering import Lowering
from .profile import Escalation

Kind = Literal["rest", "fault", "release"]
Stage = Literal["rest", "settle", "hold", "park", "off", "over"]
REST_LIMIT_MS = 15_000
"""A rest pose that is not reached in this time is given up: the arm is lowered where it is."""
SETTLE_MS = 1000
"""Time for the arm itself to arrive, once its goals have."""
FIRST: dict[Kind, Stage] = {"rest": "rest", "fault": "hold", "release": "off"}


class TorqueLike(Protocol):
    """What an ending does to the arm, and reads of it."""

    def switch_off(self) -> Sequence[str]:
        """Motors for which it could not be confirmed."""
        ...

    def limit_torque(self, share: float) -> None: ...

    def is_at_goal(self) -> bool:
        """Whether every joint is where it was told to be, roughly."""
        ...

    def ticks(self) -> Mapping[str, int]:
        """Raw positions by motor name, of those that answered lately."""
        ...


class Ending:
    """Walks the stages. `step` says what to send; torque is changed on the way.

    rest: float32 (D,) pose for the kind `rest`, within what the joints can reach. unreached: motors whose torque could
    not be confirmed off, once `stage` is `over`.
    """

    def __init__(self, kind: Kind, rule: Escalation, now_ns: int, rest: np.ndarray) -> None:
        self.kind: Kind = kind
        self.stage: Stage = FIRST[kind]
        self.unreached: Sequence[str] = ()
        self._rule, self._rest, self._began_ns = rule, rest, now_ns
        self._lowering: Lowering | None = None

    @property
    def is_over(self) -> bool:
        return self.stage == "over"

    @property
    def is_reduced(self) -> bool:
        """Whether the arm sinks by now: it is not where its goals are, and need not be."""
        return self.stage in ("park", "off", "over")

    @property
    def releases(self) -> bool:
        """Whether torque is off at the end."""
        return self._rule.release or self.kind == "release"

    def step(self, torque: TorqueLike, last_goal: np.ndarray, now_ns: int) -> np.ndarray | None:
        """The goal wanted now; None: as before."""
        spent_ms = (now_ns - self._began_ns) / 1e6
        if self.stage == "rest":
            return self._to_rest(last_goal, spent_ms, now_ns)
        if self.stage == "settle":
            self._settle(torque, spent_ms, now_ns)
        elif self.stage == "hold" and spent_ms >= self._rule.hold_ms:
            torque.limit_torque(self._rule.park_torque)
            self._lowering = Lowering(self._rule, now_ns)
            self._enter("park", now_ns)
        elif self.stage == "park":
            self._park(torque, spent_ms, now_ns)
        if self.stage == "off":
            self._finish(torque)
        return None

    def _to_rest(self, last_goal: np.ndarray, spent_ms: float, now_ns: int) -> np.ndarray | None:
        if spent_ms > REST_LIMIT_MS:
            self._enter("hold", now_ns)
            return None
        if np.allclose(last_goal, self._rest, atol=1e-3):
            self._enter("settle", now_ns)
        return self._rest

    def _settle(self, torque: TorqueLike, spent_ms: float, now_ns: int) -> None:
        if torque.is_at_goal():
            self._enter("off", now_ns)
        elif spent_ms > SETTLE_MS:
            self._enter("hold", now_ns)

    def _park(self, torque: TorqueLike, spent_ms: float, now_ns: int) -> None:
        if not self.releases:
            if spent_ms >= self._rule.park_ms:
                self._enter("off", now_ns)
            return
        assert self._lowering is not None
        share = self._lowering.step(now_ns, torque.ticks())
        if share is not None:
            torque.limit_torque(share)
        if self._lowering.is_over:
            self._enter("off", now_ns)

    def _finish(self, torque: TorqueLike) -> None:
        if self.releases:
            self.unreached = torque.switch_off()
        else:
            torque.limit_torque(self._rule.park_torque)
        self.stage = "over"

    def _enter(self, stage: Stage, now_ns: int) -> None:
        self.stage, self._began_ns = stage, now_ns
