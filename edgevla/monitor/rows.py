"""Rows of styled text, as data: what a panel shows, and how a row is cut to its width.

A row is a tuple of (text, style) pairs, so that two of them can be compared: only a row that has changed is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from edgevla.monitor.layout import Box

Cell = tuple[str, str]
Row = tuple[Cell, ...]
OLD = "dim"
"""How everything looks that is not of now."""


def clean(text: str) -> str:
    """Text from elsewhere without what would move the cursor or hide something."""
    return "".join(c if c.isprintable() else "·" for c in text)


def column(text: str, width: int) -> str:
    """`text` in exactly `width` cells; what does not fit ends with `…`."""
    if cell_len(text) > width:
        text = set_cell_size(text, max(0, width - 1)) + ("…" if width else "")
    return text + " " * (width - cell_len(text))


def fitted(row: Row, width: int) -> Row:
    """The row in exactly `width` cells."""
    made: list[Cell] = []
    left = width
    for text, style in row:
        if left <= 0:
            break
        text = column(text, left) if cell_len(text) > left else text
        made.append((text, style))
        left -= cell_len(text)
    return (*made, (" " * left, "")) if left > 0 else tuple(made)


def rule(width: int) -> Row:
    return (("─" * width, OLD),)


def aged(row: Row) -> Row:
    """The same row, in grey."""
    return tuple((text, OLD) for text, _ in row)


@lru_cache(maxsize=256)
def style_of(words: str) -> Style:
    """Rich's words, with the terminal's own colours; without any where the user wants none (no-color.org)."""
    style = Style.parse(words)
    return style.without_color if os.environ.get("NO_COLOR") else style


class Lines(Widget):
    """A widget that is its lines, drawn once and kept: no borders, no background, no styles of a sheet to work out.

    box: where it stands; None: nowhere.
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.strips: list[Strip] = []
        self.box: Box | None = None

    def stand(self, box: Box | None) -> None:
        """From now on in this place."""
        if box == self.box:
            return
        self.box = box
        self.display = box is not None and box.width > 0 and box.height > 0
        if box is not None:
            self.styles.offset = (box.x, box.y)
            self.styles.width, self.styles.height = box.width, box.height

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of the part that is visible, and empty ones below them."""
        first, after = crop.column_span
        shown = [strip.crop(first, after) for strip in self.strips[crop.y : crop.bottom]]
        return shown + [Strip.blank(crop.width)] * (crop.height - len(shown))


class Panel(Lines):
    """Lines that are rows. `show` draws those that differ from what is there."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id)
        self._rows: list[Row] = []
        self._drawn = (0, 0)

    def show(self, rows: Sequence[Row]) -> None:
        """These rows, from the top; what is below them is empty."""
        if self.box is None:
            return
        width, height = self.box.width, self.box.height
        wanted = [fitted(row, width) for row in rows[:height]]
        wanted += [fitted((), width)] * (height - len(wanted))
        if (width, height) != self._drawn:
            self._drawn = (width, height)
            self._rows, self.strips = [()] * height, [Strip.blank(width)] * height
        changed = [y for y, (old, new) in enumerate(zip(self._rows, wanted, strict=True)) if old != new]
        for y in changed:
            self._rows[y] = wanted[y]
            self.strips[y] = Strip(
                [Segment(text, style_of(style)) for text, style in wanted[y] if text], width
            )
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))
