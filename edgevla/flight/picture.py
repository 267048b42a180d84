"""A run's timeline as one picture: what was out of the ordinary on top, every joint below, on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.flight.findings import LIMIT, RATE, RunFinding, numbered
from edgevla.flight.frames import Glimpse, draw_glimpses
from edgevla.flight.reader import Run
from edgevla.flight.story import UNITS, clock, stamp
from edgevla.messages import MODES

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

WANTED, SENT, MEASURED = "#1f77b4", "#ff7f0e", "#222222"
SEEN = "#6a3d9a"
BAD, WARN, QUIET = "#d62728", "#e08a00", "#999999"
MODE_COLOURS = {
    "running": "#9fd3a5",
    "holding": "#f5d98b",
    "paused": "#d5d5d5",
    "homing": "#b8cdea",
    "emergency": "#e78a86",
    "stopped": "#ececec",
    "idle": "#f6f6f6",
}
ON = ("running", "holding", "paused", "homing", "emergency")
LANE_OF = {
    "stale": "no action",
    "late_tick": "late",
    "late_chunk": "late",
    "chunks": "late",
    "unread": "bus",
    "bus": "bus",
    "lost": "bus",
}
CHUNKS = ("#4c78a8", "#9ecae9")
LANES = ("mode", "chunks", "jumps", "clipped", "no action", "late", "bus", "events")
MOST_POINTS = 6000
TIMELINE_WIDTH, PICTURE_WIDTH = 14.0, 4.2
"""Inches; the second of each observation beside the timeline."""
WINDOW_S = 2.0
AFTER_NS = 500_000_000


def write_picture(
    run: Run, found: list[RunFinding], path: Path, at_ns: int | None = None, shown: Sequence[Glimpse] = ()
) -> None:
    """PNG. at_ns: only the seconds around a moment. shown: what the policy saw then, drawn beside them.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. OSError: it cannot be written.
    """
    draw(run, found, at_ns, shown).savefig(path, dpi=110)


def draw(
    run: Run, found: list[RunFinding], at_ns: int | None = None, shown: Sequence[Glimpse] = ()
) -> Figure:
    from matplotlib.figure import Figure

    d = len(run.joints)
    height = 0.95 if d <= 8 else 0.7
    seen = [glimpse for glimpse in shown if glimpse.images]
    beside = PICTURE_WIDTH * len(seen)
    figure = Figure(figsize=(TIMELINE_WIDTH + beside, 3.4 + height * d), layout="constrained")
    if at_ns is None or not seen:
        _timeline(figure, run, found, at_ns, height, seen)
        return figure
    (left, right), *_ = figure.subfigures(1, 2, squeeze=False, width_ratios=[TIMELINE_WIDTH, beside])
    _timeline(left, run, found, at_ns, height, seen)
    draw_glimpses(right, run, at_ns, seen)
    return figure


def _timeline(
    figure: Figure | SubFigure,
    run: Run,
    found: list[RunFinding],
    at_ns: int | None,
    height: float,
    beside: Sequence[Glimpse],
) -> None:
    d = len(run.joints)
    first, last = _span(run, at_ns)
    ratios = [2.4 / height, *[1.0] * d]
    axes = np.atleast_1d(figure.subplots(1 + d, 1, sharex=True, height_ratios=ratios))
    rows = _rows(run, first, last)
    shown = [f for f in found if f.until_ns >= first and f.ns <= last]
    marks = [(n, f) for n, f in numbered(found) if f in shown]
    _lanes(axes[0], run, rows, shown, first, last)
    for j in range(d):
        _joint(axes[1 + j], run, rows, j, marks)
    axes[-1].set_xlim(float(run.seconds(first)), float(run.seconds(last)))
    axes[-1].set_xlabel("run time (s)", fontsize=9)
    figure.suptitle(_title(run, first, last), fontsize=10, x=0.01, ha="left")
    if d:
        handles = axes[1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    figure.align_ylabels(axes)
    if at_ns is not None:
        _mark_moment(axes, run, at_ns, beside)


def _mark_moment(axes: np.ndarray, run: Run, at_ns: int, shown: Sequence[Glimpse]) -> None:
    """A line through all at the moment; where what stands beside was seen, its letter on the edge."""
    for axis in axes:
        axis.axvline(float(run.seconds(at_ns)), color=MEASURED, lw=1.0, ls=(0, (4, 3)))
    for glimpse in shown:
        at = float(run.seconds(glimpse.seen.observed_ns))
        for axis in axes:
            axis.axvline(at, color=SEEN, lw=0.9, ls=":")
        axes[0].annotate(glimpse.letter, (at, 1.0), xycoords=("data", "axes fraction"), fontsize=8,
                         color="white", ha="center", va="center", annotation_clip=True,
                         bbox={"boxstyle": "circle,pad=0.2", "fc": SEEN, "ec": "white", "lw": 0.6})  # fmt: skip


def _span(run: Run, at_ns: int | None) -> tuple[int, int]:
    """From switching on until shortly after the end, whose cause shall be seen; or around a moment."""
    t = run.ticks["observed_ns"]
    if not len(t):
        return run.begun_ns, run.begun_ns + 1_000_000_000
    begin, end = int(t.min()), int(t.max())
    if at_ns is not None:
        around = round(WINDOW_S * 1e9)
        return max(begin, at_ns - around), min(end, at_ns + around)
    on = t[np.isin(run.ticks["mode"], [MODES.index(m) for m in ON])]
    return (int(on.min()), min(end, int(on.max()) + AFTER_NS)) if len(on) else (begin, end)


def _rows(run: Run, first: int, last: int) -> np.ndarray:
    """Ticks to draw: all, or every so many of a long run."""
    t = run.ticks["deadline_ns"]
    rows = np.flatnonzero((t >= first) & (t <= last))
    return rows[:: max(1, len(rows) // MOST_POINTS)]


def _title(run: Run, first: int, last: int) -> str:
    what = [str(run.about.get("robot", "run")), Path(str(run.about.get("bundle", ""))).name]
    begun = f"begun at {clock(run, run.begun_ns)}, " if run.wall_ns else ""
    named = ", ".join(part for part in what if part)
    return f"{named}: {begun}{stamp(run, first)} to {stamp(run, last)} of {run.folder.name}"


# -- what was out of the ordinary -------------------------------------------------------------------------------


def _lanes(axis: Any, run: Run, rows: np.ndarray, found: list[RunFinding], first: int, last: int) -> None:
    place = {lane: len(LANES) - 1 - k for k, lane in enumerate(LANES)}
    _modes(axis, run, rows, place["mode"])
    _chunks(axis, run, rows, place["chunks"], last)
    t = run.ticks
    inside = (t["deadline_ns"] >= first) & (t["deadline_ns"] <= last)
    clipped = (
        inside & ((t["limited_by"] & (LIMIT | RATE)) != 0).any(axis=1) & (t["mode"] == MODES.index("running"))
    )
    _ticks(axis, run.seconds(t["deadline_ns"][clipped]), place["clipped"], WARN, 0.8)
    for f in found:
        begin, end = float(run.seconds(f.ns)), float(run.seconds(f.until_ns))
        if f.kind in ("seam", "jump", "measured"):
            size = 4 + 5 * min(1.0, f.size / 2)
            axis.plot(begin, place["jumps"], "v", color=BAD, ms=size, mec="white", mew=0.5)
        elif f.kind in LANE_OF:
            width = max(end - begin, (last - first) / 1e9 / 400)
            colour = BAD if f.kind in ("stale", "unread") else WARN
            axis.barh(place[LANE_OF[f.kind]], width, left=begin, height=0.6, color=colour)
        elif f.kind == "event":
            colour = {"info": QUIET, "warning": WARN}.get(f.fields["severity"], BAD)
            above = 3 + (colour != QUIET) + (colour == BAD)
            axis.plot(begin, place["events"], "o", color=colour, ms=5, mec="white", mew=0.5, zorder=above)
    axis.set_yticks(list(place.values()), list(place), fontsize=8)
    axis.set_ylim(-0.6, len(LANES) - 0.4)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    for y in range(len(LANES)):
        axis.axhline(y - 0.5, color="#eeeeee", lw=0.8, zorder=0)


def _modes(axis: Any, run: Run, rows: np.ndarray, y: int) -> None:
    mode, at = run.ticks["mode"][rows], run.seconds(run.ticks["deadline_ns"][rows])
    width = float(at[-1] - at[0]) if len(at) else 1.0
    for i, j in _runs(mode):
        name = MODES[int(mode[i])]
        length = at[min(j, len(at) - 1)] - at[i]
        axis.barh(y, length, left=at[i], height=0.8, color=MODE_COLOURS[name])
        if length > 0.07 * width:
            axis.text(at[i] + length / 2, y, name, ha="center", va="center", fontsize=7, color="#333333")


def _chunks(axis: Any, run: Run, rows: np.ndarray, y: int, last: int) -> None:
    """Which chunk was executed when, two shades in turn."""
    seq, at = run.ticks["chunk_seq"][rows], run.seconds(run.ticks["deadline_ns"][rows])
    spans = [(i, j) for i, j in _runs(seq) if seq[i] >= 0]
    width = float(at[-1] - at[0]) if len(at) else 1.0
    for n, (i, j) in enumerate(spans):
        length = at[min(j, len(at) - 1)] - at[i]
        axis.barh(y, length, left=at[i], height=0.6, color=CHUNKS[n % 2])
        if length > 0.022 * width:
            ink = "white" if n % 2 == 0 else MEASURED
            axis.text(at[i] + length / 2, y, str(seq[i]), ha="center", va="center", fontsize=6, color=ink)


def _ticks(axis: Any, at: np.ndarray, y: int, colour: str, height: float) -> None:
    axis.vlines(at, y - height / 2, y + height / 2, color=colour, lw=0.6, alpha=0.6)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """[first, after the last) of equal neighbours."""
    if not len(values):
        return []
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(cuts))


# -- joints -------------------------------------------------------------------------------------------------


def _joint(axis: Any, run: Run, rows: np.ndarray, j: int, marks: list[tuple[int, RunFinding]]) -> None:
    at = run.seconds(run.ticks["deadline_ns"][rows])
    position, wanted, goal = (run.ticks[name][rows, j] for name in ("position", "wanted", "goal"))
    # An end wants the rest pose at once, which would dwarf everything else.
    wanted = np.where(run.ticks["mode"][rows] == MODES.index("stopped"), np.nan, wanted)
    axis.plot(at, position, color=MEASURED, lw=2.6, alpha=0.3, label="measured")
    axis.plot(at, goal, color=SENT, lw=1.1, label="sent")
    axis.plot(at, wanted, color=WANTED, lw=0.9, label="wanted by the policy")
    low, high = axis.get_ylim()
    for number, f in marks:
        if f.joint == j:
            axis.axvline(float(run.seconds(f.ns)), color=BAD, lw=0.8, alpha=0.7)
            axis.annotate(str(number), (float(run.seconds(f.ns)), 1.0), xycoords=("data", "axes fraction"), fontsize=7,
                          color="white", ha="center", va="center", annotation_clip=True,
                          bbox={"boxstyle": "circle,pad=0.15", "fc": BAD, "ec": "white", "lw": 0.6})  # fmt: skip
    unit = UNITS.get(run.units[j], "").replace(" of 100", "-100..100").strip()
    name = f"{run.joints[j]}\n({unit})" if unit else run.joints[j]
    axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    least = {"deg": 2.0, "percent": 2.0, "range100": 2.0, "rad": 0.035}.get(run.units[j], 0.0)
    if high - low < least:
        middle = (low + high) / 2
        axis.set_ylim(middle - least / 2, middle + least / 2)
