"""What was found on a task, for the eye: success by start place, a panel per cell, and success against delay.

Blue circles succeeded, vermilion crosses failed: colours that colour-blind eyes tell apart, and shapes that need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.evaluation.verdicts import CellResult, Evaluated

if TYPE_CHECKING:
    pass

GOOD, BAD = "#0072B2", "#D55E00"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
PICTURE = "success.png"
MOST_COLUMNS = 4
DPI = 100
WIDTH_IN = 10.0


def write_picture(e: Evaluated, folder: Path) -> Path:
    """
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    curves = curves_of(e.results)
    columns = min(MOST_COLUMNS, max(2, len(e.results)))
    rows = -(-len(e.results) // columns)
    heights = [2.9 * rows] + ([3.6] if curves else [])
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.7), layout="constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    _places(parts[0, 0], e, rows, columns)
    if curves:
        _delays(parts[1, 0], curves)
    figure.suptitle(_heading(e), fontsize=12, x=0.01, ha="left")
    path = folder / PICTURE
    figure.savefig(path, dpi=DPI, format="png")
    return path


def _heading(e: Evaluated) -> str:
    n = max(r.n for r in e.results)
    way = "" if e.conditions.way == "lock-step" else f", {e.conditions.way}"
    return f"{e.conditions.task}, {n} place{'s' * (n != 1)} of seed {e.conditions.seed}{way}"


# -- by place -----------------------------------------------------------------------------------------------------


def _places(part: Any, e: Evaluated, rows: int, columns: int) -> None:
    axes = np.atleast_1d(part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for k, axis in enumerate(axes):
        if k >= len(e.results):
            axis.set_visible(False)
            continue
        _panel(axis, e.results[k])
        axis.tick_params(labelsize=9)
        if k % columns == 0:
            axis.set_ylabel("y (m)", fontsize=10)
        if k >= len(e.results) - columns:
            axis.set_xlabel("x (m)", fontsize=10)
            axis.tick_params(labelbottom=True)


def _panel(axis: Any, r: CellResult) -> None:
    """One mark per episode where its first thing lay; a second thing is joined to it by a line."""
    for is_success, colour, marker in ((True, GOOD, "o"), (False, BAD, "x")):
        places = [e.place for e in r.episodes if e.success == is_success and len(e.place) >= 2]
        if not places:
            continue
        at = np.array(places)
        if at.shape[1] >= 4:
            for x, y, x2, y2 in at[:, :4]:
                axis.plot([x, x2], [y, y2], color=colour, lw=0.7, alpha=0.45)
        style = {"facecolors": "none"} if is_success else {}
        axis.scatter(at[:, 0], at[:, 1], s=26, marker=marker, linewidths=1.3, **_inked(colour, style))
    low, high = (100 * v for v in r.interval)
    axis.set_title(
        f"{r.name}\n{r.n_success} of {r.n}: {100 * r.share:.0f} % [{low:.0f}, {high:.0f}]", fontsize=10
    )
    axis.grid(alpha=0.25)


def _inked(colour: str, style: dict[str, str]) -> dict[str, str]:
    return {**style, "edgecolors": colour} if style else {"color": colour}


# -- against delay --------------------------------------------------------------------------------------------------


def curves_of(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Cells that differ in their delay only, by what they have in common; those with several delays."""
    n_bundles = len({r.cell.sha256 for r in results})
    curves: dict[str, list[CellResult]] = {}
    for r in results:
        c = r.cell
        words = [c.label] * (n_bundles > 1) + [c.way] + [c.control] * (c.control != "none")
        curves.setdefault(" ".join(words), []).append(r)
    return {
        name: sorted(cells, key=lambda r: r.cell.delay_ms) for name, cells in curves.items() if len(cells) > 1
    }


def _delays(part: Any, curves: dict[str, list[CellResult]]) -> None:
    """Success with its interval; curves stand a little beside each other, so that equal ones are seen."""
    axis = part.subplots()
    delays = sorted({r.cell.delay_ms for cells in curves.values() for r in cells})
    nudge = 0.012 * (delays[-1] - delays[0])
    for k, (name, cells) in enumerate(curves.items()):
        x = np.array([r.cell.delay_ms for r in cells]) + nudge * (k - (len(curves) - 1) / 2)
        y = np.array([100 * r.share for r in cells])
        ends = np.array([r.interval for r in cells]).T * 100
        below, above = (y - ends[0]).clip(0), (ends[1] - y).clip(0)
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        axis.errorbar(
            x, y, yerr=[below, above], color=colour, marker=marker, ms=6, lw=1.8, elinewidth=1.2,
            capsize=3, label=name,
        )  # fmt: skip
    axis.set_ylim(-3, 103)
    axis.set_xticks(delays)
    axis.set_xlabel("delay from request to chunk (ms)", fontsize=10)
    axis.set_ylabel("success (%), 95 % interval", fontsize=10)
    axis.tick_params(labelsize=9)
    axis.grid(alpha=0.25)
    part.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=10, frameon=False)
