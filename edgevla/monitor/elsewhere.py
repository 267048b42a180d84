"""Robots on other machines, as the policy servers that infer for them tell of them: what is known of each. No screen.

A server knows what a robot asks and what it was answered. What its arm does, only its own machine can say; so a line is
green only while requests come and are answered, and nothing here acts on a robot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.descriptions import ServedRobot
from edgevla.monitor.standing import ALARM, Standing, duration
from edgevla.serve.lookout import Lookout, Report
from edgevla.serve.transport import Address

STALE_NS = 3 * NS_PER_S // 2
"""A server is asked twice a second."""
QUIET_NS = 2 * NS_PER_S
"""A robot whose chunks are shorter may ask so seldom."""
MOST_LEFT = 20
ONLY_THERE = "what it does, its own machine's monitor shows"


@dataclass
class Far:
    """One robot. report: the newest of its server. told: its part of the newest report that named it, and when."""

    server: Address
    told: ServedRobot
    told_ns: int
    report: Report
    has_left: bool = False

    @property
    def key(self) -> object:
        return str(self.server), self.told.id

    @property
    def name(self) -> str:
        """Its machine's, where that has one: most robots of a lab are of one kind."""
        return self.told.machine or self.told.robot

    def since_ns(self, ms: float, now_ns: int) -> int:
        """ms: so long before the report."""
        return now_ns - self.told_ns + round(ms * NS_PER_MS)

    def asked_ns(self, now_ns: int) -> int | None:
        """How long ago it asked last, as far as is known."""
        return None if self.told.asked_ms is None else self.since_ns(self.told.asked_ms, now_ns)

    def standing(self, now_ns: int) -> Standing:
        """The most grave first; what is not of now is never green."""
        asked_ns = self.asked_ns(now_ns)
        last = "it had not asked anything" if asked_ns is None else f"it asked last {duration(asked_ns)} ago"
        if self.has_left:
            return Standing("LEFT", "bold", f"it has ended, or was paused for long; {last}")
        if lost := lost_words(self.report, now_ns):
            return Standing("LOST", ALARM, f"its policy server {lost}; {last}")
        if not self.told.is_connected:
            return Standing("GONE", "bold yellow", f"its connection has ended; {last}")
        if self.report.about is not None and self.report.about.is_draining:
            return Standing("DRAINING", "bold yellow", f"its policy server is going down; {last}")
        return self._served(asked_ns, last)

    def _served(self, asked_ns: int | None, last: str) -> Standing:
        told = self.told
        patience_ns = max(QUIET_NS, round(told.chunk_ms * NS_PER_MS))
        if told.outcome == "expired":
            return Standing("LATE", "bold yellow", f"its newest request was not answered in time; {last}")
        if told.outcome not in ("", "answered"):
            return Standing("REFUSED", "bold yellow", told.words)
        if asked_ns is None:
            return Standing("JOINED", "bold", f"{last}; {ONLY_THERE}")
        if asked_ns <= patience_ns:
            return Standing("SERVED", "bold green", is_live=True)
        if told.outcome == "":
            return Standing("WAITING", "bold yellow", f"its request waits; {last}")
        return Standing("QUIET", "bold yellow", f"{last}: paused, held or stopped; {ONLY_THERE}")


def lost_words(report: Report, now_ns: int) -> str:
    """Why a server's newest report is none of now; empty: it is."""
    if report.why_not:
        return report.why_not
    if report.about is None:
        return "has not answered yet"
    age_ns = now_ns - report.told_ns
    return f"has been silent for {duration(age_ns)}" if age_ns > STALE_NS else ""


@dataclass
class Elsewhere:
    """One policy server and its robots, in the order in which they came; one that has left stays for a while.

    server: with its keys; where it names a policy, only the robots of that one are shown.
    """

    server: Address
    lines: list[Far] = field(default_factory=list)
    _lookout: Lookout | None = None

    @property
    def report(self) -> Report:
        return Report() if self._lookout is None else self._lookout.report

    def look(self) -> None:
        """Takes in what the server told. The first look begins to ask it."""
        if self._lookout is None:
            self._lookout = Lookout(self.server)
        report = self._lookout.report
        found = (
            {} if report.about is None else {one.id: one for one in report.about.robots if self._shows(one)}
        )
        for line in self.lines:
            line.report = report
            told = found.pop(line.told.id, None)
            line.has_left = told is None and not report.why_not and report.about is not None
            if told is not None:
                line.told, line.told_ns = told, report.told_ns
        self.lines += [Far(self.server, told, report.told_ns, report) for told in found.values()]
        left = [line for line in self.lines if line.has_left]
        self.lines = [line for line in self.lines if not line.has_left or line in left[-MOST_LEFT:]]

    def _shows(self, robot: ServedRobot) -> bool:
        return self.server.policy in ("", robot.policy)

    def close(self) -> None:
        """Asks nothing more, until it looks again."""
        if self._lookout is not None:
            self._lookout.close()
            self._lookout = None
            self.lines.clear()
