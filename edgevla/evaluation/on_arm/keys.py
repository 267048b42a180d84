"""The person's keys: one at a time, from a terminal, or lines from a pipe.

A terminal has no keys, only bytes: a paste is fast typing, a key that is held down a stream of presses. What a key alone
means is the flow's; here is decided whether it was one. `monitor/keys.py` has the rules: a key waits for a moment in
which nothing else comes, a stream of one key is one press, text obeys nobody, and `e` waits for nothing.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from edgevla.errors import UsageError
from edgevla.evaluation.on_arm.flow import FlowEvent
from edgevla.monitor.keys import INSISTING, LONE_NS, STRAY_NS, Intent, Keyboard

NAMES: dict[str, FlowEvent] = {
    "enter": FlowEvent.GO,
    "space": FlowEvent.HOLD,
    "s": FlowEvent.SUCCESS,
    "y": FlowEvent.SUCCESS,
    "f": FlowEvent.FAILURE,
    "n": FlowEvent.FAILURE,
    "u": FlowEvent.UNDO,
    "r": FlowEvent.AGAIN,
    "q": FlowEvent.QUIT,
    "ctrl+r": FlowEvent.CLEAR,
}
BYTES = {"\r": "enter", "\n": "enter", " ": "space", "\x12": "ctrl+r"}
EMERGENCY = "eE\x05"
F12 = "\x1b[24~"
HELP = "keys: Enter begins and holds, s or y success, f or n failure, u back, q ends, e emergency stop"
STRAY = f"several keys at once are text: none was obeyed. {HELP}"
ASLEEP_NS = 100_000_000
"""Longer between two reads, and the process was busy with something else."""
Pressed = tuple[FlowEvent | None, str]
"""A key alone, or None and a sentence about what came instead."""


class TypedInput:
    """Bytes of a terminal with their times in, keys out; no terminal, no clock of its own."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._keyboard = Keyboard(list(NAMES), clock, field_key="", stray_words=STRAY)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text_until_ns = 0
        self._n_insisting = 0

    def feed(self, data: bytes) -> list[Pressed]:
        """What was read at once. data: may be empty: time has passed."""
        text = self._decoder.decode(data)
        acts = [*self._acts(text, self._clock()), *self._keyboard.due()] if text else self._keyboard.due()
        return [self._meant(act) for act in acts]

    def _acts(self, text: str, now: int) -> Sequence[Intent]:
        """text: what came at once; of a key that is held down the same character several times."""
        is_one = len(set(text)) == 1
        if text == F12 or (is_one and text[0] in EMERGENCY):
            return self._emergency(text, now)
        is_text = now < self._text_until_ns
        self._text_until_ns = now + (LONE_NS if is_one else STRAY_NS)
        self._n_insisting = 0
        if not is_one:
            return self._keyboard.paste(text, now)
        name = BYTES.get(text[0], text[0].lower())
        acts = self._keyboard.key(name, None if text[0] in BYTES else text[0], now)
        if name in NAMES or is_text or acts:
            return acts
        what = text[0] if text[0].isprintable() else "this key"
        return [Intent("notice", f"{what} means nothing here; {HELP}")]

    def _emergency(self, text: str, now: int) -> Sequence[Intent]:
        """At once; but a letter in the midst of text is none, unless it insists."""
        self._n_insisting += len(text)
        if text != F12 and now < self._text_until_ns and self._n_insisting < INSISTING:
            return [Intent("notice", STRAY)]
        return self._keyboard.key("f12", None, now)

    @staticmethod
    def _meant(act: Intent) -> Pressed:
        if act.kind == "emergency":
            return FlowEvent.STOP, ""
        if act.kind == "command":
            return NAMES[act.text], ""
        return None, act.text


class PipedInput:
    """Keys as lines of a pipe, one at a time; after its end nobody is there to judge, so it ends."""

    def __init__(self) -> None:
        self._rest, self._lines = b"", deque[str]()
        self._has_ended = False

    def feed(self, data: bytes | None) -> list[Pressed]:
        """data: None at the end of the pipe."""
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        self._lines.extend(line.decode(errors="replace").strip().lower() for line in lines)
        if self._lines:
            return [self._meant(self._lines.popleft())]
        if data is None and not self._has_ended:
            self._has_ended = True
            return [(FlowEvent.QUIT, "")]
        return []

    @staticmethod
    def _meant(line: str) -> Pressed:
        if line == "e":
            return FlowEvent.STOP, ""
        event = NAMES.get(line or "enter")
        return (event, "") if event is not None else (None, f"'{line[:40]}' means nothing here; {HELP}")


def _is_in_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # a terminal, but not the one of this session
        return True


class Keys:
    """Reads standard input. `with`: the terminal gives single keys meanwhile, and is as before however it ends."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """
        Raises:
            UsageError: nobody could press a key: there is no input, or the terminal is another job's.
        """
        stream = sys.stdin if stream is None else stream
        if stream is None or stream.closed:
            raise UsageError("a person judges, and standard input is closed; start it in a terminal")
        self._fd = stream.fileno()
        self.is_terminal = os.isatty(self._fd)
        if self.is_terminal and not _is_in_foreground(self._fd):
            raise UsageError("a person judges: it needs the terminal in the foreground; leave out the &")
        self._awake_ns, self._turned_ns = 0, time.monotonic_ns()
        self._typed, self._lines = TypedInput(lambda: self._awake_ns), PipedInput()

    @contextlib.contextmanager
    def open(self) -> Iterator[Keys]:
        if not self.is_terminal:
            yield self
            return
        before = termios.tcgetattr(self._fd)
        try:
            tty.setcbreak(self._fd)
            yield self
        finally:
            with contextlib.suppress(termios.error):  # the terminal may have gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def forget(self) -> None:
        """What was typed before anybody could know what it would mean."""
        if self.is_terminal:
            with contextlib.suppress(termios.error):
                termios.tcflush(self._fd, termios.TCIFLUSH)

    def read(self) -> list[Pressed]:
        """Never blocks. Time in which nobody read does not count: a key held down meanwhile is still one press."""
        now = time.monotonic_ns()
        self._awake_ns += min(now - self._turned_ns, ASLEEP_NS)
        self._turned_ns = now
        is_ready = bool(select.select([self._fd], [], [], 0)[0])
        if not self.is_terminal:
            return self._lines.feed((os.read(self._fd, 4096) or None) if is_ready else b"")
        try:
            return self._typed.feed(os.read(self._fd, 4096) if is_ready else b"")
        except OSError:  # the terminal has closed; a signal tells the rest
            return []
