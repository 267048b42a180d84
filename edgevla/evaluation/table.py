"""What an evaluation found, for a terminal: tables of joints against policies, then what it means in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgevla.dataset.chosen import episodes_text
from edgevla.evaluation.figures import Worst
from edgevla.evaluation.page import GAP, indented, table
from edgevla.evaluation.replayed import HOLD
from edgevla.evaluation.result import Evaluation, ResultRow
from edgevla.joint_units import joint_name

N_HORIZONS = 8
"""Rows of the table by horizon, about."""


def tables(e: Evaluation, width: int | None = None) -> list[str]:
    """Lines of text. width: of the terminal, where there is one."""
    figures = [make(e, width) for make in (_errors, _differences, _horizons, _seams)]
    blocks = [*figures, _worst(e), _meaning(e)]
    return [line for block in blocks if block for line in ("", *block)][1:]


def number(value: float) -> str:
    """Three digits; `-` for what is not known."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _pair(mean: float, other: float) -> str:
    return f"{number(mean)} ({number(other)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], n_left: int, width: int | None) -> list[str]:
    """The first n_left columns to the left, figures to the right."""
    return indented(table(head, rows, None if width is None else width - len(GAP), n_left))


def _joints(e: Evaluation) -> list[tuple[str, str]]:
    return [(joint_name(name), unit) for name, unit in zip(e.joints, e.units, strict=True)]


# -- blocks -------------------------------------------------------------------------------------------------


def _errors(e: Evaluation, width: int | None) -> list[str]:
    rows = []
    for j, (name, unit) in enumerate(_joints(e)):
        cells = [_pair(x.figures.mae[j], x.figures.rms[j]) for x in e.entries]
        rows.append([name, unit, *cells, number(e.width[j]) if e.width[j] else "still"])
    rows.append(
        ["all joints", "% of range", *(number(float(e.percent(x.figures.mae))) for x in e.entries), ""]
    )
    head = ["joint", "unit", *(x.name for x in e.entries), "range"]
    return [f"mean absolute error (RMS) of {_executed(e)}", *_table(head, rows, 2, width)]


def _executed(e: Evaluation) -> str:
    counts = {p.n_action_steps for p in e.policies}
    if len(counts) == 1:
        return f"the actions that sync executes, the first {counts.pop()} of each chunk"
    each = ", ".join(f"{p.name} {p.n_action_steps}" for p in e.policies)
    return f"the actions that sync executes: the first of each chunk, {each}"


def _differences(e: Evaluation, width: int | None) -> list[str]:
    others = [p for p in e.policies if p.difference is not None]
    if not others:
        return []
    rows = []
    for j, (name, unit) in enumerate(_joints(e)):
        apart = [p.difference for p in others if p.difference is not None]
        rows.append([name, unit, *(_pair(d.mean[j], d.largest[j]) for d in apart)])
    head = ["joint", "unit", *(p.name for p in others)]
    return [
        f"difference to {e.policies[0].name} on the same frames, mean (largest)",
        *_table(head, rows, 2, width),
    ]


def _horizons(e: Evaluation, width: int | None) -> list[str]:
    longest = max(x.figures.horizon.shape[0] for x in e.entries)
    rows = []
    for j in horizons(longest):
        cells = [_at(x, j, e) for x in e.entries]
        if any(c != "-" for c in cells):
            rows.append([str(j), f"{j / e.dataset.fps:.2f}", *cells])
    head = ["action", "s", *(x.name for x in e.entries)]
    return ["error by horizon, mean of the joints in % of their range", *_table(head, rows, 0, width)]


def horizons(n: int) -> list[int]:
    """Actions of a chunk of n that are told: 0, 5, 10 ..., in larger steps of a long chunk, and the last."""
    step = next(s for s in (5, 10, 20, 50, 100, n) if n / s <= N_HORIZONS or s == n)
    return sorted({*range(0, n, step), n - 1})


def _at(x: ResultRow, j: int, e: Evaluation) -> str:
    horizon = x.figures.horizon
    return number(float(e.percent(horizon[j]))) if j < len(horizon) else "-"


def _seams(e: Evaluation, width: int | None) -> list[str]:
    there = [p for p in e.policies if p.figures.seams.n]
    if not there:
        return ["no seams: no two of these frames lie as far apart as chunks are chained"]
    first = there[0].figures.seams
    rows = []
    for j, (name, unit) in enumerate(_joints(e)):
        cells = [_pair(p.figures.seams.jump_mean[j], p.figures.seams.jump_max[j]) for p in there]
        rows.append([name, unit, *cells, _pair(first.step_mean[j], first.step_max[j])])
    head = ["joint", "unit", *(p.name for p in there), "recorded step"]
    title = f"seams: jump from the last executed action of a chunk to the first of the next, mean (largest) of {first.n}"
    return [title, *_table(head, rows, 2, width)]


def _worst(e: Evaluation) -> list[str]:
    """Policies that err at the same places stand together, with the first one's figures."""
    shown = 5 if len(e.policies) == 1 else 3
    alike: dict[tuple[tuple[int, int, int], ...], list[ResultRow]] = {}
    for p in e.policies:
        places = tuple((w.episode, w.frame, w.joint) for w in p.figures.worst[:shown])
        alike.setdefault(places, []).append(p)
    lines = []
    for policies in alike.values():
        rows = [_worst_row(w, e) for w in policies[0].figures.worst[:shown]]
        if rows:
            names = ", ".join(p.name for p in policies)
            lines += [f"worst frames of {names}", *_table(rows[0], rows[1:], len(rows[0]), None)]
    return lines


def _worst_row(w: Worst, e: Evaluation) -> list[str]:
    unit = f" {e.units[w.joint]}" if e.units[w.joint] else ""
    said = f"predicted {number(w.predicted)}, recorded {number(w.recorded)}{unit} ({100 * w.share:.0f} % of range)"
    joint = joint_name(e.joints[w.joint])
    return [f"episode {w.episode}", f"frame {w.frame}", joint, f"action {w.action}", said]


# -- in words -----------------------------------------------------------------------------------------------


def _meaning(e: Evaluation) -> list[str]:
    lines = []
    times = ", ".join(f"{p.name} {number(p.chunk_ms)} ms" for p in e.policies if p.chunk_ms is not None)
    lines.append(f"one chunk: {times}")
    hold = next(b for b in e.baselines if b.name == HOLD)
    still = float(e.percent(hold.figures.mae))
    for p in e.policies:
        error = float(e.percent(p.figures.mae))
        if not (math.isfinite(error) and math.isfinite(still)):
            continue
        line = f"{p.name}: off by {error:.2g} % of a joint's range on average; an arm that holds still: {still:.2g} %"
        if error >= still:
            line += ". NO BETTER THAN STANDING STILL: do not run it on an arm"
        lines.append(line)
    lines += _overlap(e)
    if e.stopped is not None:
        lines.append(
            f"ended early ({e.stopped}): {len(e.frames)} of {e.n_planned} frames, episodes {episodes_text(e.episodes)}; "
            "all figures are of these"
        )
    return lines


def _overlap(e: Evaluation) -> list[str]:
    said: dict[str, list[str]] = {}
    for p in e.policies:
        assert p.overlap is not None
        said.setdefault(p.overlap.text, []).append(p.name)
    lines = [f"{', '.join(names)}: {text}" for text, names in said.items()]
    for p in e.policies[:1]:
        assert p.overlap is not None
        if p.overlap.standing == "partly trained on":
            lines.append(_apart(p, e))
    return lines


def _apart(p: ResultRow, e: Evaluation) -> str:
    """The errors of both kinds of episodes."""
    assert p.overlap is not None
    groups = {True: [], False: []}  # type: dict[bool, list[float]]
    for number_, (n, mae) in p.figures.by_episode.items():
        groups[number_ in p.overlap.trained] += [float(e.percent(mae))] * n
    trained, new = (float(np.mean(groups[k])) if groups[k] else math.nan for k in (True, False))
    return (
        f"{p.name}: {number(trained)} % of range on episodes it was trained on, {number(new)} % on the others"
    )
