"""Which execution survives which delay, in which task? Success and seams, the same places and seeds for all.

Per study: demonstrations of the scripted expert -> `edgevla train` -> `edgevla export` (fp32, int8) -> `edgevla eval`,
each a process of its own, so every figure can be had again by the verbs alone. What stands in WORK already is not made
again; an evaluation that was cut off goes on. Hours of CPU; run, from the project's root,

    nice -n 10 python benchmarks/closed_loop_suite.py WORK [--studies conveyor,jump] [--episodes 200] [--seeds 0,1,2]

    --tables     only writes the results from what is there

Results: benchmarks/results/closed_loop_suite.md, and docs/closed-loop.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "story"))
from closed_loop_picture import draw

RESULTS = Path(__file__).parent / "results"
DELAYS_MS = (0, 100, 200, 300, 500)
DELAYS_OF = {"fp32": DELAYS_MS, "int8": (0, 200)}
SEAM_DELAYS_MS = (0, 200, 500)
CONTROLS = ("none", "black", "zero-state", "misaligned")
CONTROL_DELAY_MS = 200
BLENDS = (0, 10)
PICTURE = Path(__file__).parents[1] / "docs" / "closed-loop.png"


@dataclass(frozen=True)
class Study:
    """task: what is evaluated. shown: the task whose demonstrations are learnt from. flow: by X-VLA, which samples and
    is trained as flow matching; else by a small ACT with this recipe. executions: those that are compared.
    """

    task: str
    shown: str
    n_demonstrations: int
    size: str
    steps: int
    recipe: str = "act_small"
    flow: bool = False
    executions: tuple[str, ...] = ("sync", "async", "ensemble")


STUDIES = {
    "rest": Study("follow_cube", "follow_cube", 160, "64x64", 1000),
    "conveyor_slow": Study("follow_cube/conveyor_slow", "follow_cube/conveyor_slow", 80, "64x64", 1200),
    "conveyor": Study("follow_cube/conveyor", "follow_cube/conveyor", 80, "64x64", 1200),
    "conveyor_fast": Study("follow_cube/conveyor_fast", "follow_cube/conveyor_fast", 80, "64x64", 1200),
    "jump": Study("follow_cube/jump", "follow_cube", 160, "64x64", 1000),
    "two": Study(
        "follow_cube/two", "follow_cube/two", 240, "64x64", 9000, flow=True,
        executions=("sync", "async", "ensemble", "rtc"),
    ),
    "pick_place": Study("so101/pick_place", "so101/pick_place", 200, "128x128", 8000),
    "transfer_cube": Study("aloha/transfer_cube", "aloha/transfer_cube", 200, "120x160", 28_000, "act_two_arms"),
}  # fmt: skip


class Suite:
    """One study after the other, one process at a time, one thread each."""

    def __init__(self, work: Path, n_episodes: int) -> None:
        self.work, self.n_episodes = work, n_episodes

    def study(self, name: str, seed: int) -> None:
        study = STUDIES[name]
        words = ["--task", study.task, "--episodes", str(self.n_episodes)]
        bundles = self._bundles(study, seed)
        for precision, bundle in bundles.items():
            more = ["--execution", _listed(study.executions), "--delay-ms", _listed(DELAYS_OF[precision])]
            self.evaluate([str(bundle), *words, *more], f"{name}-{seed}-{precision}")
        words = [str(bundles["fp32"]), *words, "--execution", "async"]
        more = ["--blend", _listed(BLENDS), "--delay-ms", _listed(SEAM_DELAYS_MS)]
        self.evaluate([*words, *more], f"{name}-{seed}-seams")
        if seed == 0:
            more = ["--delay-ms", str(CONTROL_DELAY_MS), "--control", _listed(CONTROLS)]
            self.evaluate([*words, *more], f"{name}-controls")

    def _bundles(self, study: Study, seed: int) -> dict[str, Path]:
        """By precision."""
        made = study.shown.replace("/", "-") + ("-flow" if study.flow else "")
        data, run = self.demonstrations(study), self.work / "runs" / f"{made}-{seed}"
        if not (run / "checkpoints/last").exists():
            self.run("edgevla", self._training(study, seed, data, run), f"train-{made}-{seed}")
        bundles = {}
        for precision in DELAYS_OF:
            bundle = self.work / "bundles" / f"{made}-{seed}-{precision}"
            if not (bundle / "manifest.json").exists():
                words = ["export", str(run), "-o", str(bundle), "--dataset", str(data)]
                words += ["--precision", precision]
                # What the gate says of int8 is one question; what it does in closed loop is the one that is asked here.
                words += ["--allow-parity-failure"] if precision == "int8" else []
                self.run("edgevla", words, f"export-{made}-{seed}-{precision}")
            bundles[precision] = bundle
        return bundles

    def demonstrations(self, study: Study) -> Path:
        """The dataset, recorded where it is not there."""
        name = study.shown.replace("/", "-")
        data = self.work / "data" / name
        if not (data / "meta/info.json").exists():
            words = ["--task", study.shown, "--episodes", str(study.n_demonstrations), "--size", study.size]
            self.run(
                "edgevla.robots.trials.demonstrate", [*words, "--output", str(data)], f"demonstrate-{name}"
            )
        return data

    def _training(self, study: Study, seed: int, data: Path, run: Path) -> list[str]:
        if study.flow:
            from every_policy import train_words
            from policies_closed_loop import LR, backbone_of

            more = ["--steps", str(study.steps), "--batch-size", "16"]
            more += ["--lr", LR["xvla"], "--seed", str(seed)]
            more += ["--schedule", "cosine", "--warmup", str(study.steps // 10), "--grad-clip", "1.0"]
            return train_words("xvla", data, run, backbone_of("xvla", self.work), *more)
        words = ["train", "--policy", "act", "--recipe", study.recipe, "--dataset", str(data)]
        words += ["--output", str(run), "--steps", str(study.steps), "--seed", str(seed)]
        return [*words, "--threads", "1", "--device", "cpu", "--no-tensorboard"]

    def evaluate(self, words: list[str], name: str) -> None:
        out = self.work / "evals" / name
        self.run("edgevla", ["eval", *words, "--jobs", "1", "-o", str(out), "--json"], f"eval-{name}")

    def run(self, module: str, words: Sequence[str], name: str) -> None:
        log = self.work / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M')} {name}", flush=True)
        with log.open("a") as out:
            out.write(f"$ python -m {module} {' '.join(words)}\n")
            out.flush()
            subprocess.run(
                [sys.executable, "-m", module, *words],
                stdout=out, stderr=subprocess.STDOUT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip


def _listed(values: Sequence[object]) -> str:
    return ",".join(str(value) for value in values)


# -- tables -------------------------------------------------------------------------------------------------


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    path = folder / "eval_info.json"
    return json.loads(path.read_text()) if path.exists() else None


HEAD = (
    "cell",
    "success",
    "95 %",
    "in tolerance",
    "RMS mm",
    "s to success",
    "seam p95",
    "within",
    "clipped",
    "p",
)


def table(info: dict[str, Any]) -> list[str]:
    """Rows of one evaluation in Markdown."""
    head = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
    return head + [_row(cell) for cell in info["cells"]]


def _row(cell: dict[str, Any]) -> str:
    a, figures, seams = cell["aggregated"], cell["figures"], cell["seams"]
    low, high = a["pc_success_ci95"]
    against = cell["vs_first"]
    cells = [
        cell["name"],
        f"{a['n_success']} of {a['n_episodes']}",
        f"{low:.0f} to {high:.0f}",
        _value(figures.get("share_in_tolerance"), 100, " %"),
        _value(figures.get("rms_mm"), 1, ""),
        "-" if a["time_to_success_s"] is None else f"{a['time_to_success_s']:.2f}",
        _value(seams["p95"], 1, "", interval=True),
        _value(seams["within_p95"], 1, ""),
        f"{100 * (cell['clipped']['share'] or 0):.1f} %",
        "-" if against is None else f"{against['mcnemar_p']:.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


def _value(figure: dict[str, Any] | None, factor: float, unit: str, interval: bool = False) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    said = f"{factor * figure['value']:.3g}{unit}"
    if interval and figure["interval"] is not None:
        low, high = figure["interval"]
        said += f" [{factor * low:.2g}, {factor * high:.2g}]"
    return said


WORDS = """# The closed-loop suite

Written by `python benchmarks/closed_loop_suite.py WORK`, {date}; 1 of {cores} shared cores {machine}. Success: Wilson,
95 %.
Seam, within: 95th percentile of the second difference of the goals where chunks meet and elsewhere, with a bootstrap
interval over episodes. p: exact McNemar against the first row, the same places. No demonstration has met these places.
"""


def write_tables(work: Path) -> None:
    about = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "machine": platform.machine()}
    lines = [WORDS.format(**about)]
    drawn: dict[str, list[dict[str, Any]]] = {}
    for name in STUDIES:
        for folder in sorted((work / "evals").glob(f"{name}-[0-9c]*")):
            info = read_evaluation(folder)
            if info is None:
                continue
            command = info["command"].replace(f"{work}/", "")
            lines += [f"## {folder.name}", "", f"`{command}`", "", *table(info), ""]
            if folder.name.endswith(("-fp32", "-seams")):
                drawn.setdefault(name, []).extend(_once(info["cells"], folder.name.endswith("-seams")))
    (RESULTS / "closed_loop_suite.md").write_text("\n".join(lines))
    if drawn:
        draw(drawn, PICTURE)


def _once(cells: list[dict[str, Any]], is_blended: bool) -> list[dict[str, Any]]:
    """Plain `async` stands in both evaluations; of the blends, the one that has a colour of its own."""
    return [cell for cell in cells if cell["blend"] == (10 if is_blended else 0)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--studies", default=",".join(STUDIES))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if not args.tables:
        suite = Suite(args.work, args.episodes)
        for seed in seeds:
            for name in args.studies.split(","):
                suite.study(name, seed)
    write_tables(args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
