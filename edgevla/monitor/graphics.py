"""Pictures by Kitty's graphics protocol, in terminals that show them in text cells (Kitty from 0.28 on, Ghostty).

A picture is sent under a number, and cells that name the number show it: Unicode placeholders, which are text to
whoever draws the screen. So what is written over them hides it, and nothing has to be painted again. Which terminal it
is, it says itself, some time after it was asked; nobody waits, and until then pictures are half blocks. A terminal that
has the protocol but no placeholders would show 160 strange characters, so it is known by name.
https://sw.kovidgoyal.net/kitty/graphics-protocol/#unicode-placeholders
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Callable

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from edgevla.monitor.cli import PicturesBy

ASKING = "\x1b[>0q\x1b[c"
"""Name and version; and what every terminal answers, so that it is known when no more will come."""
NAMED = "\x1bP>|"
ANSWER = re.compile(
    r"\x1b(?:P>\|(?P<name>[^\x1b\x07]*)|[PX\]^_][^\x1b\x07]*)(?:\x1b\\|\x07)|\x1b\[\?[\d;]*(?P<last>c)"
)
"""And every other string that a terminal says: no finger types one, and an `e` in an error of its graphics is no key."""
BEGUN = re.compile(r"\x1b(?:(?P<string>[PX\]^_][^\x00-\x1f]{0,4000}\x1b?)|\[(?:\?[\d;]*)?)?\Z")
"""The first part of one, where a read ended in it."""
AWAITED_S = 5.0
"""How long answers may be on their way when the terminal is given back."""
HELD_S, NAMED_S = 0.1, 1.0
"""How long a second part may take: a lone Escape looks like the first one; what begins with NAMED, no hand types."""
LEAVING_S = 0.3
"""Who leaves at once waits so long for answers, which else were typed into the shell."""
PLACEHOLDER = "\U0010eeee"
DIACRITICS = (
    "305 30d-30e 310 312 33d-33f 346 34a-34c 350-352 357 35b 363-36f 483-487 592-595 597-599 59c-5a1 5a8-5a9 "
    "5ab-5ac 5af 5c4 610-617 657-65b 65d-65e 6d6-6dc 6df-6e2 6e4 6e7-6e8 6eb-6ec 730 732-733 735-736 73a 73d "
    "73f-741 743 745 747 749-74a 7eb-7f1 7f3 816-819 81b-823 825-827 829-82d 951 953-954 f82-f83 f86-f87 "
    "135d-135f 17dd 193a 1a17 1a75-1a7c 1b6b 1b6d-1b73 1cd0-1cd1 "
)
"""Combining characters that number rows and columns, in the protocol's order; as many as a picture has at most."""
MOST_CELLS = 160
FIRST_ID = 16
"""The number is said as a colour, of which the first sixteen may be said otherwise. The alternate screen has its own."""
ROUNDING = 4
"""Colours are multiples of this: two thirds of the bytes, and a sensor's noise is more."""
PART = 4096
"""Characters of one part of a picture, by the protocol."""


def _numerals() -> list[str]:
    found: list[str] = []
    for run in "".join(DIACRITICS).split():
        first, _, last = run.partition("-")
        found += map(chr, range(int(first, 16), int(last or first, 16) + 1))
    return found


NUMERALS = _numerals()


def is_capable(name: str) -> bool:
    """Whether a terminal of this name and version shows pictures in placeholders."""
    found = re.match(r"kitty\((\d+)\.(\d+)", name)
    if found is not None:
        return (int(found[1]), int(found[2])) >= (0, 28)
    return name.lower().startswith("ghostty")


class Answers:
    """What the terminal answers, taken out of what is typed. now_s: monotonic.

    name: its own and its version. is_over: set when no more will come.
    """

    def __init__(self) -> None:
        self.name = ""
        self.is_over = threading.Event()
        self._asked_s: float | None = None
        self._read_s = 0.0
        self._held = ""

    def ask(self, now_s: float) -> str:
        """What to write to the terminal."""
        self._asked_s = now_s
        self.is_over.clear()
        return ASKING

    def feed(self, text: str, now_s: float) -> str:
        """What was typed. The begin of an answer is kept back until the rest has come, or does not come."""
        text, self._held, self._read_s = ANSWER.sub(self._take, self._held + text), "", now_s
        begun = BEGUN.search(text)
        if begun is not None and (begun["string"] or self._is_awaited):
            text, self._held = text[: begun.start()], begun[0]
        return text

    @property
    def _is_awaited(self) -> bool:
        return self._asked_s is not None and not self.is_over.is_set()

    def due(self, now_s: float) -> str:
        """What was kept back and is no answer."""
        patience_s = NAMED_S if self._held.startswith(NAMED) else HELD_S
        if not self._held or now_s - self._read_s < patience_s:
            return ""
        text, self._held = self._held, ""
        return text

    def _take(self, found: re.Match[str]) -> str:
        if found["name"] is not None:
            self.name = found["name"]
        elif found["last"]:
            self.is_over.set()
        return ""

    def wait(self, now_s: float) -> None:
        """Before the terminal is given back."""
        if self._asked_s is not None and now_s - self._asked_s < AWAITED_S:
            self.is_over.wait(LEAVING_S)


class Graphics:
    """Pictures of one screen. by: `auto` where the terminal can, else half blocks.

    answers: of the terminal. write: to it; None while it is not ours. n_begun: how often it became ours, or was
    cleared: each time it has no picture yet. keeps_up: whether it has taken all that was written before this `look`.
    """

    def __init__(self, by: PicturesBy = "blocks") -> None:
        self._by: PicturesBy = "blocks" if os.environ.get("NO_COLOR") else by
        self.answers = Answers()
        self.write: Callable[[str], None] | None = None
        self.n_begun = 0
        self.keeps_up = True
        self._is_behind: Callable[[], bool] = lambda: False
        self._shown: set[int] = set()

    def begin(self, write: Callable[[str], None], is_behind: Callable[[], bool]) -> None:
        """The terminal is ours from now on. is_behind: whether it has something left to take."""
        self.write, self._is_behind = write, is_behind
        self.n_begun += 1
        if self._by == "auto" and not self.answers.name:
            write(self.answers.ask(time.monotonic()))

    def look(self) -> None:
        """Before anything is drawn: a line that is too slow for all of it gets fewer screens, not late ones."""
        self.keeps_up = not self._is_behind()

    def forget(self) -> None:
        """Pictures are sent anew: whoever has cleared the terminal has cleared them from its memory."""
        self.n_begun += 1

    def end(self) -> None:
        """It will be somebody else's: no picture stays in its memory, and no answer is on its way."""
        self.answers.wait(time.monotonic())
        for number in sorted(self._shown):
            if self.write is not None:
                self.write(f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\")
        self._shown.clear()
        self.write = None

    def is_on(self, colours: str | None) -> bool:
        """Whether pictures go this way. colours: what the screen can write, as Rich calls it."""
        is_wanted = self._by == "kitty" or (self._by == "auto" and is_capable(self.answers.name))
        return is_wanted and self.write is not None and colours in ("256", "truecolor")

    def send(self, number: int, image: np.ndarray, columns: int, rows: int) -> None:
        """uint8 (H, W, 3) RGB, to be shown by `placeholders(number, columns, rows)`; in place of what was there."""
        import cv2

        bgr = np.ascontiguousarray(image[..., ::-1] // ROUNDING * ROUNDING)
        png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        data = base64.b64encode(png).decode()
        head = f"a=T,U=1,i={number},c={columns},r={rows},f=100,q=2,"
        parts = [data[i : i + PART] for i in range(0, len(data), PART)]
        if self.write is not None:
            self._shown.add(number)
            self.write("".join(
                f"\x1b_G{'q=2,' if i else head}m={int(i < len(parts) - 1)};{part}\x1b\\" for i, part in enumerate(parts)
            ))  # fmt: skip


def placeholders(number: int, columns: int, rows: int, width: int) -> list[Strip]:
    """Lines of cells that show picture `number`; empty behind them, up to `width`."""
    style = Style(color=Color.from_ansi(number))
    return [
        Strip(
            [Segment("".join(PLACEHOLDER + NUMERALS[row] + NUMERALS[x] for x in range(columns)), style)], columns
        ).adjust_cell_length(width)
        for row in range(rows)
    ]  # fmt: skip
