"""A scene as one picture: frames of every camera at even times, and below them every joint, on the same axis of time.

Laid out in inches by hand: a frame stands above the moment at which it was taken, whatever its camera's shape.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.errors import EdgeVLAError
from edgevla.flight.picture import BAD, MEASURED, SENT, WANTED, WARN
from edgevla.view.scene import Pictures, Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, LEFT, RIGHT = 14.0, 1.7, 0.25
HEADER, GAP, FOOTER = 0.75, 0.08, 0.55
SLOTS = 8
TALLEST = 2.0
"""Inches of a frame at most."""
GOOD = "#2e8b57"
FRAME_LINE = "#c2c2c2"
LINES: dict[str, dict[str, Any]] = {
    "state": {"color": MEASURED, "lw": 2.6, "alpha": 0.3},
    "measured": {"color": MEASURED, "lw": 2.6, "alpha": 0.3},
    "sent": {"color": SENT, "lw": 1.1},
    "action": {"color": WANTED, "lw": 1.0},
    "wanted": {"color": WANTED, "lw": 0.9},
}
"""How each table is drawn, as in a run's timeline."""
MOST_POINTS = 6000
LONGEST_NAME = 20


def write_sheet(scene: Scene, path: Path) -> list[str]:
    """PNG; what could not be drawn, in sentences.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. OSError: it cannot be written.
    """
    figure, problems = draw(scene)
    figure.savefig(path, dpi=110)
    return problems


def draw(scene: Scene) -> tuple[Figure, list[str]]:
    from matplotlib.figure import Figure

    problems: list[str] = []
    strips = [_strip(scene, name, pictures, problems) for name, pictures in scene.cameras.items()]
    joints = scene.joints
    joint = 0.95 if len(joints) <= 8 else 0.6
    heights = [0.22 * bool(strips), *(strip.height + GAP for strip in strips), 0.12]
    height = HEADER + sum(heights) + joint * len(joints) + FOOTER
    figure = Figure(figsize=(WIDTH, height))

    def box(top: float, tall: float) -> Any:
        """Axes over the whole axis of time; top, tall: inches from the top."""
        return figure.add_axes(
            (LEFT / WIDTH, 1 - (top + tall) / height, (WIDTH - LEFT - RIGHT) / WIDTH, tall / height)
        )

    _header(figure, scene, height)
    y = HEADER + heights[0]
    for k, strip in enumerate(strips):
        strip.draw(box(y, strip.height), is_first=k == 0)
        y += strip.height + GAP
    y += heights[-1]
    moments = sorted({t for strip in strips for t in strip.times})
    for k, name in enumerate(joints):
        axis = box(y + k * joint, joint * 0.86)
        _joint(axis, scene, name, moments)
        axis.tick_params(labelbottom=k == len(joints) - 1)
        if k == len(joints) - 1:
            axis.set_xlabel(f"{scene.clock} (s)", fontsize=9)
    return figure, problems


def _header(figure: Figure, scene: Scene, height: float) -> None:
    """Title on the left; on the right the outcome, where it is known, and the legend: neither lies on data."""
    from matplotlib.lines import Line2D

    first, _, second = scene.title.partition("\n")
    top = 1 - 0.12 / height
    figure.text(0.012, top, textwrap.shorten(first, 120, placeholder=" ..."), fontsize=11, va="top")
    figure.text(
        0.012,
        1 - 0.38 / height,
        textwrap.shorten(second, 120, placeholder=" ..."),
        fontsize=9,
        va="top",
        color="#555555",
    )
    if scene.outcome is not None:
        colour = GOOD if scene.outcome.is_good else BAD
        figure.text(1 - RIGHT / WIDTH, top, scene.outcome.words, fontsize=10, va="top", ha="right", color="white",
                    bbox={"boxstyle": "round,pad=0.25", "fc": colour, "ec": "none"})  # fmt: skip
    handles = [Line2D([], [], label=name, **LINES[name]) for name in scene.tables]
    if handles:
        corner = (1 - RIGHT / WIDTH, 1 - 0.34 / height)
        figure.legend(handles=handles, ncols=len(handles), loc="upper right", bbox_to_anchor=corner,
                      fontsize=9, frameon=False, borderaxespad=0)  # fmt: skip


class _Strip:
    """Frames of one camera. frames: slot -> picture; times: of each, when it was taken."""

    def __init__(
        self, scene: Scene, name: str, frames: Mapping[int, np.ndarray], times: Sequence[float], fault: str
    ) -> None:
        self.name, self.frames, self.times, self.fault = name, frames, times, fault
        self.span = scene.span
        self.slot = (WIDTH - LEFT - RIGHT) / SLOTS
        tallest = max((f.shape[0] / f.shape[1] for f in frames.values()), default=0.5)
        self.height = min(TALLEST, 0.97 * self.slot * tallest)

    def draw(self, axis: Any, is_first: bool) -> None:
        """Onto axes that span the whole time."""
        seconds_per_inch = (self.span[1] - self.span[0]) / (self.slot * SLOTS)
        axis.set_xlim(*self.span)
        axis.set_ylim(0, self.height)
        axis.set_axis_off()
        axis.set_autoscale_on(False)
        for (place, frame), time in zip(self.frames.items(), self.times, strict=True):
            tall = min(self.height, 0.97 * self.slot * frame.shape[0] / frame.shape[1])
            half = tall * frame.shape[1] / frame.shape[0] * seconds_per_inch / 2
            center = self.span[0] + (place + 0.5) * self.slot * seconds_per_inch
            box = (center - half, center + half, self.height - tall, self.height)
            axis.imshow(frame, extent=box, aspect="auto", interpolation="antialiased")
            if is_first:
                axis.annotate(f"{time:.1f} s", (center, self.height), xytext=(0, 3), textcoords="offset points",
                              fontsize=8, ha="center", va="bottom", color="#555555", annotation_clip=False)  # fmt: skip
        label = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": 8}
        size = "".join(f"\n{f.shape[1]}x{f.shape[0]}" for f in [*self.frames.values()][:1])
        axis.annotate(f"{_short(self.name)}{size}", (-0.045, 0.5), annotation_clip=False, **label)
        if self.fault:
            words = "\n".join(textwrap.wrap(self.fault, 130))
            axis.text(self.span[0], self.height / 2, words, fontsize=8, color=BAD, va="center")


def _strip(scene: Scene, name: str, pictures: Pictures, problems: list[str]) -> _Strip:
    """In each eighth of the time the picture nearest to its middle; none where none was taken in it."""
    begin, width = scene.span[0], (scene.span[1] - scene.span[0]) / SLOTS
    rows: dict[int, int] = {}
    for k in range(SLOTS):
        row = int(np.abs(pictures.times - (begin + (k + 0.5) * width)).argmin())
        rows.setdefault(int(np.clip((pictures.times[row] - begin) / width, 0, SLOTS - 1)), row)
    try:
        frames = dict(zip(rows, pictures.at(list(rows.values())), strict=True))
    except EdgeVLAError as error:
        problems.append(str(error))
        return _Strip(scene, name, {}, [], str(error))
    return _Strip(scene, name, frames, pictures.times[list(rows.values())].tolist(), "")


def _joint(axis: Any, scene: Scene, name: str, moments: Sequence[float]) -> None:
    axis.set_xlim(*scene.span)
    for time in moments:
        axis.axvline(time, color=FRAME_LINE, lw=0.7, ls=":", zorder=0)
    for said in scene.said:
        if said.severity != "info":
            axis.axvline(said.time, color=WARN if said.severity == "warning" else BAD, lw=0.8, alpha=0.7)
    for words, table in scene.tables.items():
        values = table.column(name)
        if values is not None:
            every = max(1, len(values) // MOST_POINTS)
            axis.plot(table.times[::every], values[::every], **LINES[words])
    unit = scene.unit(name)
    label = f"{_short(name)}\n({unit})" if unit else _short(name)
    axis.annotate(label, (-0.045, 0.5), xycoords="axes fraction", fontsize=8, ha="right", va="center",
                  annotation_clip=False)  # fmt: skip
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.2, axis="y")
    low, high = axis.get_ylim()
    least = {"deg": 2.0, "%": 2.0, "-100..100": 2.0, "rad": 0.035}.get(unit, 0.0)
    if high - low < least:
        axis.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
