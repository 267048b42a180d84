"""What survives a late chunk, and what a denoise step less costs: the methods for flow policies, on the same places.

    nice -n 10 python benchmarks/flow_methods.py WORK [--tasks two,conveyor] [--seeds 0,1,2] [--episodes 200]

    --tables     only writes the results from what is there

Per task and training seed one small SmolVLA is trained plainly, for committed actions, for future states and for one
step (by shifted times, and by SnapFlow from the plain one), exported, and evaluated in lock-step. Each step is a verb
in a process of its own; what stands in WORK already is not made again, an evaluation that was cut off goes on. Hours of
CPU. Results: benchmarks/results/flow_methods.md. Not part of the tests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "story"))
from closed_loop_suite import RESULTS, STUDIES, Suite, read_evaluation
from every_policy import export_words, train_words
from policies_closed_loop import LR, backbone_of
from result_kit import conditions

from edgevla.evaluation.statistics import Pairs, wilson

POLICY, STEPS, SECOND_PHASE_STEPS, BATCH = "smolvla", 9000, 3000, 16
N_ACTIONS_AHEAD = 15
"""Committed actions and future states are learnt so far: 500 ms at 30 Hz, half of a chunk."""
SELECTED = 8
DELAYS_MS, FEW_DELAYS_MS = (0, 200, 500), (0, 200)
TRAININGS = {
    "plain": (),
    "committed": (f"rtc_training_max_delay={N_ACTIONS_AHEAD}",),
    "future": (f"future_state_max_offset={N_ACTIONS_AHEAD}",),
    "shifted": ("one_step_time_shift=3",),
}


@dataclass(frozen=True)
class Method:
    """training: a key of TRAININGS, or "snapflow". words: of `edgevla eval`."""

    training: str
    words: tuple[str, ...]
    delays_ms: tuple[int, ...] = DELAYS_MS


METHODS = {
    "async": Method("plain", ("--execution", "async")),
    "async, blend 10": Method("plain", ("--execution", "async", "--blend", "10")),
    f"async, nearest of {SELECTED}": Method("plain", ("--execution", "async", "--select", str(SELECTED))),
    "rtc, guided": Method("plain", ("--execution", "rtc")),
    "rtc, trained": Method("committed", ("--execution", "rtc")),
    "future state": Method("future", ("--execution", "async")),
    "async, 5 steps": Method("plain", ("--execution", "async", "--n-steps", "5"), FEW_DELAYS_MS),
    "async, 1 step": Method("plain", ("--execution", "async", "--n-steps", "1"), FEW_DELAYS_MS),
    "shifted times, 1 step": Method("shifted", ("--execution", "async"), FEW_DELAYS_MS),
    "SnapFlow, 1 step": Method("snapflow", ("--execution", "async"), FEW_DELAYS_MS),
}


class Comparison(Suite):
    """One task and training seed after the other."""

    def compare(self, task: str, seed: int) -> None:
        study = STUDIES[task]
        data = self.demonstrations(study)
        bundles = {name: self._trained(task, seed, name, data) for name in (*TRAININGS, "snapflow")}
        for method in METHODS.values():
            words = [str(bundles[method.training]), "--task", study.task, "--episodes", str(self.n_episodes)]
            words += [*method.words, "--delay-ms", ",".join(map(str, method.delays_ms))]
            self.evaluate(words, evaluation_of(task, seed, method))

    def _trained(self, task: str, seed: int, name: str, data: Path) -> Path:
        """The bundle."""
        label = f"{POLICY}-{task}-{seed}-{name}"
        run, bundle = self.work / "runs" / label, self.work / "bundles" / label
        if not (run / "checkpoints/last").exists():
            self.run("edgevla", self._training(run, data, name, seed), f"train-{label}")
        if not (bundle / "manifest.json").exists():
            words = export_words(POLICY, run, bundle, "--dataset", str(data), "--max-batch", str(SELECTED))
            self.run("edgevla", words, f"export-{label}")
        return bundle

    def _training(self, run: Path, data: Path, name: str, seed: int) -> list[str]:
        more = ["--batch-size", str(BATCH), "--seed", str(seed), "--lr", LR.get(POLICY, "2e-3")]
        if name == "snapflow":
            plain = run.with_name(run.name.removesuffix("snapflow") + "plain")
            words = ["train", "--from", str(plain), "--recipe", "snapflow", "--dataset", str(data)]
            words += ["--output", str(run), "--steps", str(SECOND_PHASE_STEPS), "--device", "cpu"]
            return [*words, "--threads", "1", "--cache", "ram", "--save-freq", "0", "--no-tensorboard", *more]
        more += ["--steps", str(STEPS)]
        more += ["--schedule", "cosine", "--warmup", str(STEPS // 10), "--grad-clip", "1.0"]
        backbone = backbone_of(POLICY, self.work)
        return train_words(POLICY, data, run, backbone, *more, settings=TRAININGS[name])


def evaluation_of(task: str, seed: int, method: Method) -> str:
    words = "-".join(word.removeprefix("--") for word in method.words)
    return f"methods-{task}-{seed}-{method.training}-{words}"


# -- tables -------------------------------------------------------------------------------------------------


HEAD = """# Late chunks, and few denoise steps

{conditions}

Policy: {policy}, small, on a random backbone that is trained with it, 64 px camera; {steps} steps of batch {batch},
SnapFlow {second} more from the plain one. Committed actions and future states are trained up to {ahead} ticks (500 ms).
All methods on the same places, in lock-step on a virtual clock; training seeds: {seeds}. Success: over all seeds,
Wilson 95 %. p: exact McNemar against `async` with the same delay and training seed, all pairs. Seam, within: 95th
percentile of the second difference of the goals where chunks meet and elsewhere, deg per tick squared, mean over seeds.
Waiting: share of the ticks in which the arm had nothing to play. No row is a statement about the published models.
"""
COLUMNS = (
    "| method | delay ms | success | 95 % | p | RMS mm | seam | within | waiting |\n" + "| --- " * 9 + "|\n"
)


def cells_of(work: Path, task: str, method: Method, seeds: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """By delay in ms: a cell per seed that has been evaluated whole."""
    found: dict[int, list[dict[str, Any]]] = {}
    for seed in seeds:
        info = read_evaluation(work / "evals" / evaluation_of(task, seed, method))
        for cell in () if info is None or info["stopped"] else info["cells"]:
            found.setdefault(int(cell["delay_ms"]), []).append(cell | {"training_seed": seed})
    return found


def row(name: str, delay_ms: int, cells: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> str:
    good = sum(cell["aggregated"]["n_success"] for cell in cells)
    n = sum(cell["aggregated"]["n_episodes"] for cell in cells)
    low, high = wilson(good, n)
    rms, seam, within = (
        float(np.mean([value["value"] for value in values]))
        for values in (
            [cell["figures"]["rms_mm"] for cell in cells],
            [cell["seams"]["p95"] for cell in cells],
            [cell["seams"]["within_p95"] for cell in cells],
        )
    )
    waiting = float(np.mean([cell["starved_share"] for cell in cells]))
    return (
        f"| {name} | {delay_ms} | {good} of {n} | {100 * low:.0f} to {100 * high:.0f} | {against(cells, plain)} | "
        f"{rms:.0f} | {seam:.2f} | {within:.2f} | {100 * waiting:.0f} % |\n"
    )


def against(cells: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> str:
    """p of the exact McNemar test over the pairs of all seeds that both have; "-" of `async` itself."""
    theirs = {cell["training_seed"]: cell for cell in plain}
    pairs = [(theirs[cell["training_seed"]], cell) for cell in cells if cell["training_seed"] in theirs]
    if not pairs or all(first == second for first, second in pairs):
        return "-"
    first, second = (
        [bool(episode["success"]) for pair in pairs for episode in pair[i]["per_episode"]] for i in (0, 1)
    )
    return f"{Pairs.of(first, second).p:.2g}"


def tables(work: Path, tasks: Sequence[str], seeds: Sequence[int]) -> str:
    told = conditions(__file__, is_short=False).replace(str(work), "WORK")
    text = HEAD.format(
        conditions=told, policy=POLICY, steps=STEPS, batch=BATCH, second=SECOND_PHASE_STEPS,
        ahead=N_ACTIONS_AHEAD, seeds=", ".join(map(str, seeds)),
    )  # fmt: skip
    for task in tasks:
        text += f"\n## {STUDIES[task].task}\n\n{COLUMNS}"
        plain = cells_of(work, task, METHODS["async"], seeds)
        for name, method in METHODS.items():
            found = cells_of(work, task, method, seeds)
            text += "".join(row(name, ms, cells, plain.get(ms, ())) for ms, cells in sorted(found.items()))
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", default="two,conveyor", help="keys of the suite's studies")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    tasks, seeds = args.tasks.split(","), [int(seed) for seed in args.seeds.split(",")]
    if not args.tables:
        comparison = Comparison(args.work, args.episodes)
        for seed in seeds:
            for task in tasks:
                comparison.compare(task, seed)
    (RESULTS / "flow_methods.md").write_text(tables(args.work, tasks, seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
