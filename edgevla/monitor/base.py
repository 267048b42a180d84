"""What every screen of the monitor is: an app whose keys all go through `Keyboard`, and that gives the terminal back in
order whatever ends it: a key, a signal, a closed window, a mistake of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from textual import events
from textual.app import App

from edgevla.monitor.graphics import Graphics, PicturesBy
from edgevla.monitor.keys import LONE_NS, SETTLE_NS, Intent, Keyboard, is_emergency
from edgevla.monitor.terminal import TerminalClosed, TerminalDriver, TypedBetween

INTERRUPTED = 130
P = ParamSpec("P")
S = TypeVar("S", bound="KeyboardApp")


def or_leave(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """A mistake of ours ends the screen in order: the terminal comes first, and the robot needs no monitor."""

    @wraps(method)
    def guarded(app: S, *args: P.args, **options: P.kwargs) -> None:
        try:
            if not app.is_left:
                method(app, *args, **options)
        except Exception as error:
            app.failure = error
            app.leave(app.parting(f"a mistake of the monitor itself ({type(error).__name__}: {error})"), 1)

    return guarded


class KeyboardApp(App[None]):
    """reason: why the screen was left, to be said afterwards. failure: the exception that made it, a mistake of ours.

    asked_to_leave: why and with which exit code, since somebody did by `leave_soon`. pictures: how they are drawn.
    follows: the screen that gave way to this one. unheard: keys that were typed and not obeyed; once the screen is left,
    an emergency key among them is the next one's to obey.
    """

    CSS_PATH = "monitor.tcss"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    keyboard: Keyboard

    def __init__(self, pictures: PicturesBy = "blocks") -> None:
        super().__init__(driver_class=TerminalDriver, ansi_color=True)
        self.graphics = Graphics(pictures)
        self.reason = ""
        self.is_left = False
        self.failure: Exception | None = None
        self.asked_to_leave: tuple[str, int] | None = None
        self.follows: KeyboardApp | None = None
        self.unheard: list[events.Key] = []
        self._loop_of_app: asyncio.AbstractEventLoop | None = None

    def do(self, acts: Iterable[Intent]) -> None:
        """What the keys mean; guarded by `or_leave`."""
        raise NotImplementedError

    def parting(self, why: str) -> str:
        """What is said once the terminal is given back."""
        return why

    # -- keys ----------------------------------------------------------------------------------------------------

    async def on_event(self, event: events.Event) -> None:
        """Keys and pastes go no further; the rest is Textual's."""
        at_ns = int(event.time * 1e9)
        if isinstance(event, events.Key):
            if not self.is_left:
                with contextlib.suppress(ValueError):
                    self.unheard.remove(event)
            self.typed(lambda: self.keyboard.key(event.key, event.character, at_ns))
        elif isinstance(event, events.Paste):
            self.typed(lambda: self.keyboard.paste(event.text, at_ns))
        else:
            await super().on_event(event)

    @or_leave
    def typed(self, press: Callable[[], list[Intent]]) -> None:
        """A key or a paste: what it means at once, and what it means once nothing has followed it."""
        self.do(press())
        loop = asyncio.get_running_loop()
        for wait_ns in (LONE_NS, SETTLE_NS):
            loop.call_later(wait_ns / 1e9 + 0.001, lambda: self.do(self.keyboard.due()))

    @or_leave
    def obey_emergency_among(self, missed: Iterable[events.Key]) -> None:
        """Nothing else that was typed before this screen was there is obeyed."""
        if any(is_emergency(event.key, event.character) for event in missed):
            self.do(self.keyboard.missed_emergency())

    def on_typed_between(self, message: TypedBetween) -> None:
        self.obey_emergency_among(message.keys)

    # -- the end -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on `leave_soon` works at once; whoever asked before is obeyed now."""
        self._loop_of_app = asyncio.get_running_loop()
        self._leave_as_asked()
        if self.follows is not None:
            self.obey_emergency_among(self.follows.unheard)

    def leave(self, reason: str, code: int = 0) -> None:
        """Gives the terminal back; the first reason counts. From the app's own thread."""
        if not self.is_left:
            self.is_left, self.reason = True, reason
            self.exit(return_code=code)

    def leave_soon(self, why: str, code: int) -> None:
        """The same from anywhere, a signal's handler for one."""
        self.asked_to_leave = (why, code)
        if self._loop_of_app is not None:
            with contextlib.suppress(RuntimeError):  # this screen has just ended; the next one is told
                self._loop_of_app.call_soon_threadsafe(self._leave_as_asked)

    def _leave_as_asked(self) -> None:
        if self.asked_to_leave is not None:
            why, code = self.asked_to_leave
            self.leave(self.parting(why), code)

    def on_terminal_closed(self, _: TerminalClosed) -> None:
        self.leave(self.parting("the terminal was closed"), 1)
