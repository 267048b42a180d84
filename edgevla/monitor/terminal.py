"""The terminal's two directions, as the monitor needs them: a paste is no danger, and a window that closes is no crash.

Textual's own driver gives up on a byte that is no UTF-8, spins when the terminal has gone, and stops writing with a
traceback. This one goes on, or ends the monitor in order. Keys carry the time at which they were read, without the time
in which this process did not run: a key that is held down while the machine is stalled is still one press.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import os
import queue
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Key
from textual.message import Message

from edgevla.monitor.graphics import Answers, Graphics

if TYPE_CHECKING:
    from edgevla.monitor.base import KeyboardApp

PATIENCE_S = 0.1
SOON_S = 0.02
"""After a key another look is taken soon: a lone Escape shows itself by what does not follow."""


LEAVING_S = 1.0
"""So long the end waits for a terminal that has not taken everything yet."""


class TerminalClosed(Message):
    """Nobody will type any more."""


class TypedBetween(Message):
    """Keys that came after one screen had ended and before the next one could obey them."""

    def __init__(self, keys: list[Key]) -> None:
        super().__init__()
        self.keys = keys


class TerminalDriver(LinuxDriver):
    """Textual's driver for Linux and macOS, hardened."""

    _app: KeyboardApp

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._graphics: Graphics = app.graphics
        self._file: _Output = _output()  # type: ignore[assignment]
        self._awake_s = 0.0

    def _get_terminal_size(self) -> tuple[int, int]:
        """What the terminal says. COLUMNS and LINES, which shells leave in the environment, know of no resizing."""
        for descriptor in (_stderr(), self.fileno):
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(descriptor)
                if size.columns > 0 and size.lines > 0:
                    return size.columns, size.lines
        return super()._get_terminal_size()

    def start_application_mode(self) -> None:
        """What was typed before there was a screen was typed blind, for the shell perhaps: no key of it is obeyed.
        Where this screen follows another one it was typed for the monitor, and is searched for an emergency key."""
        if self._app.follows is None:
            with contextlib.suppress(termios.error):
                termios.tcflush(self.fileno, termios.TCIFLUSH)
        super().start_application_mode()
        self._graphics.begin(self.write, lambda: self._file.is_behind)

    def write(self, data: str) -> None:
        self._file.n_asked += len(data)
        super().write(data)

    def stop_application_mode(self) -> None:
        self._graphics.end()
        super().stop_application_mode()

    def close(self) -> None:
        super().close()
        self._file.await_written(LEAVING_S)

    def disable_input(self) -> None:
        """As Textual does it, which throws away what was typed meanwhile."""
        if self.exit_event.is_set():
            return
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        self._disable_mouse_support()
        self.exit_event.set()
        if self._key_thread is not None:
            self._key_thread.join()
        self.exit_event.clear()
        self._app.unheard += _keys(self.fileno)

    def _sigcont_application(self, *_: object) -> None:
        """After a SIGSTOP the terminal is still ours; begun a second time, it would be given back as we have made it."""
        n_heard, is_ours = len(self._app.unheard), self._graphics.write is not None
        if is_ours:
            self.suspend_application_mode()
            self._must_signal_resume = True
        if self._must_signal_resume:
            super()._sigcont_application()
        if is_ours and (keys := self._app.unheard[n_heard:]):
            del self._app.unheard[n_heard:]
            self.send_message(TypedBetween(keys))

    def run_input_thread(self) -> None:
        parser, decoder = XTermParser(), codecs.getincrementaldecoder("utf-8")("replace")
        if self._app.follows is not None and (keys := _keys(self.fileno)):
            self.send_message(TypedBetween(keys))
        turned, read_s = time.monotonic(), self._awake_s
        while not self.exit_event.is_set():
            wait_s = SOON_S if self._awake_s - read_s < PATIENCE_S else PATIENCE_S
            is_ready = bool(select.select([self.fileno], [], [], wait_s)[0])
            now = time.monotonic()
            self._awake_s += min(now - turned, 2 * PATIENCE_S)
            turned = now
            if is_ready:
                data = _read(self.fileno)
                if not data:
                    self.send_message(TerminalClosed())
                    return
                read_s = self._awake_s
                typed = self._graphics.answers.feed(decoder.decode(data), now)
            else:
                typed = self._graphics.answers.due(now)
            if typed:
                self._deliver(parser.feed(typed), read_s)
            self._deliver(parser.tick(), read_s)

    def _deliver(self, events: Iterable[Message], read_s: float) -> None:
        for event in events:
            event.time = read_s
            if isinstance(event, Key):
                self._app.unheard.append(event)
            self.process_message(event)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the kernel has hung up, or this is no terminal of ours any more
        return b""


def _keys(descriptor: int) -> list[Key]:
    """All that have been typed and not been read yet; what the terminal itself answers late is no key."""
    data = b""
    while select.select([descriptor], [], [], 0)[0] and (more := _read(descriptor)):
        data += more
    typed = Answers().feed(data.decode("utf-8", "replace"), time.monotonic())
    return [event for event in XTermParser().feed(typed) if isinstance(event, Key)]


class _Output:
    """Writes past Python's buffers, in a thread of its own: a terminal that takes nothing (Ctrl-S in an outer one, a
    line that has stalled, text that is being selected) must not hold back the keys. What nobody can read any more is
    left out.

    n_asked, n_written: characters.
    """

    def __init__(self) -> None:
        self.n_asked = self.n_written = 0
        self._texts: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="terminal").start()

    @property
    def is_behind(self) -> bool:
        """Whether the terminal has not taken all of it yet."""
        return self.n_written < self.n_asked

    def write(self, text: str) -> None:
        self._texts.put(text)

    def await_written(self, most_s: float) -> None:
        """All that was asked so far, or `most_s`."""
        is_written = threading.Event()
        self._texts.put(is_written)
        is_written.wait(most_s)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return _stderr()

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            if isinstance(text, threading.Event):
                text.set()
                continue
            left = text.encode(sys.__stderr__.encoding, "replace")  # type: ignore[union-attr]
            with contextlib.suppress(OSError):
                while left:
                    left = left[os.write(_stderr(), left) :]
            self.n_written += len(text)


@functools.cache
def _output() -> _Output:
    """One for all screens that follow one another: what the one left unwritten comes before the next."""
    return _Output()


def _stderr() -> int:
    return sys.__stderr__.fileno()  # type: ignore[union-attr]
