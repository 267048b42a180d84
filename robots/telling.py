"""What the loop says to people: each thing once, then at most every five seconds with the number of the others."""

from __future__ import annotations

from collections import Counter

from edgevla.clock import NS_PER_S, Clock
from edgevla.messages import Severity

from .links import Links

REPEAT_NS, NEVER_NS = 5 * NS_PER_S, 1 << 62


class Teller:
    """counters: the loop's; what was found is counted there as `finding_<code>`, told or not."""

    def __init__(self, links: Links, clock: Clock, counters: Counter[str]) -> None:
        self._links, self._clock, self._counters = links, clock, counters
        self._next_ns: dict[str, int] = {}
        self._remarks: list[tuple[str, str]] = []

    def once(self, severity: Severity, code: str, text: str) -> None:
        """What stops a run is told once; the rest now and then."""
        now = self._clock.now_ns()
        self._counters[f"finding_{code}"] += 1
        if now >= self._next_ns.get(code, 0):
            self._next_ns[code] = NEVER_NS if severity == "stop" else now + REPEAT_NS
            self._links.event(severity, code, text, count=self._counters[f"finding_{code}"])

    def again(self, code: str) -> None:
        """It is over: the next one is news."""
        self._next_ns.pop(code, None)

    def forget(self) -> None:
        """A new start: everything is news."""
        self._next_ns.clear()

    def remark(self, code: str, text: str) -> None:
        """To be told with the first start, when there is somebody to hear."""
        self._remarks.append((code, text))

    def remarks(self) -> None:
        while self._remarks:
            self._links.event("info", *self._remarks.pop(0))
