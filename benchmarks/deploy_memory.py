"""What the processes of a simulated deployment hold, and how soon the arm moves.

    python benchmarks/deploy_memory.py WORK [--python ROBOT/bin/python] [--runs 3]

A hand-made bundle of a few nodes drives an emulated SO-101 with one camera. Memory is PSS (/proc/PID/smaps_rollup:
shared pages are divided among those who share them, also with other programs: on a busy machine take an environment
that nobody else runs), 3 s into the run; the policy's process is told by itself, because what it holds is the network's.
The time is from the start of the program to the line that says the arm runs.
--python: another environment's, to measure what a robot has installed. Results: benchmarks/results/deploy_memory.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "runtime")]
from deployment_kit import make_bundle  # noqa: E402
from result_kit import conditions  # noqa: E402

SECONDS = 8
NAMES = {
    "edgevla.nodes.policy": "policy",
    "edgevla.robots.world.sim_camera": "simulated camera",
    "edgevla.robots.emulator.cli": "emulated servos",
    "edgevla.robots.guardian": "guardian",
    "edgevla.robots.node_process": "control loop",
}


def run(work: Path, python: str) -> tuple[float, dict[str, float]]:
    """Seconds to the first motion, and MB of each process."""
    words = [python, "-m", "edgevla", "deploy", str(work / "bundle"), "--robot", "so101", "--sim"]
    began = time.monotonic()
    process = subprocess.Popen(
        [*words, "--duration", str(SECONDS), "--log", str(work / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=work,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if " robot " in line and line.rstrip().endswith(" running"):
            break
    else:
        raise SystemExit("".join(said))
    first_motion_s = time.monotonic() - began
    time.sleep(3)
    parent = psutil.Process(process.pid)
    held: dict[str, float] = {}
    for one in (parent, *parent.children(recursive=True)):
        name = next((n for module, n in NAMES.items() if module in one.cmdline()), None)
        name = name or ("supervisor" if one == parent else " ".join(one.cmdline())[-40:])
        held[name] = held.get(name, 0.0) + pss_mb(one.pid)
    process.stdout.read()
    process.wait()
    return first_motion_s, held


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    work = args.work.resolve()
    if not (work / "bundle").exists():
        make_bundle(work / "bundle")
    runs = [run(work, args.python) for _ in range(args.runs)]
    names = sorted({name for _, held in runs for name in held}, key=lambda n: -runs[0][1].get(n, 0))
    rows = [(name, [held.get(name, 0.0) for _, held in runs]) for name in names]
    rows.append(("**all but the policy**", [sum(h.values()) - h.get("policy", 0.0) for _, h in runs]))
    text = "# Memory and start of a simulated deployment\n\n" + conditions("deploy_memory.py", args.runs < 3)
    text += f"\n\n| PSS, MB | {' | '.join(f'run {i + 1}' for i in range(len(runs)))} |\n| --- |{' ---: |' * len(runs)}\n"
    text += "".join(f"| {name} | {' | '.join(f'{mb:.0f}' for mb in found)} |\n" for name, found in rows)
    text += f"| first motion, s | {' | '.join(f'{s:.2f}' for s, _ in runs)} |\n"
    (ROOT / "benchmarks/results/deploy_memory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
