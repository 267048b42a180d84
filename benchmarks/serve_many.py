"""Robots that share a policy server, with and without micro-batches: requests per second, and each robot's waiting.

    python benchmarks/serve_many.py [BUNDLE] [--seconds 20] [--threads 1] [--out FILE]

BUNDLE was exported with --max-batch; without one the tiny SmolVLA of the tests is exported for 8. Two servers of it, one
with `--max-batch 1`, are asked by turns by 1, 4 and 16 robots without a pause. Not part of the tests.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zmq

from edgevla.bundle import load_bundle
from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot
from edgevla.manifest import Manifest
from edgevla.predictor import Wanted
from edgevla.serve.remote import RemotePolicy, look_up
from edgevla.serve.transport import Address
from edgevla.types import Observation

CHECKPOINT = Path(__file__).parents[1] / "tests" / "fixtures" / "goldens" / "smolvla" / "checkpoint"
ROBOTS, MOST, TURNS = (1, 4, 16), 8, 4
HEAD = """# Robots that share a policy server, with and without micro-batches

Written by `python benchmarks/serve_many.py` on {machine} (load average {load:.1f} at the end: other work ran, if it is
not small; compare rows, not days). {policy}, {threads} thread(s) of the engine; robots ask without a pause,
pictures raw; all robots are threads of one process; both servers by turns in one run.

| robots | robots in one inference | requests per second | median ms | p99 ms | slowest robot's median ms |
| --- | --- | --- | --- | --- | --- |
"""


def robot(m: Manifest) -> AboutRobot:
    """One that the bundle fits."""
    joints = tuple(
        AboutJoint(name, unit, -1e3, 1e3, 1e3, unit == "percent", None, m.action.zero)
        for name, unit in zip(m.action.names, m.action.units, strict=True)
    )
    names = m.provenance.options.get("cameras", {})
    seen = tuple(
        AboutCamera(names.get(c, c.rpartition(".")[2]), "0", *m.features[c].shape[:2], m.fps, False, "exact")
        for c in m.cameras
    )
    return AboutRobot("robot", "made up", joints, seen, m.fps, (), ())


class Robot:
    def __init__(self, number: int, server: str, m: Manifest) -> None:
        self._ctx = zmq.Context()
        session, servers = f"robot {number:2}".encode(), (Address(server),)
        served = look_up(self._ctx, servers, session, 60.0)
        self._policy = RemotePolicy(self._ctx, servers, served, robot(m), session, seed=number)
        rng = np.random.default_rng(number)
        images = {c: rng.integers(0, 256, m.features[c].shape, np.uint8) for c in m.cameras}
        n = 0 if m.state is None else m.state.shape[0]
        self._seen = Observation(
            rng.normal(0, 1, n).astype(np.float32), images, task="put the cube into the bowl"
        )
        self._number = 0
        self.spent: list[float] = []
        """ms of each answer."""

    def ask_until(self, end: float) -> None:
        while time.monotonic() < end:
            self.ask(100.0)

    def ask(self, budget_s: float) -> None:
        """Raises what `RemotePolicy.infer` raises, in time."""
        began = time.monotonic()
        wanted = Wanted(time.monotonic_ns() + round(budget_s * 1e9))
        self._number += 1
        self._policy.infer(
            self._seen, grid_index=0, past={}, n_steps=None, rtc=None, chunk_seq=self._number, wanted=wanted
        )
        self.spent.append(1000 * (time.monotonic() - began))

    def close(self) -> None:
        self._policy.close()
        self._ctx.destroy(linger=0)


def serve(bundle: Path, port: int, *words: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "edgevla",
        "serve",
        f"it={bundle}",
        f"--bind=tcp://127.0.0.1:{port}",
        *words,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def together(robots: Sequence[Robot], seconds: float) -> None:
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=one.ask_until, args=(end,)) for one in robots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rows(n: int, ways: dict[int, str], m: Manifest, seconds: float) -> list[str]:
    """ways: robots in one inference -> the server."""
    asking = {most: [Robot(i, server, m) for i in range(n)] for most, server in ways.items()}
    for robots in asking.values():
        together(robots, 0.0)
    for _ in range(TURNS):
        for robots in asking.values():
            together(robots, seconds / TURNS)
    made = []
    for most, robots in asking.items():
        spent = [ms for one in robots for ms in one.spent]
        p50, p99 = np.percentile(spent, [50, 99])
        slowest = max(float(np.median(one.spent)) for one in robots)
        made.append(
            f"| {n} | {most} | {len(spent) / seconds:.1f} | {p50:.1f} | {p99:.1f} | {slowest:.1f} |\n"
        )
        for one in robots:
            one.close()
    return made


def exported(folder: Path) -> Path:
    """The tests' SmolVLA, a few layers of it."""
    from edgevla.export.build import export_checkpoint
    from edgevla.export.options import ExportOptions

    options = ExportOptions(
        robot="so101",
        fps=30,
        joint_units="degrees",
        cameras={"observation.images.top": "front", "observation.images.wrist": "wrist"},
        n_samples=2,
        n_timed=1,
        max_batch=MOST,
    )
    return export_checkpoint(CHECKPOINT, folder / "bundle", options).bundle.folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=20.0, help="per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_many.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or exported(Path(folder))
        m = load_bundle(bundle).manifest
        words = f"--threads={args.threads}"
        servers = [serve(bundle, 5643, words, "--max-batch=1"), serve(bundle, 5644, words)]
        try:
            ways = {1: "tcp://127.0.0.1:5643", m.batch.max: "tcp://127.0.0.1:5644"}
            found = [row for n in ROBOTS for row in rows(n, ways, m, args.seconds)]
        finally:
            for server in servers:
                server.terminate()
                server.wait(20)
    machine, policy = f"{os.cpu_count()} cores {platform.machine()}", f"{m.policy} '{m.name}'"
    load = os.getloadavg()[0]
    text = HEAD.format(machine=machine, load=load, policy=policy, threads=args.threads) + "".join(found)
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
