"""Emergency stops of a run: when each began, and how it ended. They are never forgotten: what was cleared a moment
later is in the summary all the same, and the run's exit code is 1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

NS = 1e9


@dataclass
class Emergency:
    """One of them.

    at_s: since the log began. ended: `latched` (it still was at the end), `cleared`, `released`. after_s: its length.
    """

    at_s: float
    ended: str = "latched"
    after_s: float | None = None

    def words(self) -> str:
        """When it was, what the arm did, and how it ended."""
        if self.after_s is None:
            return f"at {self.at_s:.1f} s: the arm was frozen, and the stop was latched until the end"
        return f"at {self.at_s:.1f} s: the arm was frozen, and {ENDS[self.ended]} {self.after_s:.1f} s later"


ENDS = {"cleared": "the stop was cleared", "released": "the arm was released"}


class Emergencies:
    """Hears modes and events, in the order they come by; both tell of a stop, and either may be lost.

    began_ns: when the log began, monotonic.
    """

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._all: list[Emergency] = []
        self._is_open = False
        self._seen_ns = 0
        self._mode = ""

    def see_mode(self, mode: str, now_ns: int) -> None:
        """The loop's mode in a state that was heard. now_ns: monotonic, when."""
        before, self._mode = self._mode, mode
        if mode != "emergency":
            self._end("cleared", now_ns)
        elif before != mode:  # an arm that was released stays in this mode: no new stop
            self.begin(now_ns)

    def see_event(self, code: str, now_ns: int) -> None:
        """The code of an event that was heard; it comes even where states are lost."""
        if code == "mode_emergency":
            self.begin(now_ns)
        elif code == "released":
            self._end("released", now_ns)

    def begin(self, now_ns: int) -> None:
        """An emergency stop, unless that of this moment is known."""
        if not self._is_open and now_ns > self._seen_ns:
            self._is_open, self._seen_ns = True, now_ns
            self._all.append(Emergency(self._seconds(now_ns)))

    def surely(self, now_ns: int) -> None:
        """There was one, though the robot may not have been able to tell."""
        if not self._all:
            self.begin(now_ns)

    def _end(self, how: str, now_ns: int) -> None:
        """What was true before the newest change is old news: states and events come by different ways."""
        if self._is_open and now_ns > self._seen_ns:
            self._is_open, self._seen_ns = False, now_ns
            last = self._all[-1]
            last.ended, last.after_s = how, round(self._seconds(now_ns) - last.at_s, 1)

    def _seconds(self, now_ns: int) -> float:
        return round((now_ns - self._began_ns) / NS, 1)

    def told(self) -> list[dict[str, Any]]:
        """Every stop, for the summary."""
        return [{**asdict(stop), "words": stop.words()} for stop in self._all]
