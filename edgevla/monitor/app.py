"""The terminal monitor: sockets live in a link, this app receives what it brought and shows it ten times a second.

Keys act on the robot at once; the answer (accepted, or why not) appears among the events.
"""

from __future__ import annotations

import time
from typing import ClassVar, Protocol

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Footer, Input

from edgevla.arguments import Arguments, SetTask
from edgevla.messages import Action
from edgevla.monitor import widgets
from edgevla.monitor.model import Event, MonitorModel, Received

REFRESH_S = 0.1


class Link(Protocol):
    """What connects a monitor with a deployment; tests put a scripted one here."""

    def poll(self) -> list[Received]:
        """What came since the last call, oldest first. Never blocks."""
        ...

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
        """Sends a command; never blocks. Its answer comes back as a `Note` by `poll`."""
        ...

    def close(self) -> None: ...


class MonitorApp(App[None]):
    """Watches and steers one deployment."""

    CSS_PATH = "monitor.tcss"
    TITLE = "EdgeVLA"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # keys belong to the robot until someone asks to type a task
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "pause/resume"),
        Binding("h", "steer('home')", "home"),
        Binding("t", "task", "task"),
        Binding("s", "steer('stop')", "stop"),
        Binding("e", "steer('emergency_stop')", "EMERGENCY"),
        Binding(
            "f12", "steer('emergency_stop')", "EMERGENCY", priority=True, show=False
        ),  # also while typing
        Binding("c", "steer('clear_stop')", "clear"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link
        self.model = MonitorModel()

    def compose(self) -> ComposeResult:
        yield widgets.Header(id="header")
        with Horizontal(id="upper"):
            yield widgets.Joints(id="joints")
            yield widgets.Cameras(id="cameras")
        with Horizontal(id="middle"):
            yield widgets.Timing(id="timing")
            yield widgets.Servos(id="servos")
        yield widgets.Events(id="events")
        yield Input(placeholder="task for the policy, Enter to send, Escape to leave", id="task")
        yield Footer()

    def on_mount(self) -> None:
        self.set_interval(REFRESH_S, self.refresh_now)

    def on_unmount(self) -> None:
        self.link.close()

    def refresh_now(self) -> None:
        """Takes in what arrived and redraws; the newest of everything wins."""
        now = time.monotonic_ns()
        for received in self.link.poll():
            self.model.apply(received, now)
        if not self.query("#header"):
            return  # a last timer while the screen is being taken down
        self.query_one(widgets.Header).show(self.model)
        self.query_one(widgets.Joints).show(self.model)
        self.query_one(widgets.Cameras).show(self.model)
        self.query_one(widgets.Timing).show(self.model)
        self.query_one(widgets.Servos).show(self.model)
        self.query_one(widgets.Events).show(self.model, now)

    # -- keys ----------------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self.action_steer("resume" if self.model.mode in ("paused", "holding") else "pause")

    def action_steer(self, action: Action) -> None:
        self.model.events.append(Event("info", "monitor", f"sent: {action.replace('_', ' ')}"))
        self.link.command(action)

    def action_task(self) -> None:
        field = self.query_one("#task", Input)
        field.add_class("open")
        field.value = self.model.task
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        task = event.value.strip()
        if task:
            self.link.command("set_task", SetTask(task))
            self.model.events.append(Event("info", "monitor", f"sent: task “{task}”"))
        self._close_task()

    def key_escape(self) -> None:
        self._close_task()

    def _close_task(self) -> None:
        self.query_one("#task", Input).remove_class("open")
        self.set_focus(None)
