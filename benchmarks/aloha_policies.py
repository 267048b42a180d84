"""ACT for gym-aloha's tasks, trained on two CPU cores: every seed, the whole curve over checkpoints, and where it fails.

Demonstrations of the scripted expert through servos and safety filter -> `edgevla train --recipe act_two_arms` -> per
checkpoint: `edgevla export`, then gym-aloha's own environment without servos (`bare_gym.py`) -> the last one through
servos, bus and safety filter (`edgevla eval`), beside the expert. Always the last checkpoint: nothing is chosen by what
it came to. The curve meets places of another seed than the evaluation. What stands in WORK is not made again.

    python benchmarks/aloha_policies.py WORK --gym ALOHA/bin/python [--task aloha/insertion] [--seeds 0,1,2]

ALOHA: the environment that `bare_gym.py` describes. Results: benchmarks/results/aloha_policies.md, one section per task.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edgevla.evaluation.statistics import wilson

RESULTS = Path(__file__).parent / "results" / "aloha_policies.md"
BARE = Path(__file__).parent / "bare_gym.py"
CURVE_SEED, N_CURVE, N_FINAL = 1, 100, 200
PUBLISHED = {"aloha/transfer_cube": "93.0 % [88.6, 95.8]", "aloha/insertion": "64.0 % [57.1, 70.3]"}
"""LeRobot's ACT on scripted data, 100,000 steps at the published size, pictures of 480x640; N = 200."""


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.task = args, args.task
        self.work = args.work / args.task.replace("/", "-")
        self.demos = self.work / "demos"

    def make(self, seed: int) -> None:
        """Everything of one training seed."""
        if not (self.demos / "meta/info.json").exists():
            words = ["--task", self.task, "--episodes", str(self.args.demonstrations), "--size", "120x160"]
            more = ["--camera", "top", "--jobs", "2", "--output", self.demos]
            self._python("demonstrate", "-m", "edgevla.robots.trials.demonstrate", *words, *more)
        run = self.run(seed)
        if not self._is_whole(run):
            words = ["--policy", "act", "--recipe", "act_two_arms", "--dataset", self.demos, "--output", run]
            words += ["--seed", seed, "--threads", "1", "--device", "cpu", "--no-tensorboard"]
            began, is_resumed = time.time(), run.exists()
            self._edgevla(f"train-{seed}", "train", *(["--resume", run] if is_resumed else words))
            hours = "not measured: resumed" if is_resumed else f"{(time.time() - began) / 3600:.2f}"
            (run / "hours.txt").write_text(hours)
        for checkpoint in self.curve(run):
            bundle = self._export(seed, checkpoint)
            self._bare(bundle, self._points(seed, checkpoint), N_CURVE, CURVE_SEED)
        last = self._export(seed, self.checkpoints(run)[-1])
        self._bare(last, self.work / f"bare-{seed}.jsonl", N_FINAL, 0)
        words = [
            "--task",
            self.task,
            "--episodes",
            N_FINAL,
            "--execution",
            "sync",
            "--control",
            "none,expert",
        ]
        self._edgevla(
            f"eval-{seed}", "eval", last, *words, "--videos", "failures", "-o", self.evaluation(seed)
        )

    def run(self, seed: int) -> Path:
        return self.work / f"run-{seed}"

    def evaluation(self, seed: int) -> Path:
        return self.work / f"eval-{seed}"

    def checkpoints(self, run: Path) -> list[Path]:
        return sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit())

    def curve(self, run: Path) -> list[Path]:
        return [c for c in self.checkpoints(run) if int(c.name) % self.args.every == 0]

    def _is_whole(self, run: Path) -> bool:
        return (run / "hours.txt").exists()

    def _points(self, seed: int, checkpoint: Path) -> Path:
        return self.work / "curve" / f"{seed}-{checkpoint.name}.jsonl"

    def _export(self, seed: int, checkpoint: Path) -> Path:
        bundle = self.work / "bundles" / f"{seed}-{checkpoint.name}"
        if not (bundle / "manifest.json").exists():
            words = [checkpoint, "-o", bundle, "--robot", "aloha", "--dataset", self.demos]
            self._edgevla(f"export-{bundle.name}", "export", *words)
        return bundle

    def _bare(self, bundle: Path, out: Path, n: int, seed: int) -> None:
        out.parent.mkdir(exist_ok=True)
        words = [BARE, bundle, "--task", self.task, "--episodes", n, "--seed", seed, "-o", out]
        self._call(f"bare-{bundle.name}", self.args.gym, "-W", "ignore", *words)

    def _edgevla(self, name: str, *words: Any) -> None:
        self._python(name, "-m", "edgevla", *words)

    def _python(self, name: str, *words: Any) -> None:
        self._call(name, sys.executable, *words)

    def _call(self, name: str, *words: Any) -> None:
        log = self.work / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M')} {name}", flush=True)
        # in both environments the EdgeVLA of this tree
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BARE.parents[1])}
        with log.open("a") as out:
            subprocess.run([*map(str, words)], stdout=out, stderr=subprocess.STDOUT, check=True, env=env)

    # -- what it came to --------------------------------------------------------------------------------------------

    def section(self, seeds: list[int]) -> str:
        """Markdown; of those seeds that are through."""
        seeds = [seed for seed in seeds if (self.evaluation(seed) / "eval_info.json").exists()]
        info = json.loads((self.demos / "meta/info.json").read_text())
        lines = [
            f"## {self.task}",
            "",
            f"{info['total_episodes']} demonstrations, {info['total_frames']} frames, pictures of 160x120 of camera "
            f"`top`. Published: {PUBLISHED[self.task]}.",
            "",
            "| training seed | hours of one core | bare gym-aloha | through servos, bus, filter | failures |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [self._row(seed) for seed in seeds]
        lines += ["", f"Curve: success of {N_CURVE} on bare gym-aloha, places of seed {CURVE_SEED}.", ""]
        steps = sorted({int(c.name) for seed in seeds for c in self.curve(self.run(seed))})
        lines += ["| seed | " + " | ".join(map(str, steps)) + " |", "| --- |" + " --- |" * len(steps)]
        lines += [
            "| " + " | ".join([str(seed), *(self._at(seed, step) for step in steps)]) + " |" for seed in seeds
        ]
        return "\n".join([*lines, ""])

    def _row(self, seed: int) -> str:
        cell, expert = json.loads((self.evaluation(seed) / "eval_info.json").read_text())["cells"]
        good = _successes(self.work / f"bare-{seed}.jsonl")
        ours = [e["success"] for e in cell["per_episode"]]
        failures = Counter(e["outcome"] for e in cell["per_episode"] if not e["success"])
        words = ", ".join(f"{n} {outcome}" for outcome, n in failures.items()) or "none"
        hours = (self.run(seed) / "hours.txt").read_text()
        experts = expert["aggregated"]["n_success"]
        shares = [_share(good), f"{_share(ours)} (expert {experts} of {len(ours)})"]
        return "| " + " | ".join([str(seed), hours, *shares, words]) + " |"

    def _at(self, seed: int, step: int) -> str:
        path = self._points(seed, Path(f"{step:06d}"))
        return str(sum(_successes(path))) if path.exists() else "-"


def _successes(path: Path) -> list[bool]:
    return [json.loads(line)["success"] for line in path.read_text().splitlines()]


def _share(good: list[bool]) -> str:
    low, high = wilson(sum(good), len(good))
    return f"{sum(good)} of {len(good)} [{100 * low:.1f}, {100 * high:.1f}]"


HEAD = """# ACT for gym-aloha's tasks

Written by `python benchmarks/aloha_policies.py`. Intervals: Wilson, 95 %.
"""


def write(section: str, task: str) -> None:
    """Its section anew, the others as they are."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    parts = re.split(r"(?m)^(?=## )", text)
    kept = [p for p in parts if not p.startswith(f"## {task}\n")]
    about = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} shared cores {platform.machine()}."
    RESULTS.write_text("\n".join(p.rstrip() + "\n" for p in [*kept, f"{section}\n{about}"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--gym", type=Path, required=True)
    parser.add_argument("--task", default="aloha/transfer_cube", choices=sorted(PUBLISHED))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--every", type=int, default=2000, help="steps between two points of the curve")
    args = parser.parse_args()
    study, seeds = Study(args), [int(seed) for seed in args.seeds.split(",")]
    for seed in seeds:
        study.make(seed)
        write(study.section(seeds), args.task)
    return 0


if __name__ == "__main__":
    sys.exit(main())
