"""What a person sees while recording: sentences, and below them one line that is drawn anew, with clock and counts.

Without a terminal there are only the sentences; once nobody can read them (a closed terminal, the end of a pipe),
nothing: what is recorded does not depend on it.
"""

from __future__ import annotations

import select
import shutil
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from edgevla.progress import tell

REDRAW_S = 0.2
CLEAR = "\r\x1b[K"
BELL = "\a"
LEFT_OUT = {
    "paused_rows": "paused",
    "missed_moments": "missed",
    "rows_without_picture": "without a picture",
    "stale_pictures": "with an old picture",
}
"""Counters of a recording, in the words that follow a number of rows."""


class RecordScreen:
    """has_bell: whether `ring` makes a sound."""

    def __init__(self, stream: TextIO, *, has_bell: bool) -> None:
        self._stream, self._has_bell = stream, has_bell
        self._has_line = stream.isatty()
        self._shown, self._drawn_s = "", 0.0

    def say(self, text: str) -> None:
        """A sentence that stays; the line below is drawn again with the next `show`."""
        self._write(f"{CLEAR if self._shown else ''}{text}\n")
        self._shown = ""

    @property
    def n_cells(self) -> int:
        """Of the line at the bottom."""
        return shutil.get_terminal_size().columns - 1

    def show(self, line: str) -> None:
        """The line at the bottom, a few times a second at most, cut where the terminal ends."""
        now = time.monotonic()
        if not self._has_line or (self._shown and now - self._drawn_s < REDRAW_S):
            return
        if not select.select([], [self._stream], [], 0)[1]:  # a stalled ssh: waiting would cost rows
            return
        line = fitted(line, self.n_cells)
        if line != self._shown:
            self._write(CLEAR + line)
            self._shown, self._drawn_s = line, now

    def ring(self, n: int = 1) -> None:
        if self._has_bell:
            self._write(BELL * n)

    def close(self) -> None:
        if self._shown:
            self._write(CLEAR)
            self._shown = ""

    def _write(self, text: str) -> None:
        tell(text, self._stream, end="")


def fitted(line: str, n_cells: int) -> str:
    """As much of it as one line of a terminal holds, where a Chinese character takes two cells."""
    for at, character in enumerate(line):
        n_cells -= _cells(character)
        if n_cells < 0:
            return line[:at]
    return line


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@dataclass(frozen=True)
class LinePart:
    """Of the line at the bottom. short: what is left of it where all is too long; empty: nothing."""

    text: str
    short: str


def joined(parts: Sequence[LinePart], shortened: Sequence[LinePart], n_cells: int) -> str:
    """All parts in one line, those without a text left out. shortened: which of them give way to the others, the first
    first, as long as the line is longer than `n_cells`."""

    def line(short: Sequence[LinePart]) -> str:
        texts = [part.short if any(part is one for one in short) else part.text for part in parts]
        return " | ".join(filter(None, texts))

    tried = (line(shortened[:n]) for n in range(len(shortened)))
    return next((text for text in tried if _cells(text) <= n_cells), line(shortened))


def clock(seconds: float) -> str:
    """`1:07`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def left_out(now: Mapping[str, int], before: Mapping[str, int]) -> str:
    """`12 paused, 1 missed`: rows since `before` that are not in the episode, or are with a fault; empty: none."""
    gone = [(now.get(key, 0) - before.get(key, 0), words) for key, words in LEFT_OUT.items()]
    return ", ".join(f"{n} {words}" for n, words in gone if n > 0)
