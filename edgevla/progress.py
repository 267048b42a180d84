"""How far long work is: done of all, rate, what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO


class ProgressLine:
    """One line on a terminal, written over itself; elsewhere a line every ten seconds.

    what: plural of what is counted. out: None: nowhere.
    """

    def __init__(
        self,
        n_all: int,
        what: str,
        *,
        out: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n_all, self.what, self.out, self.clock = n_all, what, out, clock
        self._begun = self._shown_at = clock()
        self._is_over = False

    def show(self, done: int, remark: str = "") -> None:
        """remark: follows the rest."""
        if self.out is None:
            return
        now, is_terminal = self.clock(), self.out.isatty()
        if done >= self.n_all:
            if self._is_over and not is_terminal:
                return
            self._is_over = True
        if now - self._shown_at < (0.2 if is_terminal else 10.0) and done < self.n_all:
            return
        self._shown_at = now
        rate = done / max(now - self._begun, 1e-9)
        line = f"{done} of {self.n_all} {self.what}, {rate:{'.0f' if rate >= 100 else '.3g'}} a second"
        if 0 < done < self.n_all:
            line += f", {duration((self.n_all - done) / rate)} left"
        line += f", {remark}" if remark else ""
        if is_terminal:
            width = columns_of(self.out)
            tell("\r\x1b[K" + line[: width and width - 1], self.out, end="")
        else:
            tell(line, self.out)

    def close(self) -> None:
        """Leaves the terminal with an empty line to go on in."""
        if self.out is not None and self.out.isatty():
            tell("\r\x1b[K", self.out, end="")


def tell(text: str, out: TextIO, end: str = "\n") -> None:
    """Prints at once. Where whoever listened is gone (`| head`, a closed terminal, a full disk), long work goes on,
    and is told to nobody."""
    try:
        print(text, end=end, file=out, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def columns_of(out: TextIO) -> int | None:
    """How wide the terminal is; None where it does not say, or there is none."""
    return (os.get_terminal_size(out.fileno()).columns or None) if out.isatty() else None


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
