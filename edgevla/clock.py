"""Time. Monotonic nanoseconds everywhere; deadlines are absolute, so lateness never accumulates.

Nodes take a `Clock` and never call `time` themselves: tests drive them on a `VirtualClock` in lock-step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        ...

    def sleep_until(self, deadline_ns: int) -> None:
        """Returns at once when the deadline has passed."""
        ...


class MonotonicClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        remaining = deadline_ns - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining / NS_PER_S)


class VirtualClock:
    """A clock that a test moves. `sleep_until` jumps; nothing else makes time pass."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)

    def advance(self, ns: int) -> None:
        """ns: how much later it is now."""
        self._now_ns += ns


@dataclass(frozen=True)
class Tick:
    """One turn of a control loop. `late_ns` is actual minus intended start, never negative."""

    number: int
    deadline_ns: int
    late_ns: int


def ticker(clock: Clock, period_ns: int) -> Iterator[Tick]:
    """Yields ticks on the grid `start + k * period_ns` for ever.

    A turn that overran its period is not made up for: the numbers of the missed ticks are skipped, so
    `number` stays a measure of time (tick n is due at start + n * period).
    """
    start = clock.now_ns()
    number = 0
    while True:
        deadline = start + number * period_ns
        clock.sleep_until(deadline)
        now = clock.now_ns()
        yield Tick(number, deadline, max(0, now - deadline))
        number = max(number + 1, (clock.now_ns() - start) // period_ns)
