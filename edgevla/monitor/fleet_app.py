"""The screen that shows all deployments; choosing one of this machine ends it. It asks nothing of a robot: a list whose
lines come and go is no place for keys that act on one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from textual import events
from textual.app import ComposeResult

from edgevla.monitor.base import INTERRUPTED, KeyboardApp, or_leave
from edgevla.monitor.elsewhere import Far
from edgevla.monitor.fleet import Deployed, Fleet
from edgevla.monitor.keys import EMERGENCY, Intent, Keyboard
from edgevla.monitor.layout import Box
from edgevla.monitor.panels.fleet import NOTHING_ACTS, fleet, fleet_keys
from edgevla.monitor.rows import Panel

REFRESH_S = 0.25
NOTICE_NS = 6_000_000_000
STEERS_NOTHING = f"{NOTHING_ACTS}: open its cockpit with Enter, and press e there"
IS_FAR = "only its own machine {asks} it: ssh -t HOST edgevla monitor{or_else}"
"""Of a robot that its policy server tells of: which machine that is, a server without keys does not know."""


class FleetApp(KeyboardApp):
    """chosen: the run directory of the deployment that is to be opened; None: the monitor was left.

    opened: the deployment that was open before, where the choice begins. notice: to be said at once.
    """

    def __init__(self, seen: Fleet, opened: Path | None = None, notice: str = "") -> None:
        super().__init__()
        self.fleet = seen
        self.chosen: Path | None = None
        self._at: object = opened
        self._commands: dict[str, Callable[[], object]] = {
            "enter": self._open,
            "q": lambda: self.leave(""),
            "ctrl+c": lambda: self.leave("left; no robot was asked anything", INTERRUPTED),
            "ctrl+l": lambda: self.screen.refresh(),
            **{str(n): partial(self._open, n - 1) for n in range(1, 10)},
        }
        self._views: dict[str, Callable[[], object]] = {
            "up": partial(self._move, -1),
            "down": partial(self._move, 1),
        }
        self.keyboard = Keyboard(
            self._commands, field_key="", views=self._views, stray_words="pasted text is obeyed by nobody"
        )
        self._panels = {name: Panel(id=name) for name in ("fleet", "keys")}
        self._notice, self._notice_ns = notice, time.monotonic_ns()

    def compose(self) -> ComposeResult:
        yield from self._panels.values()

    def on_mount(self) -> None:
        self.call_after_refresh(self.refresh_now)
        self.set_interval(REFRESH_S, self.refresh_now)
        self.begin()

    def on_unmount(self) -> None:
        self.fleet.close()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.refresh_now)

    # -- what is shown -----------------------------------------------------------------------------------------

    @or_leave
    def refresh_now(self) -> None:
        """Takes in what arrived and draws it."""
        row = self._index
        self.fleet.look(time.monotonic_ns())
        self._stay(row)
        self.graphics.look()
        if self.graphics.keeps_up:
            self._show()

    def _stay(self, row: int) -> None:
        """Where the chosen line has gone, what stands in its place is chosen: its robot, if that runs again."""
        lines = self.fleet.all_lines
        if lines and all(line.key != self._at for line in lines):
            self._at = lines[min(row, len(lines) - 1)].key

    def _show(self) -> None:
        now, (width, height) = time.monotonic_ns(), self.size
        self._panels["fleet"].stand(Box(0, 0, width, max(0, height - 1)))
        self._panels["keys"].stand(Box(0, height - 1, width, 1))
        self._panels["fleet"].show(fleet(self.fleet, self._index, width, height - 1, now))
        notice = self._notice if now - self._notice_ns < NOTICE_NS else ""
        self._panels["keys"].show([fleet_keys(notice, width)])

    @property
    def _index(self) -> int:
        """Of the chosen line; of the first one where none was chosen yet."""
        return next((i for i, line in enumerate(self.fleet.all_lines) if line.key == self._at), 0)

    # -- keys ----------------------------------------------------------------------------------------------------

    @or_leave
    def do(self, acts: Iterable[Intent]) -> None:
        for act in acts:
            if act.kind == "emergency" and self.chosen is not None:
                self.unheard.append(events.Key(EMERGENCY[0], None))  # the cockpit's that opens
            elif act.kind == "emergency":
                line = self._chosen_line
                self._say(
                    STEERS_NOTHING
                    if not isinstance(line, Far)
                    else IS_FAR.format(asks="stops", or_else=", or its power switch")
                )
            elif act.kind == "notice":
                self._say(act.text)
            else:
                {**self._commands, **self._views}[act.text]()

    def _move(self, by: int) -> None:
        lines = self.fleet.all_lines
        if lines:
            self._at = lines[min(len(lines) - 1, max(0, self._index + by))].key
            self._show()

    @property
    def _chosen_line(self) -> Deployed | Far | None:
        """None where there is no line at all."""
        lines = self.fleet.all_lines
        return lines[self._index] if lines else None

    def _open(self, number: int | None = None) -> None:
        lines = self.fleet.all_lines
        index = self._index if number is None else number
        if index >= len(lines):
            return
        line = lines[index]
        self._at = line.key
        if isinstance(line, Far):
            self._say(IS_FAR.format(asks="steers", or_else=""))
            return
        if line.listener is None:
            self._say(f"{line.model.robot} has ended: there is nothing to open")
            return
        self.chosen = line.folder
        self.leave("")

    def _say(self, notice: str) -> None:
        self._notice, self._notice_ns = notice, time.monotonic_ns()
        self._show()
