"""Sixteen robots at one policy server for ten minutes: its memory, each robot's answers, the worst of them, errors.

    python benchmarks/serve_soak.py [BUNDLE] [--minutes 10] [--robots 16] [--hz 4] [--out FILE]

Robots are threads of one process that speak the protocol as an arm does: each asks so often, whatever came of the last
time, and gives up an answer that takes longer than a second. BUNDLE: any; without one a policy of a few nodes with two
pictures of 320x240. Memory: of the server's process (RSS), every second. Not part of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from deployment_kit import make_bundle
from remote_kit import Server
from result_kit import conditions
from serve_kit import free_port
from serve_many import Robot

from edgevla.bundle import load_bundle
from edgevla.errors import EdgeVLAError
from edgevla.manifest import Manifest

CAMERAS, SIZE = ("front", "wrist"), (240, 320)
MINUTES, PATIENCE_S = 10.0, 1.0
SETTLED = 0.1
"""Of the time: later, memory should not grow."""
HEAD = """# {robots} robots at one policy server for {minutes:g} minutes

{conditions}

{robots} robots, {hz:g} requests per second each, for {minutes:g} minutes; {policy}, pictures raw, over loopback, one
thread of the engine; robots and server share the machine.

| what | |
| --- | --- |
| answers | {answers}, {share:.2f} % of what was asked |
| answers per robot, fewest and most | {fewest}, {most} |
| ms: median, p99, worst | {p50:.1f}, {p99:.1f}, {worst:.1f} |
| worst answer of each robot, ms, least and most | {worst_least:.1f}, {worst:.1f} |
| errors | {errors} |
| server's memory, MB: after {settled:.0f} s, in the end, most | {before:.1f}, {after:.1f}, {peak:.1f} |
| memory per minute after that (a line through it), MB | {slope:+.3f} |
| server's CPU | {cpu:.0f} % of one core |
"""


class Asking:
    """A robot that asks for a chunk at a steady rate. errors: by sentence."""

    def __init__(self, number: int, server: str, m: Manifest, period_s: float, phase_s: float) -> None:
        self.robot, self.errors, self.n_asked = Robot(number, server, m), Counter[str](), 0
        self._period_s, self._phase_s = period_s, phase_s

    def run(self, end: float) -> None:
        due = time.monotonic() + self._phase_s
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            self.n_asked += 1
            try:
                self.robot.ask(PATIENCE_S)
            except EdgeVLAError as error:
                self.errors[str(error)] += 1
            due = max(due + self._period_s, time.monotonic())


def watched(asking: list[Asking], pid: int, seconds: float) -> tuple[np.ndarray, float]:
    """The server's memory in MB, (n, 2) with the second of each; its share of a core."""
    server, began = psutil.Process(pid), time.monotonic()
    threads = [threading.Thread(target=one.run, args=(began + seconds,)) for one in asking]
    for thread in threads:
        thread.start()
    before, seen = sum(server.cpu_times()[:2]), []
    while any(thread.is_alive() for thread in threads):
        seen.append((time.monotonic() - began, server.memory_info().rss / 1e6))
        time.sleep(1.0)
    return np.array(seen), (sum(server.cpu_times()[:2]) - before) / (time.monotonic() - began)


def table(asking: list[Asking], memory: np.ndarray, cpu: float, args: argparse.Namespace, m: Manifest) -> str:
    counts = [len(one.robot.spent) for one in asking]
    worst = [max(one.robot.spent, default=np.nan) for one in asking]
    spent = np.concatenate([one.robot.spent for one in asking])
    errors = sum((one.errors for one in asking), Counter[str]())
    settled = memory[memory[:, 0] >= SETTLED * memory[-1, 0]]
    slope = np.polyfit(settled[:, 0] / 60, settled[:, 1], 1)[0] if len(settled) > 2 else np.nan
    return HEAD.format(
        conditions=conditions(__file__, args.minutes < MINUTES), robots=args.robots, hz=args.hz, minutes=args.minutes,
        policy=f"{m.policy} '{m.name}'", answers=len(spent),
        share=100 * len(spent) / sum(one.n_asked for one in asking), fewest=min(counts), most=max(counts),
        p50=np.median(spent), p99=np.percentile(spent, 99), worst=max(worst), worst_least=min(worst),
        errors="; ".join(f"{n} x `{text}`" for text, n in errors.most_common(5)) or "none",
        settled=settled[0, 0], before=settled[0, 1], after=settled[-1, 1], peak=memory[:, 1].max(), slope=slope,
        cpu=100 * cpu,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--robots", type=int, default=16)
    parser.add_argument("--hz", type=float, default=4.0, help="requests per second of each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_soak.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        bundle = args.bundle or make_bundle(Path(folder) / "bundle", cameras=CAMERAS, size=SIZE)
        m = load_bundle(bundle).manifest
        server = Server(bundle, free_port())
        ending.callback(server.kill, signal.SIGTERM)
        every = 1 / args.hz
        asking = [Asking(i, server.endpoint, m, every, i * every / args.robots) for i in range(args.robots)]
        for one in asking:
            ending.callback(one.robot.close)
        memory, cpu = watched(asking, server.process.pid, 60 * args.minutes)
        text = table(asking, memory, cpu, args, m)
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
