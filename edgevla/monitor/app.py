"""The terminal monitor: a link brings what was said, panels show it, keys act on the robot at once.

Four times a second the news are taken in and drawn, what nobody can read so fast more seldom, and only what has changed.
All keys go through `Keyboard`, none through Textual's bindings: no widget can have the focus when it matters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Concatenate, ParamSpec, Protocol

from textual import events
from textual.app import App, ComposeResult
from textual.containers import Horizontal

from edgevla.arguments import Arguments, SetTask
from edgevla.messages import Action
from edgevla.monitor import panels
from edgevla.monitor.keys import LONE_NS, SETTLE_NS, Act, Keyboard
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.outside import Outside
from edgevla.monitor.pictures import Camera
from edgevla.monitor.rows import Panel, Row
from edgevla.monitor.standing import Standing
from edgevla.monitor.terminal import Terminal, TerminalClosed

REFRESH_S = 0.25
TURNS = {"timing": 3, "servos": 3, "camera": 2}
"""Drawn every so many refreshes; what is not here, at every one."""
PANELS = ("header", "joints", "timing", "servos", "events", "field", "keys")
INTERRUPTED = 130
SENT_BY: dict[str, Action] = {"h": "home", "s": "stop", "ctrl+r": "clear_stop"}
"""Keys whose command is always the same; the emergency's and the field's are `Keyboard`'s."""
STEPS = (
    "the arm moves to rest and is released; ctrl+c again: emergency stop",
    "emergency stop: the arm is frozen; ctrl+c again lets go",
    "the arm is let go",
)


class Link(Protocol):
    """What connects a monitor with a deployment; tests put a scripted one here.

    cameras: names of those that the deployment has. is_ours: whether the deployment started this monitor: it ends with
    it, and ctrl+c is meant for it.
    """

    robot: str
    bundle: str
    cameras: Sequence[str]
    is_ours: bool

    def poll(self, model: MonitorModel) -> None:
        """Tells the model what was said since the last call. Never blocks."""
        ...

    def look(self, before: Outside) -> Outside: ...

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
        """Sends a command; never blocks. Its answer comes by `poll`."""
        ...

    def interrupt(self) -> None:
        """Presses ctrl+c where the deployment was started."""
        ...

    def close(self) -> None: ...


P = ParamSpec("P")


def _or_leave(
    method: Callable[Concatenate[MonitorApp, P], None],
) -> Callable[Concatenate[MonitorApp, P], None]:
    """A mistake of ours ends the monitor in order: the terminal comes first, and the robot needs no monitor."""

    @wraps(method)
    def guarded(app: MonitorApp, *args: P.args, **options: P.kwargs) -> None:
        try:
            if not app.is_left:
                method(app, *args, **options)
        except Exception as error:
            app.failure = error
            app.leave(
                f"a mistake of the monitor itself ({type(error).__name__}: {error}); {app.how_it_stands()}", 1
            )

    return guarded


class MonitorApp(App[None]):
    """Watches and steers one deployment.

    reason: why the screen was left, to be said afterwards. failure: the exception that made it, a mistake of ours.
    """

    CSS_PATH = "monitor.tcss"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None

    def __init__(self, link: Link) -> None:
        super().__init__(driver_class=Terminal, ansi_color=True)
        self.link = link
        self.model = MonitorModel(link.robot, link.bundle, cameras=link.cameras)
        self._keys: dict[str, Callable[[], object]] = {
            "space": self._pause,
            "q": self._quit,
            "ctrl+c": self._interrupt,
            "ctrl+l": lambda: self.screen.refresh(),
            **{key: partial(self._steer, action) for key, action in SENT_BY.items()},
        }
        self.keyboard = Keyboard(self._keys)
        self.reason = ""
        self._panels = {name: Panel(id=name) for name in PANELS}
        self._cameras = [Camera(name) for name in self.model.cameras]
        self._turn, self._word = 0, ""
        self._n_interrupts = 0
        self.is_left = False
        self.failure: Exception | None = None
        self._asked_to_leave: tuple[str, int] | None = None
        self._loop_of_app: asyncio.AbstractEventLoop | None = None

    def compose(self) -> ComposeResult:
        yield self._panels["header"]
        with Horizontal(id="upper"):
            yield self._panels["joints"]
            yield Horizontal(*self._cameras, id="cameras")
        with Horizontal(id="middle"):
            yield self._panels["timing"]
            yield self._panels["servos"]
        yield self._panels["events"]
        yield self._panels["field"]
        yield self._panels["keys"]

    def on_mount(self) -> None:
        self._loop_of_app = asyncio.get_running_loop()
        self.call_after_refresh(self.refresh_now)
        self.set_interval(REFRESH_S, self.refresh_now)
        self._leave_as_asked()

    def on_unmount(self) -> None:
        self.link.close()

    # -- what is shown -----------------------------------------------------------------------------------------

    @_or_leave
    def refresh_now(self) -> None:
        """Takes in what arrived and draws what is due."""
        now = time.monotonic_ns()
        self.link.poll(self.model)
        if self._is_due("outside"):
            self.model.outside = self.link.look(self.model.outside)
        if not self.model.outside.is_supervisor_alive and self.link.is_ours:
            self.leave(
                "the deployment's supervisor has died; the arm is held, parked and released by itself", 1
            )
        self._show(now)
        self._turn += 1

    def _is_due(self, what: str, phase: int = 0) -> bool:
        return (self._turn + phase) % TURNS.get(what, 1) == 0

    def _show(self, now: int) -> None:
        model, standing = self.model, self.model.standing(now)
        if standing.word != self._word:  # then everything else is news, too
            self._turn, self._word = 0, standing.word
        self._draw("header", lambda w, h: panels.header(model, standing, w))
        self._draw("joints", lambda w, h: panels.joints(model, standing, h, now))
        self._draw("timing", lambda w, h: panels.timing(model, standing, w, now))
        self._draw("servos", lambda w, h: panels.servos(model, w, h, now))
        self._draw("events", lambda w, h: panels.events(model, standing, w, h, now))
        self._draw("keys", lambda w, h: [self._named_keys(standing, w)])
        if (line := self.keyboard.field) is not None:
            self._draw("field", lambda w, h: panels.field(line, model.task, w))
        for phase, camera in enumerate(self._cameras):
            if self._is_due("camera", phase):
                camera.show(*panels.picture(model, camera.camera, now))

    def _draw(self, name: str, rows: Callable[[int, int], Sequence[Row]]) -> None:
        if self._is_due(name):
            panel = self._panels[name]
            panel.show(rows(*panel.outer_size))

    def _named_keys(self, standing: Standing, width: int) -> Row:
        leaves = "stop and leave" if self.link.is_ours else "leave"
        is_typing = self.keyboard.field is not None
        return panels.keys(self.model, standing, width, is_typing=is_typing, leaves=leaves)

    def on_resize(self, event: events.Resize) -> None:
        self._turn = 0
        self.screen.set_class(event.size.width < 76, "narrow")
        self.screen.set_class(event.size.height < 22, "low")
        self.screen.set_class(event.size.height < 10, "tiny")

    # -- keys ----------------------------------------------------------------------------------------------------

    async def on_event(self, event: events.Event) -> None:
        """Keys and pastes go no further; the rest is Textual's."""
        at_ns = int(event.time * 1e9)
        if isinstance(event, events.Key):
            self._typed(lambda: self.keyboard.key(event.key, event.character, at_ns))
        elif isinstance(event, events.Paste):
            self._typed(lambda: self.keyboard.paste(event.text, at_ns))
        else:
            await super().on_event(event)

    @_or_leave
    def _typed(self, press: Callable[[], list[Act]]) -> None:
        self.keyboard.suggestion = self.model.task
        self._do(press())
        loop = asyncio.get_running_loop()
        for wait_ns in (LONE_NS, SETTLE_NS):
            loop.call_later(wait_ns / 1e9 + 0.001, lambda: self._do(self.keyboard.due()))

    @_or_leave
    def _do(self, acts: Iterable[Act]) -> None:
        for act in acts:
            if act.kind == "emergency":
                self._steer("emergency_stop")
            elif act.kind == "task":
                self.link.command("set_task", SetTask(act.text))
                self.model.say("info", f"sent: task “{act.text}”")
            elif act.kind == "notice":
                self.model.say("warning", act.text)
            else:
                self._keys[act.text]()
        self._show_field()

    def _show_field(self) -> None:
        """Open or shut, as the keyboard has it, and drawn at once: who types looks at it."""
        panel, line = self._panels["field"], self.keyboard.field
        panel.display = line is not None
        if line is not None:
            panel.show(panels.field(line, self.model.task, panel.outer_size.width))

    def _steer(self, action: Action) -> None:
        self.link.command(action)
        self.model.say("info", f"sent: {action.replace('_', ' ')}")

    def _pause(self) -> None:
        """Resumes only what is known to be paused now: an arm that holds would start by itself."""
        standing = self.model.standing(time.monotonic_ns())
        self._steer("resume" if standing.is_live and self.model.mode == "paused" else "pause")

    # -- the end -------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Ctrl-C: for the deployment that started this monitor, its three steps; else only this monitor ends."""
        if not self.link.is_ours:
            self.leave(f"left; {self.how_it_stands()}", INTERRUPTED)
            return
        self.link.interrupt()
        self.model.say("stop", f"ctrl+c: {STEPS[min(self._n_interrupts, len(STEPS) - 1)]}")
        self._n_interrupts += 1

    def _quit(self) -> None:
        self.leave("" if self.link.is_ours else f"left; {self.how_it_stands()}")

    def how_it_stands(self) -> str:
        """Of the robot, for somebody who does not see it any more."""
        standing = self.model.standing(time.monotonic_ns())
        robot = self.model.robot or "the robot"
        if standing.is_live:
            return f"{robot} goes on: {standing.word.lower()}"
        return f"{robot} {standing.word}: {standing.sentence}"

    def leave(self, reason: str, code: int = 0) -> None:
        """Gives the terminal back; the first reason counts. From the app's own thread."""
        if not self.is_left:
            self.is_left, self.reason = True, reason
            self.exit(return_code=code)

    def leave_soon(self, why: str, code: int) -> None:
        """The same from anywhere, a signal's handler for one. A deployment's own monitor leaves the words to it."""
        self._asked_to_leave = (why, code)
        if self._loop_of_app is not None:
            self._loop_of_app.call_soon_threadsafe(self._leave_as_asked)

    def _leave_as_asked(self) -> None:
        if self._asked_to_leave is not None:
            why, code = self._asked_to_leave
            self.leave("" if self.link.is_ours else f"{why}; {self.how_it_stands()}", code)

    def on_terminal_closed(self, _: TerminalClosed) -> None:
        self.leave(f"the terminal was closed; {self.how_it_stands()}", 1)
