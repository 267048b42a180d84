"""What a policy server tells of its robots, asked twice a second by a thread of its own; no robot is asked anything."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import zmq

from edgevla.clock import NS_PER_S
from edgevla.descriptions import AboutRobots, AskedAbout
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.serve.line import ServerLine
from edgevla.serve.transport import Address
from edgevla.session import new_session

ASK_S = 0.5
PATIENCE_NS = 4 * NS_PER_S
"""Keys take several ways there and back; a server that has gone is noticed earlier, by the beats."""

NOBODY_YET = "; does `edgevla serve` run there, at this port?"


@dataclass(frozen=True)
class Report:
    """about: None before the first answer, told_ns: when it came. why_not: why there is no newer one, the end of a
    sentence that begins with the server; empty while it answers."""

    about: AboutRobots | None = None
    told_ns: int = 0
    why_not: str = ""


class Lookout:
    """server: with its keys (`authority.introduced`). report: the newest; it may be read by any thread."""

    def __init__(self, server: Address) -> None:
        self.server = server
        self.report = Report()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lookout {server}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join(timeout=3)

    def _run(self) -> None:
        ctx = zmq.Context()
        try:
            while not self._is_closing.is_set():
                line = ServerLine(ctx, self.server, new_session(), "monitor", self._is_closing)
                try:
                    self._ask_by(line)
                    why = line.barred or f"does not answer{line.hint or self._doubt}"
                except UsageError as error:
                    why = f"tells nothing of its robots; is it an older EdgeVLA? ({error})"
                except EdgeVLAError as error:
                    why = f"tells what is no list of robots: {error}"
                finally:
                    line.close()
                self.report = Report(self.report.about, self.report.told_ns, why)
                self._is_closing.wait(ASK_S)
        finally:
            ctx.destroy(linger=0)

    @property
    def _doubt(self) -> str:
        """Who has never answered may be somebody else."""
        return NOBODY_YET if self.report.about is None else ""

    def _ask_by(self, line: ServerLine) -> None:
        """Until the server does not answer any more, or nobody looks."""
        if not line.reach(time.monotonic_ns() + PATIENCE_NS):
            return
        while True:
            about = line.describe(AboutRobots, AskedAbout(robots=True), time.monotonic_ns() + PATIENCE_NS)
            if about is None:
                return
            self.report = Report(about, time.monotonic_ns())
            if self._is_closing.wait(ASK_S):
                return
