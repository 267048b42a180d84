"""Small things that several panels show alike: numbers, titles, bars, ages."""

from __future__ import annotations

import math

from rich.cells import cell_len

from edgevla.monitor.rows import OLD, Cell, Row, clean, column
from edgevla.monitor.standing import duration

HEAD = "bold dim"
GAP: Cell = ("  ", "")


def title(words: str, width: int, *more: Cell) -> Row:
    """A rule with the panel's name, and what is worth saying beside it; what does not fit is left out."""
    cells: list[Cell] = [("─ ", OLD), (words, "bold"), (" ", "")]
    for cell in more:
        if sum(cell_len(text) for text, _ in [*cells, cell]) + 2 > width:
            break
        cells += [cell, (" ", "")]
    return (*cells, ("─" * max(0, width - sum(cell_len(text) for text, _ in cells)), OLD))


def joined(cells: list[tuple[Cell, ...]], width: int, gap: str = "  ") -> Row:
    """Groups of cells one after another; what does not fit is left out, whole."""
    made: list[Cell] = []
    for group in cells:
        more = [(gap, ""), *group] if made else list(group)
        if sum(cell_len(text) for text, _ in [*made, *more]) > width:
            continue
        made += more
    return tuple(made)


def measured(value: float, width: int, digits: int) -> str:
    return f"{round(value, digits) + 0.0:{width}.{digits}f}" if math.isfinite(value) else f"{'-':>{width}}"


def rate(per_s: float) -> str:
    """A rate for people: often per second, seldom per minute."""
    if per_s <= 0:
        return "0/s"
    if per_s < 0.5:
        return f"{60 * per_s:.0f}/min" if 60 * per_s >= 0.95 else "<1/min"
    return f"{per_s:.1f}/s" if per_s < 10 else f"{per_s:.0f}/s"


def old_title(words: str, first: int, since_ns: int | None, now_ns: int) -> Row:
    """A table's title that says, in its first column of `first` cells, how old the table is."""
    age = "" if since_ns is None else f"{duration(now_ns - since_ns)} old"
    return ((column(age, first), "red"), (words[first:], HEAD))


def short_name(name: str, width: int = 9) -> str:
    """`left_forearm_roll` -> `l for_rol`: enough to tell joints apart in nine cells."""
    side, name = "", clean(name)
    if name.startswith(("left_", "right_")):
        side, name = f"{name[0]} ", name.split("_", 1)[1]
    words = name.split("_")
    return (side + (words[0][:7] if len(words) == 1 else "_".join(word[:3] for word in words[:2])))[:width]


def clock(ns: int) -> str:
    """`12:43`, `1:02:03`."""
    seconds = ns // 1_000_000_000
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
