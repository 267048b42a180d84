"""`eval_info.json`: all figures for programs. `per_episode`, `aggregated`, `eval_s`, `episode_ix`, `seed` are LeRobot's
words; the rest is called as in the table. What cannot be said is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgevla import __version__
from edgevla.dataset.chosen import episodes_text
from edgevla.evaluation.figures import Seams, Worst, share
from edgevla.evaluation.result import Evaluation, ResultRow


def as_json(e: Evaluation) -> dict[str, Any]:
    """What `eval_info.json` holds of an evaluation on a dataset."""
    return {
        "kind": "dataset",
        "edgevla": __version__,
        "dataset": {
            "path": str(e.dataset.root),
            "repo_id": e.dataset.repo_id,
            "fps": e.dataset.fps,
            "episodes": episodes_text(e.episodes),
        },
        "seed": e.seed,
        "every": e.every,
        "n_frames": len(e.frames),
        "n_frames_planned": e.n_planned,
        "stopped": e.stopped,
        "eval_s": round(e.seconds, 3),
        "joints": [
            {"name": n, "unit": u or None, "range": _number(w) or None}
            for n, u, w in zip(e.joints, e.units, e.width, strict=True)
        ],
        "policies": [{**_policy(p), **_entry(p, e)} for p in e.policies],
        "baselines": [{"name": b.name, **_entry(b, e)} for b in e.baselines],
    }


def _policy(p: ResultRow) -> dict[str, Any]:
    assert p.subject is not None
    assert p.overlap is not None
    m = p.subject.manifest
    origin = m.provenance.dataset
    return {
        "name": p.name,
        "path": p.subject.path,
        "kind": p.subject.kind,
        "policy": m.policy,
        "precision": p.subject.precision,
        "chunk_size": m.chunk_size,
        "n_action_steps": p.n_action_steps,
        "trained_on": {
            "standing": p.overlap.standing,
            "episodes_evaluated": episodes_text(p.overlap.trained),
            "episodes": None if origin is None else origin.episodes,
        },
        "chunk_ms": _number(p.chunk_ms or math.nan),
    }


def _entry(p: ResultRow, e: Evaluation) -> dict[str, Any]:
    f = p.figures
    found: dict[str, Any] = {
        "aggregated": {
            "n_episodes": len(f.by_episode),
            "n_frames": len(e.frames),
            "n_actions": f.n_actions,
            "percent_of_range": _number(float(e.percent(f.mae))),
            "mae": _by_joint(f.mae, e),
            "rms": _by_joint(f.rms, e),
            "mae_percent": _by_joint(100 * share(f.mae, e.width), e),
            "eval_s": _number(p.seconds),
            "eval_ep_s": _number(p.seconds / max(1, len(f.by_episode))),
        },
        "horizon": [
            {"action": j, "percent_of_range": _number(float(e.percent(row))), "mae": _by_joint(row, e)}
            for j, row in enumerate(f.horizon)
            if np.isfinite(row).any()
        ],
        "seams": _seams(f.seams, e),
        "worst_frames": [_worst(w, e) for w in f.worst],
        "per_episode": [
            {
                "episode_ix": number,
                "n_frames": n,
                "seed": e.seed,
                "percent_of_range": _number(float(e.percent(mae))),
                "mae": _by_joint(mae, e),
            }
            for number, (n, mae) in f.by_episode.items()
        ],
    }
    if p.difference is not None:
        found["difference"] = {
            "to": e.policies[0].name,
            "mean": _by_joint(p.difference.mean, e),
            "max": _by_joint(p.difference.largest, e),
            "max_percent": _by_joint(100 * share(p.difference.largest, e.width), e),
        }
    return found


def _seams(s: Seams, e: Evaluation) -> dict[str, Any]:
    names = ("jump_mean", "jump_max", "step_mean", "step_max")
    figures = {name: _by_joint(getattr(s, name), e) for name in names}
    return {"n": s.n, **figures}


def _worst(w: Worst, e: Evaluation) -> dict[str, Any]:
    return {
        "episode_ix": w.episode,
        "frame": w.frame,
        "action": w.action,
        "joint": e.joints[w.joint],
        "unit": e.units[w.joint] or None,
        "predicted": _number(w.predicted),
        "recorded": _number(w.recorded),
        "percent_of_range": _number(100 * w.share),
    }


def _by_joint(values: Iterable[float], e: Evaluation) -> dict[str, float | None]:
    return {name: _number(float(v)) for name, v in zip(e.joints, values, strict=True)}


def _number(value: float) -> float | None:
    """Six digits; JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
