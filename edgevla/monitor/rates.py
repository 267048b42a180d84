"""Rates over the last seconds, from counters and ticks. Pure.

A rate means something only over one grid and one life of a process: a new grid (pause and resume, home) or a counter
that fell begins anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgevla.messages import Servo

WINDOW_TICKS = 600
TROUBLE_NS = 5_000_000_000
"""Trouble on the line is counted over this time."""
NOTEWORTHY = 2.0
"""Per second, of one servo: a loop of 30 to 200 Hz that reads again more often than this has a line or a servo to look
after; less is what a cable does now and then."""
MUTE_SHARE = 0.5
"""A servo that missed this share of the ticks of the last half second does not answer."""


@dataclass(frozen=True)
class TickTiming:
    """The time of one tick and what its goal is from; fields as in `state`. goal: little-endian float32."""

    tick: int
    t0_ns: int
    deadline_ns: int
    late_ns: int
    chunk_seq: int | None = None
    action_index: float = 0.0
    goal: bytes = b""


@dataclass(frozen=True)
class Spread:
    p50: float
    p99: float
    worst: float


def percentiles(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    p50, p99 = np.percentile(np.fromiter(values, np.float64, len(values)), (50, 99))
    return Spread(float(p50), float(p99), max(values))


class Clockwork:
    """Rate and lateness of the control loop over the last ticks of one grid."""

    def __init__(self) -> None:
        self.late_ms: deque[float] = deque(maxlen=WINDOW_TICKS)
        self._ticks: deque[TickTiming] = deque(maxlen=WINDOW_TICKS)

    def take(self, tick: TickTiming) -> None:
        self.late_ms.append(tick.late_ns / 1e6)
        before = self._ticks[-1] if self._ticks else tick
        if tick.t0_ns != before.t0_ns or tick.tick < before.tick:
            self._ticks.clear()
        self._ticks.append(tick)

    @property
    def hz(self) -> float | None:
        """None before there were two ticks of a grid."""
        if len(self._ticks) < 2:
            return None
        first, last = self._ticks[0], self._ticks[-1]
        spent_ns = last.deadline_ns - first.deadline_ns
        return (last.tick - first.tick) * 1e9 / spent_ns if spent_ns > 0 else None


@dataclass(frozen=True)
class Trouble:
    """Per second: reads that were tried again, answers that were damaged, values that came too late."""

    retries: float = 0.0
    corrupt: float = 0.0
    stale: float = 0.0

    @property
    def is_noteworthy(self) -> bool:
        return max(self.retries, self.corrupt, self.stale) > NOTEWORTHY


@dataclass(frozen=True)
class _Counted:
    at_ns: int
    values: tuple[int, ...]


Key = tuple[str, int]
"""Bus and id."""


class TroubleRates:
    """Of every servo, without what its whole line has: one sync read that is lost costs all servos one retry each."""

    def __init__(self) -> None:
        self._counted: dict[Key, deque[_Counted]] = {}

    def take(self, servos: Iterable[Servo], at_ns: int) -> None:
        for servo in servos:
            history = self._counted.setdefault((servo.bus, servo.id), deque())
            now = _Counted(at_ns, (servo.n_retries, servo.n_corrupt, servo.n_stale))
            if history and any(new < old for new, old in zip(now.values, history[-1].values, strict=True)):
                history.clear()
            history.append(now)
            while at_ns - history[0].at_ns > TROUBLE_NS:
                history.popleft()

    def of(self, key: Key) -> Trouble:
        """The servo's own: beyond what all servos of its line have."""
        line = self.shared()[key[0]]
        own = self._rates(key)
        return Trouble(own.retries - line.retries, own.corrupt - line.corrupt, own.stale - line.stale)

    def shared(self) -> dict[str, Trouble]:
        """Per bus."""
        every: dict[str, list[Trouble]] = {}
        for key in self._counted:
            every.setdefault(key[0], []).append(self._rates(key))
        return {
            bus: Trouble(
                min(t.retries for t in rates), min(t.corrupt for t in rates), min(t.stale for t in rates)
            )
            for bus, rates in every.items()
        }

    def is_mute(self, key: Key, loop_hz: float) -> bool:
        """Whether the servo gave hardly any value between the last two healths."""
        history = self._counted.get(key)
        if history is None or len(history) < 2:
            return False
        before, now = history[-2], history[-1]
        n_ticks = loop_hz * (now.at_ns - before.at_ns) / 1e9
        return now.values[2] - before.values[2] > max(1.0, MUTE_SHARE * n_ticks)

    def _rates(self, key: Key) -> Trouble:
        first, last = self._counted[key][0], self._counted[key][-1]
        seconds = max(1e-9, (last.at_ns - first.at_ns) / 1e9)
        retries, corrupt, stale = (new - old for new, old in zip(last.values, first.values, strict=True))
        return Trouble(retries / seconds, corrupt / seconds, stale / seconds)
