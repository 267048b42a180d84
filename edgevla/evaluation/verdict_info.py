"""`eval_info.json` of a task. `per_episode`, `aggregated`, `video_paths` and what is in them are LeRobot's words and,
at the top, of the first cell; `cells` has the same of every cell, with all else. What cannot be said is null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgevla.evaluation.episodes import EpisodeResult
from edgevla.evaluation.verdicts import CellResult, Evaluated, Figure
from edgevla.strict import write


def as_json(e: Evaluated) -> dict[str, Any]:
    """What `eval_info.json` holds of an evaluation in a task, under LeRobot's names where it has them."""
    cells = [_cell(result, e.unit) for result in e.results]
    first = cells[0]
    return {
        "kind": "task",
        "per_episode": first["per_episode"],
        "aggregated": first["aggregated"],
        "video_paths": first["video_paths"],
        "command": e.command,
        "conditions": write(e.conditions),
        "n_episodes_planned": e.n_planned,
        "stopped": e.stopped,
        "notes": list(e.notes),
        "machine": e.machine,
        "cells": cells,
    }


def _cell(r: CellResult, unit: str) -> dict[str, Any]:
    c = r.cell
    return {
        "name": r.name,
        "bundle": c.bundle,
        "sha256": c.sha256,
        "execution": c.execution,
        "blend": c.blend,
        "select": c.select,
        "delay_ms": c.delay_ms,
        "control": c.control,
        "aggregated": _aggregated(r),
        "interval": [_number(v) for v in r.interval],
        "outcomes": dict(r.outcomes.most_common()),
        "figures": {name: _figure(f) for name, f in r.figures.items()},
        "clipped": {"share": _number(r.clipped_share), "ticks": dict(r.clipped.most_common())},
        "starved_share": _number(r.starved_share),
        "n_inferences": _number(r.n_inferences),
        "seams": _seams(r, unit),
        "delay_ms_measured": _delays(r.episodes),
        "infer_ms": _spread([ms for e in r.episodes for ms in e.infer_ms]),
        "vs_first": _against(r),
        "per_episode": [_episode(e) for e in r.episodes],
        "video_paths": [e.video for e in r.episodes if e.video],
    }


def _aggregated(r: CellResult) -> dict[str, Any]:
    eval_s = sum(e.eval_s for e in r.episodes)
    return {
        "avg_sum_reward": _number(float(np.mean([e.sum_reward for e in r.episodes]))),
        "avg_max_reward": _number(float(np.mean([e.max_reward for e in r.episodes]))),
        "pc_success": _number(100 * r.share),
        "n_success": r.n_success,
        "n_episodes": r.n,
        "pc_success_ci95": [_number(100 * v) for v in r.interval],
        "time_to_success_s": _number(r.time_to_success_s),
        "eval_s": _number(eval_s),
        "eval_ep_s": _number(eval_s / r.n),
    }


def _episode(e: EpisodeResult) -> dict[str, Any]:
    return {
        "episode_ix": e.episode_ix,
        "sum_reward": e.sum_reward,
        "max_reward": e.max_reward,
        "success": e.success,
        "seed": e.seed,
        "outcome": e.outcome,
        "place": [_number(v) for v in e.place],
        "time_to_success_s": _number(e.time_to_success_s),
        "figures": {name: _number(v) for name, v in e.figures.items()},
        "seconds": e.seconds,
        "eval_s": e.eval_s,
        "n_inferences": len(e.delays_ms),
        "n_clipped": e.n_clipped,
        "stopped": e.stopped or None,
        "video": e.video or None,
    }


def _seams(r: CellResult, unit: str) -> dict[str, Any]:
    return {
        "unit": f"{unit} per tick squared",
        "n": sum(len(e.seams) for e in r.episodes),
        "p95": _figure(r.seam_p95),
        "within_p95": _figure(r.within_p95),
    }


def _delays(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """From the request to the chunk."""
    all_of_them = [ms for e in episodes for ms in e.delays_ms]
    come = [ms for ms in all_of_them if ms is not None]
    return {**_spread(come), "n_lost": len(all_of_them) - len(come)}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"n": 0, "p50": None, "p95": None, "max": None}
    p50, p95, most = np.percentile(values, (50, 95, 100))
    return {"n": len(values), "p50": _number(p50), "p95": _number(p95), "max": _number(most)}


def _against(r: CellResult) -> dict[str, Any] | None:
    if r.pairs is None or r.first is None:
        return None
    p = r.pairs
    return {
        "to": r.first.name,
        "n": p.n,
        "only_first": p.lost,
        "only_this": p.gained,
        "difference": _number(p.difference),
        "interval": [_number(v) for v in p.interval],
        "mcnemar_p": _number(p.p),
        "figures": {name: _figure(f) for name, f in r.differences.items()},
    }


def _figure(f: Figure | None) -> dict[str, Any] | None:
    if f is None:
        return None
    interval = None if f.interval is None else [_number(v) for v in f.interval]
    return {"value": _number(f.value), "interval": interval}


def _number(value: float | None) -> float | None:
    """Six digits; JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
