"""The terminal's two directions, as the monitor needs them: a paste is no danger, and a window that closes is no crash.

Textual's own driver gives up on a byte that is no UTF-8, spins when the terminal has gone, and stops writing with a
traceback. This one goes on, or ends the monitor in order. Keys carry the time at which they were read, without the time
in which this process did not run: a key that is held down while the machine is stalled is still one press.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import termios
import time
from collections.abc import Iterable
from typing import Any

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from edgevla.monitor.graphics import Graphics

PATIENCE_S = 0.1
SOON_S = 0.02
"""After a key another look is taken soon: a lone Escape shows itself by what does not follow."""


class TerminalClosed(Message):
    """Nobody will type any more."""


class TerminalDriver(LinuxDriver):
    """Textual's driver for Linux and macOS, hardened."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._graphics: Graphics = app.graphics
        self._file = _Output()  # type: ignore[assignment]
        self._awake_s = 0.0

    def _get_terminal_size(self) -> tuple[int, int]:
        """What the terminal says. COLUMNS and LINES, which shells leave in the environment, know of no resizing."""
        for descriptor in (_Output().fileno(), self.fileno):
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(descriptor)
                if size.columns > 0 and size.lines > 0:
                    return size.columns, size.lines
        return super()._get_terminal_size()

    def start_application_mode(self) -> None:
        """What was typed before there was a screen was typed blind, for the shell perhaps: no key of it is obeyed."""
        with contextlib.suppress(termios.error):
            termios.tcflush(self.fileno, termios.TCIFLUSH)
        super().start_application_mode()
        self._graphics.begin(self.write)

    def stop_application_mode(self) -> None:
        self._graphics.end()
        super().stop_application_mode()

    def run_input_thread(self) -> None:
        parser, decoder = XTermParser(), codecs.getincrementaldecoder("utf-8")("replace")
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
            self.process_message(event)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the kernel has hung up, or this is no terminal of ours any more
        return b""


class _Output:
    """Writes past Python's buffers; what nobody can read any more is left out."""

    def write(self, text: str) -> None:
        left = text.encode(sys.__stderr__.encoding, "replace")  # type: ignore[union-attr]
        try:
            while left:
                left = left[os.write(self.fileno(), left) :]
        except OSError:
            pass

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return sys.__stderr__.fileno()  # type: ignore[union-attr]
