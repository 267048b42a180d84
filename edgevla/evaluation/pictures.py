"""What an evaluation found, for the eye: one page per episode (every joint over time, predicted chunks over what was
recorded), and the error by horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.evaluation.plan import EvaluatedFrame
from edgevla.evaluation.replayed import HOLD
from edgevla.evaluation.result import Evaluation, ResultRow
from edgevla.joint_units import joint_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORDED = "#222222"
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
QUIET = "#999999"


def write_pictures(e: Evaluation, folder: Path, n_pages: int) -> list[Path]:
    """`horizon.png`, and a page each of the n_pages episodes with the largest errors.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    written = [_save(_horizon(e), folder / "horizon.png")]
    for number in worst_episodes(e, n_pages):
        written.append(_save(_page(e, number), folder / f"episode-{number:03d}.png"))
    return written


def worst_episodes(e: Evaluation, n: int) -> list[int]:
    """Episodes by the first policy's error, the largest first; those without an error last."""
    by_episode = e.policies[0].figures.by_episode
    order = sorted(by_episode, key=lambda k: -np.nan_to_num(float(e.percent(by_episode[k][1])), nan=-1.0))
    return order[:n]


# -- a page per episode -------------------------------------------------------------------------------------


def _page(e: Evaluation, episode: int) -> Figure:
    from matplotlib.figure import Figure

    which = [i for i, f in enumerate(e.frames) if f.episode == episode]
    n, columns = len(e.joints), 2
    rows = -(-n // columns)
    figure = Figure(figsize=(12, 1.9 * rows + 1.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, squeeze=False)).ravel()
    for j, axis in enumerate(axes):
        if j >= n:
            axis.set_visible(False)
            continue
        _joint(axis, e, which, j)
        axis.set_title(_title(e, j), fontsize=9, loc="left")
        axis.tick_params(labelsize=8, labelbottom=j >= n - columns)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(_heading(e, episode), fontsize=10, x=0.01, ha="left")
    figure.supxlabel("seconds", fontsize=9)
    return figure


def _joint(axis: Any, e: Evaluation, which: Sequence[int], j: int) -> None:
    """One joint over an episode. which: the episode's frames, as indices."""
    frames = [e.frames[i] for i in which]
    recorded = e.actions[frames[0].row - frames[0].frame : frames[0].end, j]
    axis.plot(
        np.arange(len(recorded)) / e.dataset.fps, recorded, color=RECORDED, lw=4, alpha=0.25, label="recorded"
    )
    for p, colour, width in zip(e.policies, _colours(e.policies), _widths(e.policies), strict=True):
        for k, (frame, i) in enumerate(_chained(frames, which, p.n_action_steps)):
            chunk = p.chunks[i, : min(p.n_action_steps, frame.end - frame.row), j]
            at = (frame.frame + np.arange(len(chunk))) / e.dataset.fps
            axis.plot(at, chunk, color=colour, lw=width, label=None if k else p.name)
            axis.plot(at[:1], chunk[:1], "o", color=colour, ms=1.5 + width)
    axis.grid(alpha=0.25)
    axis.margins(x=0.01)
    _room(axis, e, j)


def _chained(
    frames: Sequence[EvaluatedFrame], which: Sequence[int], n_action_steps: int
) -> Iterator[tuple[EvaluatedFrame, int]]:
    """As `sync` would: a chunk where the one before ends, or as soon after it as one was predicted."""
    due = 0
    for frame, i in zip(frames, which, strict=True):
        if frame.frame >= due:
            yield frame, i
            due = frame.frame + n_action_steps


def _heading(e: Evaluation, episode: int) -> str:
    errors = [f"{p.name} {float(e.percent(p.figures.by_episode[episode][1])):.2g} %" for p in e.policies]
    overlap = e.policies[0].overlap
    standing = ""
    if overlap is not None and overlap.standing in ("held out", "trained on", "partly trained on"):
        standing = " (TRAINED ON)" if episode in overlap.trained else " (not trained on)"
    return (
        f"episode {episode}{standing}; mean error in % of range: {', '.join(errors)}\n"
        "chunks as sync executes them, a dot where each begins"
    )


def _title(e: Evaluation, j: int) -> str:
    return joint_name(e.joints[j]) + (f" ({e.units[j]})" if e.units[j] else "")


def _room(axis: Any, e: Evaluation, j: int) -> None:
    """A joint that hardly moves is not blown up to the panel's height."""
    low, high = axis.get_ylim()
    least = 0.05 * float(e.width[j])
    if high - low < least:
        middle = (low + high) / 2
        axis.set_ylim(middle - least / 2, middle + least / 2)


# -- error by horizon ---------------------------------------------------------------------------------------


def _horizon(e: Evaluation) -> Figure:
    """All joints together in percent of their range, then each in its own unit."""
    from matplotlib.figure import Figure

    n = len(e.joints)
    columns = min(n, 3 if n in (3, 5, 6, 9) else 4)
    rows = -(-n // columns)
    figure = Figure(figsize=(12, 3.6 + 1.8 * rows), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.4, 1.8 * rows])
    top, bottom = parts
    axis = top.subplots()
    _curves(axis, e, lambda x: e.percent(x.figures.horizon))
    axis.set_ylabel("mean of the joints, % of range", fontsize=9)
    episodes = f"{len(e.episodes)} episode{'s' * (len(e.episodes) != 1)}"
    title = f"mean absolute error by horizon; {len(e.frames)} frames of {episodes} of {e.dataset.root.name}"
    top.suptitle(title, fontsize=10, x=0.01, ha="left")
    top.legend(
        *axis.get_legend_handles_labels(), loc="outside upper right", ncols=8, fontsize=8, frameon=False
    )
    axes = np.atleast_1d(bottom.subplots(rows, columns, sharex=True, squeeze=False)).ravel()
    for j, small in enumerate(axes):
        if j >= n:
            small.set_visible(False)
            continue
        _curves(small, e, partial(_of_joint, j))
        small.set_title(_title(e, j), fontsize=8, loc="left")
        small.tick_params(labelbottom=j >= n - columns)
    bottom.supxlabel("seconds after the observation", fontsize=9)
    return figure


def _of_joint(j: int, x: ResultRow) -> np.ndarray:
    """Its error by horizon, (T,)."""
    return x.figures.horizon[:, j]


def _curves(axis: Any, e: Evaluation, of: Callable[[ResultRow], np.ndarray]) -> None:
    for b in e.baselines:
        values, style = of(b), "--" if b.name == HOLD else ":"
        axis.plot(np.arange(len(values)) / e.dataset.fps, values, style, color=QUIET, lw=1.3, label=b.name)
    for p, colour, width in zip(e.policies, _colours(e.policies), _widths(e.policies), strict=True):
        values = of(p)
        axis.plot(np.arange(len(values)) / e.dataset.fps, values, color=colour, lw=width, label=p.name)
    for k, n in enumerate(sorted({p.n_action_steps for p in e.policies})):
        label = None if k else "sync asks for the next chunk"
        axis.axvline(n / e.dataset.fps, color=QUIET, lw=0.9, alpha=0.5, label=label)
    axis.set_ylim(bottom=0)
    axis.margins(x=0.01)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)


def _widths(policies: Sequence[ResultRow]) -> list[float]:
    """The first widest: policies that do the same lie upon each other, and all are seen."""
    if len(policies) == 1:
        return [1.4]
    return [float(w) for w in np.linspace(1.2 + 0.4 * len(policies), 0.9, len(policies))]


def _colours(policies: Sequence[ResultRow]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(policies))]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110, format="png")
    return path
