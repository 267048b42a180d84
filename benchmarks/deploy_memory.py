"""What the processes of a simulated deployment hold.

    python benchmarks/deploy_memory.py WORK [--python ROBOT/bin/python] [--runs 3] [--tree NAME=FOLDER ...]

A hand-made bundle of a few nodes drives an emulated SO-101 with one camera. Memory is PSS (/proc/PID/smaps_rollup:
shared pages are divided among those who share them, also with other programs: on a busy machine take an environment
that nobody else runs), 3 s into the run; the policy's process is told by itself, because what it holds is the network's.
The state is that of a robot after a boot: EdgeVLA is compiled already (a run before those that count does it), and the
libraries are read from the disk. A library that was only just written lies in the kernel's memory in large pieces, of
which a process is given more than it uses: OpenCV 35 MB instead of 10. Anonymous memory (heap, stacks, relocated
pointers) is what the kernel cannot take back.
--python: another environment's, to measure what a robot has installed. --tree: other sources of EdgeVLA than the
environment has, by turns, so that a change is compared with what was before it.
Results: benchmarks/results/deploy_memory.md.
"""

from __future__ import annotations

import argparse
import os
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


class Started:
    """A deployment whose arm has begun to move. first_motion_s: from the start of the program to that line."""

    def __init__(self, work: Path, python: str, seconds: int, tree: Path | None = None) -> None:
        """tree: of EdgeVLA's source, in place of what the environment has."""
        words = [python, "-m", "edgevla", "deploy", str(work / "bundle"), "--robot", "so101", "--sim"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*words, "--duration", str(seconds), "--log", str(work / "log")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=work,
            env={**env, **({} if tree is None else {"PYTHONPATH": str(tree)})},
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if " robot " in line and line.rstrip().endswith(" running"):
                break
        else:
            raise SystemExit("".join(said))
        self.first_motion_s = time.monotonic() - began

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """With their names."""
        parent = psutil.Process(self.process.pid)
        found = []
        for one in (parent, *parent.children(recursive=True)):
            words = one.cmdline()
            name = next((n for module, n in NAMES.items() if module in words), None)
            found.append((name or ("supervisor" if one == parent else " ".join(words)[-40:]), one))
        return found

    def wait(self) -> None:
        """Until it has ended."""
        self.process.communicate()


def held_mb(started: Started) -> dict[str, tuple[float, float]]:
    """PSS, and how much of it is anonymous, by process."""
    held = {}
    for name, process in started.processes():
        rows = [r.split() for r in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]]
        kb = {row[0]: int(row[1]) for row in rows}
        held[name] = (kb["Pss:"] * 1024 / 1e6, kb["Pss_Anon:"] * 1024 / 1e6)
    return held


def forget_libraries(python: str) -> None:
    """The kernel reads the environment's shared objects anew when they are used next."""
    where = [python, "-c", "import sys; print(sys.prefix)"]
    prefix = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    for path in prefix.rglob("*.so*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def trees_of(texts: list[str]) -> dict[str, Path | None]:
    """`--tree`: name -> folder; without one, what is installed."""
    pairs = [text.split("=", 1) for text in texts]
    return {name: Path(folder).resolve() for name, folder in pairs} or {"as installed": None}


def run(work: Path, python: str, tree: Path | None) -> dict[str, tuple[float, float]]:
    started = Started(work, python, SECONDS, tree)
    time.sleep(3)
    held = held_mb(started)
    started.wait()
    return held


def asked(doc: str | None, runs: int) -> tuple[argparse.Namespace, dict[str, Path | None]]:
    """The command line, and its trees; WORK holds a bundle. runs: how many by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=lambda text: Path(text).resolve())
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=FOLDER")
    args = parser.parse_args()
    if not (args.work / "bundle").exists():
        make_bundle(args.work / "bundle")
    return args, trees_of(args.tree)


def main() -> None:
    args, trees = asked(__doc__, 3)
    work = args.work
    for tree in trees.values():
        Started(work, args.python, 1, tree).wait()
    forget_libraries(args.python)
    runs = [
        (f"{name} {i + 1}", run(work, args.python, tree))
        for i in range(args.runs)
        for name, tree in trees.items()
    ]
    names = sorted({name for _, held in runs for name in held}, key=lambda n: -runs[0][1].get(n, (0, 0))[0])
    rows = [(name, [held.get(name, (0.0, 0.0)) for _, held in runs]) for name in names]
    beside = [[held[name] for name in held if name != "policy"] for _, held in runs]
    sums = [(sum(pss for pss, _ in row), sum(anonymous for _, anonymous in row)) for row in beside]
    rows.append(("**all but the policy**", sums))
    text = "# Memory of a simulated deployment\n\n" + conditions("deploy_memory.py", args.runs < 3)
    text += f"\n\n| PSS, MB (of it anonymous) | {' | '.join(name for name, _ in runs)} |\n"
    text += f"| --- |{' ---: |' * len(runs)}\n"
    for name, found in rows:
        text += f"| {name} | {' | '.join(f'{pss:.0f} ({anonymous:.0f})' for pss, anonymous in found)} |\n"
    (ROOT / "benchmarks/results/deploy_memory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
