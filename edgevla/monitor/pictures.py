"""Thumbnails in half blocks: two pixels per character, upper and lower; or by the terminal's own graphics.

Pictures are most of what a monitor writes. So a cell is drawn anew only when it has changed visibly (a sensor's noise
is no change), colours are rounded so that neighbours share one, and a row's escape codes are made once.
"""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

from edgevla.monitor.graphics import FIRST_ID, MOST_CELLS, Graphics, placeholders
from edgevla.monitor.rows import Lines, Row, clean, fitted, style_of

VISIBLE = 12
"""Of 255: a smaller change of a pixel is not drawn."""
SHADES = " ░▒▓█"
ROUNDING = 8
"""Colours are multiples of this."""


def decoded(jpeg: bytes) -> np.ndarray | None:
    """uint8 (H, W, 3) RGB; None where it is no picture."""
    import cv2  # half of the monitor's start-up time, and the first picture comes later

    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    return None if image is None else np.ascontiguousarray(image[..., ::-1])


def extent(image: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of the largest picture of `width` x `height` cells, which are twice as high as wide."""
    scale = min(width / image.shape[1], 2 * height / image.shape[0])
    return max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale) // 2)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (rows, columns, 2, 3): the largest picture of `width` x `height` cells, not distorted."""
    import cv2

    columns, rows = extent(image, width, height)
    small = cv2.resize(image, (columns, 2 * rows), interpolation=cv2.INTER_AREA)
    return small.reshape(rows, 2, columns, 3).transpose(0, 2, 1, 3)


class HalfBlocks:
    """One picture as it is on the screen, before its colours are rounded.

    cells: uint8 (rows, columns, 2, 3), upper and lower pixel.
    """

    def __init__(self) -> None:
        self.cells = np.zeros((0, 0, 2, 3), np.uint8)
        self.strips: list[Strip] = []

    def show(self, cells: np.ndarray, width: int) -> list[Region]:
        """Takes what has changed visibly; where that is. width: of the lines, which go on empty."""
        is_new = cells.shape != self.cells.shape
        if is_new:
            self.cells = np.zeros_like(cells)
            self.strips = [Strip.blank(width)] * len(cells)
        change = np.abs(cells.astype(np.int16) - self.cells).max(axis=(2, 3)) > VISIBLE
        change |= is_new
        self.cells = np.where(change[..., None, None], cells, self.cells)
        regions = []
        for y in np.flatnonzero(change.any(axis=1)).tolist():
            self.strips[y] = _strip(self.cells[y] // ROUNDING * ROUNDING, width)
            columns = np.flatnonzero(change[y])
            regions.append(Region(int(columns[0]), y, int(columns[-1] - columns[0]) + 1, 1))
        return regions


def _strip(cells: np.ndarray, width: int) -> Strip:
    """uint8 (columns, 2, 3) as runs of equal colour."""
    flat = cells.reshape(len(cells), 6)
    starts = np.flatnonzero(np.r_[True, (flat[1:] != flat[:-1]).any(axis=1)]).tolist()
    segments = [
        Segment("▀" * (end - start), _style(flat[start].tobytes()))
        for start, end in zip(starts, [*starts[1:], len(flat)], strict=True)
    ]
    return Strip(segments, len(cells)).adjust_cell_length(width)


@lru_cache(maxsize=16384)
def _style(colours: bytes) -> Style:
    return Style(color=Color.from_rgb(*colours[:3]), bgcolor=Color.from_rgb(*colours[3:]))


class KittyPicture:
    """One picture by the terminal's graphics. Two numbers take turns, so that the old one stays until the new one is
    there. index: of the camera."""

    def __init__(self, graphics: Graphics, index: int) -> None:
        self._graphics, self._numbers = graphics, (FIRST_ID + 2 * index, FIRST_ID + 2 * index + 1)
        self.strips: list[Strip] = []

    def show(self, image: np.ndarray, width: int, height: int) -> None:
        """uint8 (H, W, 3) RGB, as large as `width` x `height` cells allow; lines of `width` cells name it."""
        columns, rows = extent(image, min(width, MOST_CELLS), min(height, MOST_CELLS))
        number, _ = self._numbers = self._numbers[::-1]
        self._graphics.send(number, image, columns, rows)
        self.strips = placeholders(number, columns, rows, width)


def shaded(cells: np.ndarray, width: int) -> list[Strip]:
    """uint8 (rows, columns, 2, 3) without colours: one of five shades per character."""
    levels = (cells.mean(axis=(2, 3)) * len(SHADES) / 256).astype(int)
    lines = ["".join(SHADES[level] for level in row) for row in levels.tolist()]
    return [Strip([Segment(line)], len(line)).adjust_cell_length(width) for line in lines]


class CameraView(Lines):
    """One camera: its name, and its newest picture. An old picture is grey, and its age stands beside the name."""

    def __init__(self, name: str, index: int, graphics: Graphics) -> None:
        super().__init__()
        self.camera, self._index, self._graphics = name, index, graphics
        self._blocks: HalfBlocks | KittyPicture = HalfBlocks()
        self._title: Row = ()
        self._shown: tuple[object, ...] = ()
        self._is_readable = True

    @property
    def room(self) -> int:
        """Cells beside number and name."""
        return 0 if self.box is None else self.box.width - len(self.camera) - 3

    def show(self, number: int, jpeg: bytes | None, note: str, is_old: bool) -> None:
        """number: the key that enlarges it. jpeg: None before the first picture. note: stands after the name."""
        if self.box is None or self.box.width < 1 or self.box.height < 2:
            return
        width, height = self.box.width, self.box.height
        is_graphic = self._graphics.is_on(self.app.console.color_system)
        shown = (jpeg, is_old, width, height, is_graphic and self._graphics.n_begun)
        is_other = shown[2:] != self._shown[2:]
        if is_other or (shown != self._shown and (self._graphics.keeps_up or not is_graphic)):
            if is_other:
                self._blocks = KittyPicture(self._graphics, self._index) if is_graphic else HalfBlocks()
                self._title = ()
                self.refresh()
            self._shown = shown
            self._draw(jpeg, is_old, width, height - 1)
        is_bad = is_old or not self._is_readable
        title: Row = (
            (f"{number} ", "dim"),
            (clean(self.camera), "bold"),
            (f" {note if self._is_readable else 'cannot be read'}", "bold red" if is_bad else "dim"),
        )
        title = fitted(title, width)
        if title != self._title:
            self._title = title
            self.refresh(Region(0, 0, width, 1))
        head = Strip([Segment(text, style_of(style)) for text, style in title], width)
        self.strips = [head, *self._blocks.strips]

    def _draw(self, jpeg: bytes | None, is_old: bool, width: int, height: int) -> None:
        if jpeg is None:
            return
        image = decoded(jpeg)
        self._is_readable = image is not None
        if image is None:
            return
        if is_old:
            image = np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
        if isinstance(self._blocks, KittyPicture):
            self._blocks.show(image, width, height)
            self.refresh(Region(0, 1, width, height))
        elif os.environ.get("NO_COLOR"):
            self._blocks.strips = shaded(fit(image, width, height), width)
            self.refresh(Region(0, 1, width, height))
        elif regions := self._blocks.show(fit(image, width, height), width):
            self.refresh(*(region.translate((0, 1)) for region in regions))
