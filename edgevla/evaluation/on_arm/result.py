"""What was judged, as figures: the same cells, table and eval_info.json that a simulated task's evaluation has."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevla import __version__, strict
from edgevla.dataset.layout import STATED
from edgevla.dataset.stated import read_stated
from edgevla.dataset.store import replace_json
from edgevla.evaluation.episodes import Cell, Conditions, EpisodeResult
from edgevla.evaluation.on_arm.journal import HumanVerdict, Journal
from edgevla.evaluation.on_arm.rollouts import ROLLOUTS
from edgevla.evaluation.on_arm.rounds import Rounds
from edgevla.evaluation.verdict_info import as_json
from edgevla.evaluation.verdicts import CellResult, Evaluated

INFO = "eval_info.json"


@dataclass(frozen=True)
class Tally:
    """All verdicts that count, by policy."""

    journal: Journal
    rounds: Rounds

    def results(self) -> list[CellResult]:
        """One per policy that has any; the others are compared with the first, round by round."""
        made: list[CellResult] = []
        for k, policy in enumerate(self.journal.setting.policies):
            episodes = [_episode(v, str(k)) for v in self.of(k)]
            if episodes:
                cell = Cell(
                    policy.bundle,
                    policy.name,
                    policy.sha256,
                    policy.execution,
                    blend=policy.blend,
                    select=policy.select,
                )
                made.append(
                    CellResult(
                        cell, policy.name, policy.name.replace("/", "_"), episodes, made[0] if made else None
                    )
                )
        return made

    def of(self, policy: int) -> list[HumanVerdict]:
        """Of one policy, round by round."""
        verdicts = self.journal.verdicts
        turns = [t for t in self.rounds.turns() if t.policy == policy]
        return [v for t in turns if (v := verdicts.get((t.round, t.place))) is not None]

    def evaluated(self, stopped: str | None) -> Evaluated:
        """The verdicts as a simulated task's are, for the same tables. stopped: why it ended early."""
        s = self.journal.setting
        conditions = Conditions(
            task=s.task,
            seed=s.order_seed,
            way="on an emulated arm" if s.is_sim else "on an arm",
            servo_hz=s.servo_hz,
            n_steps=s.n_steps,
            versions={"edgevla": __version__},
        )
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "system": platform.platform(terse=True),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        command = shlex.join(["edgevla", *sys.argv[1:]])
        units = {str(v.figures.get("unit", "unit")) for v in self.journal.verdicts.values()}
        unit = units.pop() if len(units) == 1 else "unit"
        return Evaluated(conditions, self.results(), unit, self.rounds.n, (), machine, command, stopped)


def _episode(v: HumanVerdict, cell: str) -> EpisodeResult:
    f = v.figures
    chunk_ms = tuple(f.get("chunk_ms", ()))
    return EpisodeResult(
        cell=cell,
        episode_ix=v.round,
        seed=v.round,
        success=v.success,
        sum_reward=float(v.success),
        max_reward=float(v.success),
        outcome="success" if v.success else "failure",
        place=(),
        figures={},
        time_to_success_s=v.seconds if v.success else None,
        seconds=v.seconds,
        eval_s=v.seconds,
        n_ticks=f.get("n_ticks", 0),
        n_starved=f.get("n_starved", 0),
        n_clipped=f.get("n_clipped", 0),
        clipped=f.get("clipped", {}),
        delays_ms=chunk_ms,
        infer_ms=chunk_ms,
        seams=tuple(f.get("seams", ())),
        within=tuple(f.get("within", ())),
    )


def write_info(judged: Tally, e: Evaluated, folder: Path) -> dict[str, Any]:
    """Writes `eval_info.json`; what is in it. Policies without a verdict are not there."""
    journal = judged.journal
    info = {**as_json(e), "kind": "robot"}
    s = journal.setting
    info["robot"] = {"name": s.robot, "is_sim": s.is_sim, "task": s.task, "seconds": s.seconds}
    info["order"] = {
        "seed": s.order_seed,
        "rounds": [list(judged.rounds.order(r)) for r in range(judged.rounds.n)],
    }
    info["n_void"] = journal.n_void
    info["rollouts"] = str(folder / ROLLOUTS)
    for policy, cell in zip(_with_verdicts(judged), info["cells"], strict=True):
        for verdict, episode in zip(judged.of(policy), cell["per_episode"], strict=True):
            episode["place_in_round"] = verdict.place
            episode["rollout"] = journal.rollouts.get(verdict.verdict)
            episode["at"] = verdict.at
            if verdict.simulated is not None:
                episode["simulated"] = verdict.simulated
    part = folder / f"{INFO}.part"
    part.write_text(json.dumps(info, indent=1, allow_nan=False) + "\n")
    part.replace(folder / INFO)
    return info


def _with_verdicts(judged: Tally) -> Sequence[int]:
    return [k for k in range(len(judged.journal.setting.policies)) if judged.of(k)]


def note_success(journal: Journal, dataset: Path) -> None:
    """Every rollout's verdict into the dataset's own notes; of one that was taken back: none."""
    if not (dataset / "meta/info.json").is_file() or not journal.rollouts:
        return
    by_verdict = {v.verdict: v.success for v in journal.verdicts.values()}
    noted: list[bool | None] = [None] * (max(journal.rollouts.values()) + 1)
    for verdict, episode in journal.rollouts.items():
        noted[episode] = by_verdict.get(verdict)
    replace_json(dataset / STATED, {**read_stated(dataset).to_json(), "success": strict.write(noted)})
