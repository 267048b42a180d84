"""What was said, with the clock: the newest at the bottom, long sentences on several rows; scrolled and searched."""

from __future__ import annotations

import time
from functools import lru_cache

from rich.cells import cell_len

from edgevla.monitor.model import MonitorModel
from edgevla.monitor.panels.marks import title
from edgevla.monitor.rows import Cell, Row, clean, column
from edgevla.monitor.said import Sentence
from edgevla.monitor.standing import ALARM, Standing, duration

STYLES = {"info": "", "warning": "yellow", "error": "bold red", "stop": ALARM}
MARKS = {"info": " ", "warning": "!", "error": "‼", "stop": "‼"}
"""What the colours say, for who sees none."""
INDENT = 12
"""Of the rows that go on: below what stands after the clock."""
WRAPPED = 4
"""Rows of one sentence at most."""


def events(model: MonitorModel, standing: Standing, width: int, height: int, now_ns: int) -> list[Row]:
    """Silent nodes come last, because silence is the worst news."""
    said = model.said
    silent = model.silent(now_ns) if standing.is_live else {}
    quiet: list[Row] = [
        ((f" {clean(source)} has been silent for {duration(age)}", "bold red"),)
        for source, age in silent.items()
    ]
    room = max(0, height - 1 - len(quiet))
    found = said.found()
    shown = found[: len(found) - said.back]
    rows: list[Row] = []
    n = 0
    for sentence in reversed(shown):
        block = _sentence(sentence, width)
        if len(rows) + len(block) > room:
            if not rows:
                rows = block[:room]
            break
        rows, n = block + rows, n + 1
    cells: list[Cell] = []
    if said.words:
        cells.append((f"with “{clean(said.words)}”: {len(found)} of {len(said.sentences)}", "cyan"))
    if len(shown) > n:
        cells.append((f"{len(shown) - n} older above", "dim"))
    if said.back:
        cells.append((f"{said.back} newer below", "yellow"))
    cells.append(("/ searches", "dim"))
    return [title("events", width, *cells), *rows, *quiet]


def _sentence(sentence: Sentence, width: int) -> list[Row]:
    clock = time.strftime("%H:%M:%S", time.localtime(sentence.clock_s))
    source = clean(sentence.source)
    often = f" ({sentence.n} times)" if sentence.n > 1 else ""
    first = f" {clock} {MARKS[sentence.severity]} {source}: "
    indent = min(len(first), INDENT)
    text = clean(sentence.text) + often
    room = max(8, width)
    lines = wrapped(text, max(1, room - cell_len(first)), max(1, room - indent))
    style = STYLES[sentence.severity]
    head: Row = ((f" {clock} ", "dim"), (f"{MARKS[sentence.severity]} ", style), (f"{source}: ", "dim"))
    rows: list[Row] = [
        (*head, (line, style)) if i == 0 else ((" " * indent, ""), (line, style))
        for i, line in enumerate(lines)
    ]
    return rows or [head]


@lru_cache(maxsize=256)
def wrapped(text: str, first: int, rest: int) -> tuple[str, ...]:
    """Whole words where they fit, the first line in `first` cells, WRAPPED lines at most: a wide character takes two."""
    lines = [""]

    def fits(more: str) -> bool:
        return cell_len(lines[-1] + more) <= (first if len(lines) == 1 else rest)

    for word in text.split():
        gap = " " if lines[-1] else ""
        if not fits(gap + word) and cell_len(word) <= rest:
            lines.append(word)
            continue
        for character in gap + word:
            if not fits(character):
                lines.append("")
            lines[-1] += character
        if len(lines) > WRAPPED:
            break
    if len(lines) > WRAPPED:
        lines = lines[:WRAPPED]
        lines[-1] = column(lines[-1] + " …", min(rest, cell_len(lines[-1]) + 2))
    return tuple(lines)
