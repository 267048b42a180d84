"""A policy server at the far end of a bad line: what it costs in success, and what happens when the cable is pulled.

    python benchmarks/serve_link.py BUNDLE [--task follow_cube/conveyor] [--execution async] [--episodes 100] [--cuts 20]

BUNDLE: the demo's (`edgevla demo`: bundles/conveyor). Needs root: the server and the robot are in two network
namespaces, paired, and talk over addresses that are not loopback, encrypted, pictures as JPEG. The line between them is
clean, jitters and loses packets, is long, or narrow; `edgevla eval --real-time` plays the task over each, and with the
bundle on the robot itself. Then the line is cut under a moving arm for five seconds, many times. Not part of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from deployment_kit import Deployment, write_fast_profile
from proxy_kit import Weather
from remote_kit import Server, log_of
from result_kit import conditions
from serve_kit import until
from wire_kit import HERE, THERE, NoPlaceError, Wire, new_place

from edgevla.bundle import load_bundle
from edgevla.flight.reader import entries
from edgevla.serve.keys import machine_keys
from edgevla.serve.paired import keep

PORT = 5599
POLICY = f"tcp://{HERE}:{PORT}/arm"
LINES = {
    "clean": Weather(),
    "50 ± 30 ms each way, 1 % of packets lost": Weather(0.05, 0.03, 0.01),
    "200 ms there and back": Weather(0.1),
    "10 Mbit/s": Weather(bytes_per_s=10e6 / 8),
}
EPISODES, CUTS = 100, 20
CUT_S, BETWEEN_S = 5.0, 4.0
START_S = 180.0
HEAD = """# A policy server at the far end of a bad line

{conditions}

Server and robot in two network namespaces, paired, CURVE, pictures as JPEG; packets carried in user space
(`benchmarks/wire_kit.py`), because the kernel here has no netem. {policy}, task `{task}`, `{execution}`,
{episodes} episodes on the same places, through the real processes. Points: of success, against local. Delay: from the
observation to the chunk. kB/s: of IP packets, to the server and to the robot, while chunks came.

| line | success | 95 % | points | delay p50 ms | p99 ms | chunks | kB/s up | kB/s down | said of the server |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
PULLED = """
Cut for {cut_s:.0f} s under a moving arm, {n} times (line clean). From the line's return to the first new chunk: median
{median:.2f} s, longest {worst:.2f} s; a new rollout began {restarts} times. What the user read:

{words}
"""


@dataclass(frozen=True)
class Row:
    """Of one evaluation. share, interval: %. rates: bytes per second to the server, to the robot."""

    share: float
    interval: Sequence[float]
    delays_ms: Sequence[float]
    rates: Sequence[float]
    said: str

    def told(self, name: str, local: Row | None) -> str:
        p50, p99 = np.percentile(self.delays_ms, [50, 99]) if self.delays_ms else (np.nan, np.nan)
        against = "-" if local is None else f"{self.share - local.share:+.1f}"
        low, high = self.interval
        up, down = (rate / 1000 for rate in self.rates)
        return (f"| {name} | {self.share:.1f} % | {low:.0f} to {high:.0f} | {against} | {p50:.0f} | {p99:.0f} | "
                f"{len(self.delays_ms)} | {up:.1f} | {down:.1f} | {self.said} |\n")  # fmt: skip


def evaluate(policy: str, args: argparse.Namespace, folder: Path, wire: Wire) -> Row | str:
    """What it came to; or why it did not, in the words of the command."""
    words = ["eval", policy, "--task", args.task, "--real-time", "--execution", args.execution]
    words += ["--episodes", str(args.episodes), "-o", str(folder)]
    before = list(wire.n_bytes)
    made = subprocess.run([sys.executable, "-m", "edgevla", *words], capture_output=True, text=True)
    to_robot, to_server = (now - then for now, then in zip(wire.n_bytes, before, strict=True))
    if not (folder / "eval_info.json").exists():
        return _short(made.stderr or made.stdout)
    cell: dict[str, Any] = json.loads((folder / "eval_info.json").read_text())["cells"][0]
    log = [line for file in folder.glob("deploy/*/*/run.flight") for line in _lines(file)]
    chunks = [(x["observed_ns"], x["sent_ns"]) for x in log if x["type"] == "chunk"]
    if not chunks:
        return "no chunk came"
    spent_s = (max(chunks)[1] - min(chunks)[0]) / 1e9
    delays, figures = [(sent - seen) / 1e6 for seen, sent in chunks], cell["aggregated"]
    rates = (to_server / spent_s, to_robot / spent_s)
    return Row(figures["pc_success"], figures["pc_success_ci95"], delays, rates, _news(log))


def _lines(log: Path) -> list[dict[str, Any]]:
    return [] if log.parent.is_symlink() else list(entries(log.parent))


def _news(log: Sequence[dict[str, Any]]) -> str:
    """What was said of the server, each once."""
    said = [x["text"] for x in log if x["type"] == "event" and "policy server" in x["text"]]
    return "; ".join(f"{said.count(text)} x `{text}`" for text in dict.fromkeys(said)) or "-"


def _short(text: str) -> str:
    return " ".join(text.split())[-300:].replace("|", "/")


def cuts(args: argparse.Namespace, folder: Path, wire: Wire) -> str:
    """Under one deployment, whose arm moves as the task does."""
    folder.mkdir()
    profile = write_fast_profile(folder / "so101_fast.toml")
    options = (f"--sim-task={args.task}", f"--execution={args.execution}", "--servo-hz=60")
    run = Deployment(folder, f"--policy={POLICY}", profile, *options)
    back: list[int] = []
    try:
        run.wait_for("robot        running", START_S)
        for n in range(1, args.cuts + 1):
            time.sleep(BETWEEN_S)
            wire.is_cut = True
            time.sleep(CUT_S)
            wire.is_cut = False
            back.append(time.monotonic_ns())
            until(lambda n=n: run.output.count("answers again") >= n, 60)
        time.sleep(BETWEEN_S)
        run.process.send_signal(signal.SIGTERM)
        run.wait_for_end()
        log = log_of(run)
    finally:
        wire.is_cut = False
        run.close()
    came = [x["sent_ns"] for x in log if x["type"] == "chunk"]
    spent = [min(t for t in came if t > at) - at for at in back]
    running = [x for x in log if x["type"] == "state" and x["mode"] == "running"]
    grids = {x["t0_ns"] for x in running[1:]}  # the first heard `start`, in the grid before
    said = dict.fromkeys(re.findall(r"^.*policy server.*$", run.output, re.MULTILINE))
    words = "\n".join(f"    {line.strip()}" for line in list(said)[:6])
    return PULLED.format(cut_s=CUT_S, n=len(back), median=np.median(spent) / 1e9, worst=max(spent) / 1e9,
                       restarts=len(grids) - 1, words=words)  # fmt: skip


@contextlib.contextmanager
def paired(bundle: Path, folder: Path) -> Iterator[Wire]:
    """A server in a place of its own; this process goes to the robot's, and knows the server.

    Raises:
        NoPlaceError: no such places on this machine.
    """
    keys = {}
    for side in ("server", "robot"):
        os.environ["EDGEVLA_HOME"] = str(folder / side)
        keys[side] = machine_keys().public
    keep("servers", "server", keys["server"], HERE)
    os.environ["EDGEVLA_HOME"] = str(folder / "server")
    keep("robots", "robot", keys["robot"])
    first = new_place(HERE)
    server = Server(bundle, PORT, HERE)
    try:
        os.environ["EDGEVLA_HOME"] = str(folder / "robot")
        wire = Wire(first, new_place(THERE))
        yield wire
        wire.close()
    finally:
        server.kill(signal.SIGTERM)


def measured(args: argparse.Namespace, folder: Path) -> str:
    m = load_bundle(args.bundle).manifest
    with paired(args.bundle, folder) as wire:
        local = evaluate(str(args.bundle), args, folder / "local", wire)
        if isinstance(local, str):
            raise SystemExit(f"serve_link: the bundle on the robot itself could not be evaluated: {local}")
        rows = [local.told("none: the bundle on the robot", None)]
        for number, (name, weather) in enumerate(LINES.items()):
            wire.weather = weather
            row = evaluate(POLICY, args, folder / f"line{number}", wire)
            told = f"| {name} |{' - |' * 8} {row} |\n" if isinstance(row, str) else row.told(name, local)
            rows.append(told)
            print(told, end="", flush=True)
        wire.weather = Weather()
        pulled = cuts(args, folder / "cuts", wire) if args.cuts else ""
    head = HEAD.format(
        conditions=conditions(__file__, args.episodes < EPISODES or args.cuts < CUTS),
        policy=f"{m.policy} '{m.name}'",
        **vars(args),
    )
    return head + "".join(rows) + pulled


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=lambda text: Path(text).resolve())
    parser.add_argument("--task", default="follow_cube/conveyor")
    parser.add_argument("--execution", default="async")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--cuts", type=int, default=CUTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_link.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="link-", dir="/tmp") as folder:
        try:
            text = measured(args, Path(folder))
        except NoPlaceError as error:
            print(f"serve_link: {error}", file=sys.stderr)
            return 1
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
