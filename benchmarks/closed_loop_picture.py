"""The closed-loop suite for the eye: success and seam against delay, a column per task, the same colours throughout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {
    "sync": "#000000",
    "async": "#0072B2",
    "async blend 10": "#56B4E9",
    "ensemble": "#009E73",
    "rtc": "#D55E00",
}
MARKERS = dict(zip(COLOURS, "soD^v", strict=True))
TITLES = {
    "rest": "cube at rest",
    "conveyor_slow": "slow conveyor",
    "conveyor": "conveyor",
    "conveyor_fast": "fast conveyor",
    "jump": "cube that jumps",
    "two": "two equal cubes",
    "pick_place": "pick and place (MuJoCo)",
    "transfer_cube": "transfer cube (MuJoCo)",
}
DPI = 110


def draw(studies: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """studies: per name, fp32 cells without a control, those of one execution at several delays.

    Success: what all training seeds made of all places, Wilson 95 %. Seam: deg per tick squared, bootstrap 95 %.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 + 2.9 * len(studies), 6.0), layout="constrained")
    axes: Any = figure.subplots(2, len(studies), sharex=True, sharey="row", squeeze=False)
    for column, (name, cells) in enumerate(studies.items()):
        ways = [way for way in COLOURS if any(_way(cell) == way for cell in cells)]
        for place, way in enumerate(ways):
            mine = [cell for cell in cells if _way(cell) == way]
            nudge = 5.0 * (place - (len(ways) - 1) / 2)
            _line(axes[0, column], way, nudge, _success(mine))
            _line(axes[1, column], way, nudge, _seams(mine))
        axes[0, column].set_title(TITLES[name], fontsize=11)
        axes[1, column].set_xlabel("delay of a chunk (ms)", fontsize=10)
        for axis in axes[:, column]:
            axis.grid(alpha=0.25)
            axis.tick_params(labelsize=9)
            axis.set_xticks(sorted({cell["delay_ms"] for cell in cells}))
    axes[0, 0].set_ylim(-3, 103)
    axes[0, 0].set_ylabel("success (%)", fontsize=10)
    axes[1, 0].set_ylim(0, None)
    axes[1, 0].set_ylabel("seam: 95th percentile of the\ngoals' kink (deg per tick²)", fontsize=10)
    shown = {line.get_label(): line for axis in axes[0] for line in axis.containers}
    figure.legend(
        [shown[way] for way in COLOURS if way in shown], [way for way in COLOURS if way in shown],
        loc="outside upper center", ncols=len(shown), fontsize=10, frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=DPI, format="png")


def _way(cell: dict[str, Any]) -> str:
    return cell["execution"] + (f" blend {cell['blend']}" if cell["blend"] else "")


def _line(axis: Any, way: str, nudge: float, points: list[tuple[float, float, float, float]]) -> None:
    """points: delay, value, low, high."""
    if not points:
        return
    x, y, low, high = np.array(sorted(points)).T
    axis.errorbar(
        x + nudge, y, yerr=[(y - low).clip(0), (high - y).clip(0)], color=COLOURS[way], marker=MARKERS[way],
        ms=5, lw=1.6, elinewidth=1.0, capsize=2.5, label=way,
    )  # fmt: skip


def _success(cells: list[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    from edgevla.evaluation.statistics import wilson

    points = []
    for delay in {cell["delay_ms"] for cell in cells}:
        here = [cell["aggregated"] for cell in cells if cell["delay_ms"] == delay]
        n, good = sum(a["n_episodes"] for a in here), sum(a["n_success"] for a in here)
        low, high = wilson(good, n)
        points.append((delay, 100 * good / n, 100 * low, 100 * high))
    return points


def _seams(cells: list[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    """Of the first training seed that has one: intervals of several do not add up."""
    points: dict[float, tuple[float, float, float, float]] = {}
    for cell in cells:
        p95 = cell["seams"]["p95"]
        if p95["value"] is not None and p95["interval"] is not None:
            points.setdefault(cell["delay_ms"], (cell["delay_ms"], p95["value"], *p95["interval"]))
    return list(points.values())
