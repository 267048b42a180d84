"""What a person sees of a deployment in the foreground: one line per event, and the monitor in the same terminal.

Without a terminal (a pipe, a unit's journal) the same lines come as they happen, without a single escape code.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from edgevla.errors import UsageError

if TYPE_CHECKING:
    from edgevla.launch.supervisor import Supervisor

MARKS = {"warning": "! ", "error": "!! ", "stop": "!! ", "info": "", "log": ""}
LINES_KEPT = 500
MONITOR_ENDS_S = 3.0
PATIENCE_S = 0.5
QUIET = (
    "".join(f"\x1b[?{mode}l" for mode in (1000, 1002, 1003, 1006, 1015, 1004, 2004, 2026, 2048))
    + "\x1b[?7h\x1b[?25h\x1b[0m"
)
"""Mouse, focus, paste and size reports off; wrapping and cursor on; colours plain. Harmless where it is so already."""
LEAVE = "\x1b[<u\x1b[?1049l"
"""Out of the alternate screen. Only after a monitor that could not do it: the cursor would jump back otherwise."""


class Screen:
    """One clear line per event, with the time since the start and who says it.

    While the monitor has the terminal, lines wait; they are shown when it is left.
    """

    def __init__(self, to_stderr: bool) -> None:
        self._began = time.monotonic()
        self._waiting: deque[str] | None = None
        self._n_waited = 0
        self._stream = sys.stderr if to_stderr else sys.stdout

    def __call__(self, severity: str, source: str, text: str) -> None:
        line = f"{time.monotonic() - self._began:8.2f}  {source:<12} {MARKS[severity]}{text}"
        if self._waiting is not None:
            self._waiting.append(line)
            self._n_waited += 1
            return
        write(self._stream, line)

    def give_way(self) -> None:
        """Lines wait from here on: something else has the terminal."""
        self._waiting, self._n_waited = deque(maxlen=LINES_KEPT), 0

    def come_back(self) -> None:
        """Prints the lines that waited, and how many were too many."""
        lines, self._waiting = self._waiting or (), None
        if self._n_waited > len(lines):
            write(self._stream, f"... {self._n_waited - len(lines)} earlier lines are in the log only")
        for line in lines:
            write(self._stream, line)


def write(stream: TextIO | None, line: str, end: str = "\n") -> None:
    """Past the stream's buffer: Ctrl-C's sentence may come while another is being written, and a buffer refuses that.

    Nothing is raised when the terminal has gone, and one that takes nothing (Ctrl-S, a pipe that nobody reads) is waited
    for `PATIENCE_S` once: the arm still has to be brought to rest.
    """
    if stream is None:  # closed by whoever started us
        return
    with contextlib.suppress(OSError, ValueError):
        _outlet().write(stream.fileno(), (line + end).encode(stream.encoding or "utf-8", "replace"))


class _Outlet:
    """Writes lines in a thread of its own, in their order. What was not taken is waited for when the process ends."""

    def __init__(self) -> None:
        self._lines: SimpleQueue[tuple[int, bytes, threading.Event]] = SimpleQueue()
        self._is_stuck = False
        threading.Thread(target=self._run, daemon=True, name="screen").start()
        atexit.register(self._await_all)

    def write(self, descriptor: int, data: bytes) -> None:
        """Returns once it is written, or at once where what came before has not been taken yet. A signal's handler
        may come between any two lines: it waits for an event of its own."""
        if self._is_stuck and self._lines.qsize() >= LINES_KEPT:
            return  # it is in the log
        is_written = threading.Event()
        self._lines.put((descriptor, data, is_written))
        if not self._is_stuck:
            self._is_stuck = not is_written.wait(PATIENCE_S)

    def _run(self) -> None:
        while True:
            descriptor, left, is_written = self._lines.get()
            with contextlib.suppress(OSError):
                while left:
                    left = left[os.write(descriptor, left) :]
            is_written.set()
            self._is_stuck = not self._lines.empty()

    def _await_all(self) -> None:
        is_written = threading.Event()
        self._lines.put((-1, b"", is_written))
        is_written.wait()


@functools.cache
def _outlet() -> _Outlet:
    return _Outlet()


class MonitorWindow(contextlib.AbstractContextManager[None]):
    """The monitor in this terminal, as a process of its own; when it is left, the deployment stops.

    Whatever becomes of it, the terminal is as it was before the next line is printed.
    """

    def __init__(self, supervisor: Supervisor, screen: Screen) -> None:
        self._supervisor, self._screen = supervisor, screen
        self._process: subprocess.Popen[bytes] | None = None
        self._modes: list[Any] | None = None

    def __enter__(self) -> None:
        with contextlib.suppress(termios.error):
            self._modes = termios.tcgetattr(sys.stdin)
        words = [sys.executable, "-m", "edgevla", "monitor", f"--run-dir={self._supervisor.folder}"]
        process = subprocess.Popen(words, stdout=sys.stderr)  # the summary may go elsewhere
        self._process = process
        self._screen.give_way()
        self._supervisor.stop_when(lambda: process.poll() is not None)

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            self._restore()
            self._screen.come_back()

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(MONITOR_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _restore(self) -> None:
        was_killed = self._process is not None and (self._process.poll() or 0) < 0
        write(sys.stderr, (LEAVE if was_killed else "") + QUIET, end="")
        if self._modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._modes)


def check_terminal() -> None:
    """
    Raises:
        UsageError: the monitor could not be shown here.
    """
    is_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if not is_terminal or os.environ.get("TERM") == "dumb":
        raise UsageError("--monitor needs a terminal; leave it out here, and attach one: edgevla monitor")
    with contextlib.suppress(OSError):
        if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
            raise UsageError(
                "--monitor needs the terminal in the foreground; leave out the & or the --monitor"
            )
