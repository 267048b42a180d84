"""The terminal monitor: a link brings what was said, panels show it, keys act on the robot at once.

Four times a second the news are taken in and drawn, what nobody can read so fast more seldom, and only what has changed.
All keys go through `Keyboard`, none through Textual's bindings: no widget can have the focus when it matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from textual import events
from textual.app import ComposeResult

from edgevla.arguments import Arguments, SetTask
from edgevla.board import BoardReader
from edgevla.messages import Action
from edgevla.monitor.base import INTERRUPTED, KeyboardApp, or_leave
from edgevla.monitor.graphics import PicturesBy
from edgevla.monitor.keys import Intent, Keyboard
from edgevla.monitor.layout import Boxes, Content, arrange
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.outside import Outside
from edgevla.monitor.panels.camera import picture
from edgevla.monitor.panels.chunks import chunks, latency
from edgevla.monitor.panels.events import events as said
from edgevla.monitor.panels.header import header
from edgevla.monitor.panels.joints import arms, joints
from edgevla.monitor.panels.keys import field, help_page, keys
from edgevla.monitor.panels.loop import loop
from edgevla.monitor.panels.servos import servos
from edgevla.monitor.pictures import CameraView
from edgevla.monitor.rows import Panel, Row
from edgevla.monitor.standing import Standing

REFRESH_S = 0.25
TURNS = {"latency": 2, "loop": 2, "servos": 3, "camera": 2, "outside": 2, "board": 4}
"""Due every so many refreshes; what is not here, at every one."""
Rows = Callable[[MonitorModel, Standing, int, int, int], Sequence[Row]]
TABLES: dict[str, Rows] = {
    "joints": joints,
    "chunks": chunks,
    "latency": latency,
    "loop": loop,
    "servos": lambda model, _, width, height, now: servos(model, width, height, now),
    "events": said,
    "header": lambda model, standing, width, _, now: header(model, standing, width, now),
    "help": lambda _, __, width, ___, ____: help_page(width),
}
PANELS = (*TABLES, "keys", "field")
PAGE = 10
"""Events that a key scrolls by."""
SENT_BY: dict[str, Action] = {"h": "home", "s": "stop", "ctrl+r": "clear_stop"}
"""Keys whose command is always the same; the emergency's and the field's are `Keyboard`'s."""
STEPS = (
    "the arm moves to rest and is released; ctrl+c again: emergency stop",
    "emergency stop: the arm is frozen; ctrl+c again lets go",
    "the arm is let go",
)


class Link(Protocol):
    """What connects a monitor with a deployment; tests put a scripted one here.

    cameras: names of those that the deployment has. has_leader: whether a leader arm may take the policy's place.
    is_ours: whether the deployment started this monitor: it ends with
    it, and ctrl+c is meant for it.
    """

    robot: str
    bundle: str
    cameras: Sequence[str]
    is_ours: bool
    has_leader: bool

    def poll(self, model: MonitorModel) -> None:
        """Tells the model what was said since the last call. Never blocks."""
        ...

    def look(self, before: Outside) -> Outside: ...

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
        """Sends a command; never blocks. Its answer comes by `poll`."""
        ...

    def save(self) -> None:
        """Asks the policy to keep for good what it saw lately; answered as a command is."""
        ...

    def interrupt(self) -> None:
        """Presses ctrl+c where the deployment was started."""
        ...

    def close(self) -> None: ...


class MonitorApp(KeyboardApp):
    """Watches and steers one deployment. has_fleet: whether a key goes back to the page of all of them.

    goes_back: whether that key ended it.
    """

    def __init__(self, link: Link, has_fleet: bool = False, pictures: PicturesBy = "blocks") -> None:
        super().__init__(pictures)
        self.link = link
        self.model = MonitorModel(link.robot, link.bundle, cameras=link.cameras)
        self._keys: dict[str, Callable[[], object]] = {
            "space": self._pause,
            "q": self._quit,
            "ctrl+c": self._interrupt,
            "ctrl+l": self._draw_anew,
            "m": self._save,
            **({"l": self._change_driver} if link.has_leader else {}),
            **{key: partial(self._steer, action) for key, action in SENT_BY.items()},
        }
        self._views: dict[str, Callable[[], object]] = {
            "?": self._toggle_help,
            "c": self._next_camera,
            "escape": self._back,
            "up": lambda: self.model.said.scroll(1),
            "down": lambda: self.model.said.scroll(-1),
            "pageup": lambda: self.model.said.scroll(PAGE),
            "pagedown": lambda: self.model.said.scroll(-PAGE),
            "end": lambda: self.model.said.look_for(self.model.said.words),
            **{str(n): partial(self._enlarge, n - 1) for n in range(1, 10)},
        }
        self.has_fleet, self.goes_back = has_fleet, False
        if has_fleet:
            self._keys["b"] = self._to_fleet
        self.keyboard = Keyboard(self._keys, search_key="/", views=self._views)
        self._panels = {name: Panel(id=name) for name in PANELS}
        self._cameras = [CameraView(name, i, self.graphics) for i, name in enumerate(self.model.cameras)]
        self._turn, self._word = 0, ""
        self._board = BoardReader()
        self._enlarged: int | None = None
        self._is_help = False
        self._boxes: Boxes = {}
        self._n_interrupts = 0

    def compose(self) -> ComposeResult:
        yield from self._cameras
        yield from self._panels.values()

    def on_mount(self) -> None:
        self.model.say(
            "info", "watching; what was said before stands in the deployment's own terminal or log"
        )
        self.call_after_refresh(self.refresh_now)
        self.set_interval(REFRESH_S, self.refresh_now)
        self.begin()

    def on_unmount(self) -> None:
        self.link.close()

    # -- what is shown -----------------------------------------------------------------------------------------

    @or_leave
    def refresh_now(self) -> None:
        """Takes in what arrived and draws what is due."""
        now = time.monotonic_ns()
        self.link.poll(self.model)
        if self._is_due("outside"):
            self.model.outside = self.link.look(self.model.outside)
        if self._is_due("board"):
            self.model.board = self._board.read()
        if not self.model.outside.is_supervisor_alive and self.link.is_ours:
            self.leave(
                "the deployment's supervisor has died; the arm is held, parked and released by itself", 1
            )
        self.graphics.look()
        if self.graphics.keeps_up:
            self._show(now)
            self._turn += 1

    def _is_due(self, what: str, phase: int = 0) -> bool:
        return (self._turn + phase) % TURNS.get(what, 1) == 0

    def _show(self, now: int) -> None:
        model, standing = self.model, self.model.standing(now)
        if standing.word != self._word:  # then everything else is news, too
            self._turn, self._word = 0, standing.word
        self._place()
        for name, rows in TABLES.items():
            if name in self._boxes and self._is_due(name):
                box = self._boxes[name]
                self._panels[name].show(rows(model, standing, box.width, box.height, now))
        self._panels["keys"].show([self._named_keys(standing)])
        self.graphics.look()
        for phase, camera in enumerate(self._cameras):
            if camera.box is not None and self._is_due("camera", phase):
                camera.show(phase + 1, *picture(model, camera.camera, camera.room, now))

    def _place(self) -> None:
        """Everything to its place, where the terminal or what there is to show has changed."""
        model = self.model
        shown = [len(arm.joints) for arm in arms(model.joints)]
        content = Content(
            joints=tuple(shown) if any(shown) else (6,),
            n_servos=model.n_servos or 6,
            n_cameras=len(self._cameras),
            enlarged=self._enlarged,
            is_help=self._is_help,
        )
        boxes = arrange(*self.size, content)
        if boxes is self._boxes:
            return
        self._boxes, self._turn = boxes, 0
        for name, panel in self._panels.items():
            is_shown = name != "field" or self.keyboard.field is not None
            panel.stand(boxes.get(name) if is_shown else None)
        for i, camera in enumerate(self._cameras):
            camera.stand(boxes.get(f"camera {i}"))
        self.screen.refresh(layout=True)

    def _named_keys(self, standing: Standing) -> Row:
        leaves = "stop and leave" if self.link.is_ours else "leave"
        state = self.model.state
        can_change = self.link.has_leader and not (state is not None and state.is_shadow)
        driver = ("hand back" if state is not None and state.is_led else "take over") if can_change else ""
        is_close = self._is_help or self._enlarged is not None or bool(self.model.said.words)
        return keys(
            self.model,
            standing,
            self.size.width,
            typing=self._typing,
            leaves=leaves,
            is_close=is_close,
            has_fleet=self.has_fleet,
            driver=driver,
        )

    @property
    def _typing(self) -> str:
        if self.keyboard.field is None:
            return ""
        return "search" if self.keyboard.is_searching else "task"

    def on_resize(self, event: events.Resize) -> None:
        self._turn = 0
        self.call_after_refresh(self.refresh_now)

    # -- the view ------------------------------------------------------------------------------------------------

    def _toggle_help(self) -> None:
        self._is_help = not self._is_help

    def _next_camera(self) -> None:
        """The first one, the next one, and after the last one all parts again."""
        following = 0 if self._enlarged is None else self._enlarged + 1
        self._enlarge(following if following < len(self._cameras) else None)

    def _enlarge(self, camera: int | None) -> None:
        """The same one again: all parts."""
        if camera is None or camera < len(self._cameras):
            self._enlarged = None if camera == self._enlarged else camera
            self._is_help = False

    def _back(self) -> None:
        """Towards the screen with all parts: one step."""
        if self._is_help:
            self._is_help = False
        elif self._enlarged is not None:
            self._enlarged = None
        else:
            self.model.said.look_for("")

    # -- keys ----------------------------------------------------------------------------------------------------

    def typed(self, press: Callable[[], list[Intent]]) -> None:
        self.keyboard.suggestion = self.model.task
        super().typed(press)

    @or_leave
    def do(self, acts: Iterable[Intent]) -> None:
        for act in acts:
            if act.kind == "emergency":
                self._steer("emergency_stop")
            elif act.kind == "task":
                self.link.command("set_task", SetTask(act.text))
                self.model.say("info", f"sent: task “{act.text}”")
            elif act.kind == "search":
                self.model.said.look_for(act.text)
            elif act.kind == "notice":
                self.model.say("warning", act.text)
            elif act.text in self._views:
                self._views[act.text]()
                self._show(time.monotonic_ns())
            else:
                self._keys[act.text]()
        self._show_field()

    def _show_field(self) -> None:
        """Open or shut, as the keyboard has it, and drawn at once: who types looks at it."""
        panel, line = self._panels["field"], self.keyboard.field
        panel.stand(self._boxes.get("field") if line is not None else None)
        if line is None or panel.box is None:
            return
        if self.keyboard.is_searching and line.text != self.model.said.words:
            self.model.said.look_for(line.text)
            self._show(time.monotonic_ns())
        current = "" if self.keyboard.is_searching else self.model.task
        panel.show(field(line, self._typing, current, panel.box.width))

    def _steer(self, action: Action) -> None:
        self.link.command(action)
        self.model.say("info", f"sent: {action.replace('_', ' ')}")

    def _save(self) -> None:
        self.link.save()
        self.model.say("info", "sent: save what the policy saw in the last seconds")

    def _pause(self) -> None:
        """Resumes only what is known to be paused now: an arm that holds would start by itself."""
        standing = self.model.standing(time.monotonic_ns())
        self._steer("resume" if standing.is_live and self.model.mode == "paused" else "pause")

    def _change_driver(self) -> None:
        state = self.model.state
        self._steer("hand_back" if state is not None and state.is_led else "lead")

    # -- the end -------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Ctrl-C: for the deployment that started this monitor, its three steps; else only this monitor ends."""
        if not self.link.is_ours:
            self.leave(f"left; {self.how_it_stands()}", INTERRUPTED)
            return
        self.link.interrupt()
        self.model.say("stop", f"ctrl+c: {STEPS[min(self._n_interrupts, len(STEPS) - 1)]}")
        self._n_interrupts += 1

    def _draw_anew(self) -> None:
        self.graphics.forget()
        self.screen.refresh()

    def _quit(self) -> None:
        self.leave("" if self.link.is_ours else f"left; {self.how_it_stands()}")

    def how_it_stands(self) -> str:
        """Of the robot, for somebody who does not see it any more."""
        standing = self.model.standing(time.monotonic_ns())
        robot = self.model.robot or "the robot"
        if standing.is_live:
            return f"{robot} goes on: {standing.word.lower()}"
        return f"{robot} {standing.word}: {standing.sentence}"

    def parting(self, why: str) -> str:
        return f"{why}; {self.how_it_stands()}"

    def _leave_as_asked(self) -> None:
        """A deployment's own monitor leaves the words to it."""
        if self.asked_to_leave is not None and self.link.is_ours:
            self.leave("", self.asked_to_leave[1])
        super()._leave_as_asked()

    def _to_fleet(self) -> None:
        self.goes_back = True
        self.leave("")
