"""How soon the arm of a simulated deployment moves, and what the start costs.

    python benchmarks/first_motion.py WORK [--python ROBOT/bin/python] [--runs 11] [--tree NAME=FOLDER ...]

A hand-made bundle of a few nodes drives an emulated SO-101 with one camera. The time is from the start of the program to
the line that says the arm runs; processor time is that of all its processes until then. A run before those that count
compiles EdgeVLA and reads the libraries, as they are after the first deployment of a day.
--tree: other sources of EdgeVLA than the environment has, measured by turns, so that a change is compared with what was
before it under the same load. Results: benchmarks/results/first_motion.md.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "runtime")]
from deploy_memory import Started, asked  # noqa: E402
from result_kit import conditions  # noqa: E402


def run(work: Path, python: str, tree: Path | None) -> tuple[float, float]:
    """Seconds until the first motion, and processor time in s."""
    started = Started(work, python, 1, tree)
    spent = [process.cpu_times() for _, process in started.processes()]
    started.wait()
    return started.first_motion_s, sum(times.user + times.system for times in spent)


def main() -> None:
    args, trees = asked(__doc__, 11)
    work = args.work
    for tree in trees.values():
        run(work, args.python, tree)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    for _ in range(args.runs):
        for name, tree in trees.items():
            found[name].append(run(work, args.python, tree))
    text = "# First motion of a simulated deployment\n\n" + conditions("first_motion.py", args.runs < 11)
    text += "\n\n| | median, s | quickest, s | slowest, s | processor time, median, s |\n"
    text += "| --- | ---: | ---: | ---: | ---: |\n"
    for name, runs in found.items():
        waited, spent = [s for s, _ in runs], [cpu for _, cpu in runs]
        middle, cpu = statistics.median(waited), statistics.median(spent)
        text += f"| {name} | {middle:.2f} | {min(waited):.2f} | {max(waited):.2f} | {cpu:.2f} |\n"
    (ROOT / "benchmarks/results/first_motion.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
