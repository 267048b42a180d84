"""The report's pictures: what the difference is by joint and horizon, and one chunk beside torch's. PNGs as base64."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.joint_units import joint_name
from edgevla.manifest import Manifest

from .gate import USUAL_PERCENT
from .parity import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, BAND, LINE, LIMIT = "#1f2933", "#7b8794", "#c5d9ec", "#2b6cb0", "#c2410c"
COLUMNS, WIDE = 3, 7
"""Panels side by side: of an arm, and of more joints than two rows of three hold."""


def horizon_picture(m: Manifest, comparison: Comparison) -> str:
    """Per joint, over the time after the observation: what half and 99 of 100 actions stay within, the largest, and
    what the rule allows."""
    error = np.abs(comparison.reference.astype(np.float64) - comparison.exported)  # (n, T, A)
    usual = comparison.parity.actions.p99_tolerance_per_joint or (0.0,) * error.shape[2]
    seconds = np.arange(error.shape[1]) / m.fps
    half, most = np.percentile(error, 50, axis=0), error.max(axis=0)
    often = np.percentile(error, USUAL_PERCENT, axis=0)
    figure, axes = _panels(m, 2.0)
    for joint, axis in enumerate(axes):
        axis.fill_between(seconds, 0, often[:, joint], color=BAND, lw=0, label="99 of 100 actions within")
        axis.plot(seconds, most[:, joint], color=LINE, lw=1, label="largest of all")
        axis.plot(seconds, half[:, joint], color=INK, lw=1, ls=":", label="half of the actions within")
        axis.axhline(usual[joint], color=LIMIT, lw=1.2, label="allowed for 99 of 100")
        axis.set_ylim(0, 1.15 * max(usual[joint], float(most[:, joint].max()), 1e-12))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=8.5, frameon=False)
    figure.supxlabel("seconds after the observation", fontsize=9, color=QUIET)
    return _png(figure)


def chunk_picture(m: Manifest, comparison: Comparison) -> str:
    """Per joint: the chunk of the sample that differs most, torch as a line, exported as dots on it."""
    i = worst_sample(comparison)
    seconds = np.arange(m.chunk_size) / m.fps
    figure, axes = _panels(m, 1.8)
    for joint, axis in enumerate(axes):
        axis.plot(seconds, comparison.reference[i, :, joint], color=BAND, lw=4, label="torch")
        axis.plot(seconds, comparison.exported[i, :, joint], color=LINE, lw=1.2, label="exported")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=8.5, frameon=False)
    figure.supxlabel("seconds after the observation", fontsize=9, color=QUIET)
    return _png(figure)


def worst_sample(comparison: Comparison) -> int:
    """Index of the sample whose actions differ most, as a share of the joints' ranges."""
    width = np.maximum(comparison.parity.actions.range_per_joint or 1.0, 1e-12)
    return int((np.abs(comparison.reference - comparison.exported) / width).max(axis=(1, 2)).argmax())


def _panels(m: Manifest, height: float) -> tuple[Figure, list[Any]]:
    """One panel per joint, titled with its name and unit."""
    from matplotlib.figure import Figure

    n = len(m.action.names)
    columns = min(n, COLUMNS if n <= 2 * COLUMNS else WIDE)
    rows = -(-n // columns)
    figure = Figure(figsize=(10.5, height * rows + 0.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    for axis in axes[n:]:
        axis.set_visible(False)
    for axis, name, unit in zip(axes, m.action.names, m.action.units, strict=False):
        axis.set_title(f"{joint_name(name)}, {unit}", fontsize=9, loc="left", color=INK)
        axis.tick_params(labelsize=7.5, colors=QUIET, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#cbd2d9")
        axis.margins(x=0.01)
    return figure, list(axes[:n])


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
