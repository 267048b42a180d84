"""A person at a terminal, asked one thing at a time.

Nothing that was typed or pasted before a question could be read answers it: only a line that comes after it does. Where
answers come from a script, through a pipe, each of them counts, in order. No answer, no yes.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from edgevla.errors import UsageError
from edgevla.nodes.vitals import ENDS, STOPS

POLL_S = 0.02
QUIET_S = 0.15
"""Nobody has read a question before this; a paste that is still coming ends with a pause as long."""
READ_SIZE = 4096


class Terminal:
    """A person at a terminal, or whoever stands in for one. purpose: what needs a person, for the sentence without one.

    is_live: whether a table can be drawn over the last one.
    """

    def __init__(self, purpose: str, source: TextIO | None = None, out: TextIO | None = None) -> None:
        # A process may be started without either; then nobody answers, and nobody reads.
        self._in, self._out = source or sys.stdin or _nothing("r"), out or sys.stdout or _nothing("w")
        self._purpose = purpose
        self.is_live = self._out.isatty()
        self._typed = b""
        self._n_drawn = 0

    def say(self, text: str) -> None:
        """Raises UsageError when nobody can read it any more."""
        self._put(text + "\n")
        self._n_drawn = 0

    def wait(self, text: str) -> None:
        """Until Enter, and nothing but Enter. Raises UsageError when nobody can press it."""
        self.ask(text, ("",))

    def ask(self, text: str, answers: Collection[str]) -> str:
        """One of `answers`, in lower case; anything else is asked again. Raises UsageError at the end of the input."""
        while True:
            self.settle()
            self.say(text)
            answer = self._line().strip().lower()
            if answer in answers:
                return answer
            keys = ", ".join(f"'{answer}'" if answer else "just Enter" for answer in answers)
            text = f"That was no answer ({keys})."

    def pressed(self) -> bool:
        """Whether Enter was pressed; waits a moment for it."""
        if b"\n" not in self._typed:
            if not select.select([self._in], [], [], POLL_S)[0]:
                return False
            self._receive()
        if b"\n" not in self._typed:
            return False
        return not self._line().strip()

    def settle(self) -> None:
        """Drops what was typed ahead, until nothing more comes."""
        if not self._in.isatty():
            return
        self._typed = b""
        while True:
            with contextlib.suppress(OSError, termios.error):
                termios.tcflush(self._in.fileno(), termios.TCIFLUSH)
            if not select.select([self._in], [], [], QUIET_S)[0]:
                return

    def draw(self, rows: list[str]) -> None:
        """Shows rows in the place of the rows drawn before."""
        if not self.is_live:
            return
        width = (
            shutil.get_terminal_size().columns - 1
        )  # a row that is broken into two could not be drawn over
        up = f"\x1b[{self._n_drawn}A" if self._n_drawn else ""
        self._put(up + "".join(f"\x1b[2K{row[:width]}\n" for row in rows))
        self._n_drawn = len(rows)

    def _line(self) -> str:
        while b"\n" not in self._typed:
            self._receive()
        line, _, self._typed = self._typed.partition(b"\n")
        return line.decode(errors="replace")

    def _receive(self) -> None:
        try:
            data = os.read(self._in.fileno(), READ_SIZE)
        except OSError:  # the terminal has gone
            data = b""
        if not data:
            raise UsageError(f"{self._purpose} needs somebody to answer: the input has ended")
        self._typed += data

    def _put(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except (
            OSError
        ) as error:  # a closed pipe, or a terminal that has gone; nothing is left to be flushed at the end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            raise UsageError(
                f"{self._purpose} needs somebody to read what it says: the output is closed"
            ) from error


def _nothing(mode: str) -> TextIO:
    return Path(os.devnull).open(mode)  # type: ignore[return-value]


@contextlib.contextmanager
def endings_raise() -> Iterator[None]:
    """Inside, a process that is asked to end (its terminal closes, or `kill`) still puts right what it has begun."""

    def interrupt(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    with _handlers(dict.fromkeys(ENDS - {signal.SIGINT}, interrupt)):
        yield


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Inside, nothing stops or ends the process: what comes meanwhile acts afterwards."""
    come: list[int] = []

    def note(number: int, _: Any) -> None:
        come.append(number)

    try:
        with _handlers(dict.fromkeys(ENDS | STOPS, note)):
            yield
    finally:
        for number in dict.fromkeys(come):
            signal.raise_signal(number)


@contextlib.contextmanager
def _handlers(wanted: Mapping[int, Any]) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    except ValueError:  # not the main thread, which alone is told of signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
