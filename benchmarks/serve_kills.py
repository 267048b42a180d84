"""A policy server is killed and started again under a moving arm, many times: what the arm was told, when it went on.

    python benchmarks/serve_kills.py [--kills 100] [--seed 0] [--out FILE]

One deployment on one emulated arm, whose policy (made by hand) never lets it come to rest, and a server on this machine
that gets SIGKILL at a random moment and is started again at a random moment after that. In the end the trace of the bus
is held against the rules of `tests/runtime/bus_trace.py`, and the log against these: no request is answered twice, no
action played again, the rollout is the one that was begun. Exit code 1 where a rule was broken. Not part of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from deployment_kit import Deployment, make_bundle, write_fast_profile
from remote_kit import Server, log_of, verdict_on
from result_kit import conditions
from serve_kit import free_port

from edgevla.flight.reader import entries

UNDER_WAY_S, DEAD_S = (0.2, 2.0), (0.0, 2.5)
"""From a new chunk to the kill, from there to the next start: shorter and longer than a chunk, which is one second."""
START_S, GOES_ON_S = 180.0, 60.0
KILLS, TURNING = 100, 0.05
MOVES_DEG_S = 2.0
HEAD = """# A policy server killed under a moving arm

{conditions}

{kills} kills of the server (SIGKILL) in one deployment of an emulated SO101 over loopback; started again {least}
to {most} s later. A server needs {start:.1f} s (median) from its start until it listens.

| what | |
| --- | --- |
| kills, arm moving by more than {moves:g} deg/s | {kills}, {moving} |
| goals sent, largest step (ticks) | {goals}, {step} |
| rules broken, actions played twice, requests answered twice | {broken} |
| rollouts | {rollouts} |
| how torque went off in the end | {endings} |
| from the server's listening to the first new chunk: median, longest | {heard:.2f} s, {heard_most:.2f} s |
| from the kill to the first new chunk, with the server's own start: median, longest | {out:.2f} s, {out_most:.2f} s |
| time in which the arm had nothing to play | {starved:.0f} % |
"""


@dataclass(frozen=True)
class Kill:
    """Monotonic ns: of the kill, of the next start, of the server's listening."""

    at_ns: int
    start_ns: int
    listening_ns: int


class Chunks:
    """The chunks in a log that is being written."""

    def __init__(self, run: Deployment) -> None:
        self._folder = run.log_path

    def wait_after(self, t_ns: int) -> None:
        """Until one was made later than that."""
        until = time.monotonic() + GOES_ON_S
        while True:
            if any(e["type"] == "chunk" and e["sent_ns"] > t_ns for e in entries(self._folder)):
                return
            assert time.monotonic() < until, f"no new chunk came within {GOES_ON_S:.0f} s"
            time.sleep(0.5)  # the log comes in blocks of two seconds, and is read from its beginning


def killed(server: Server, run: Deployment, n: int, rng: random.Random) -> list[Kill]:
    kills: list[Kill] = []
    chunks = Chunks(run)
    chunks.wait_after(0)
    for number in range(1, n + 1):
        time.sleep(rng.uniform(*UNDER_WAY_S))
        at_ns = time.monotonic_ns()
        server.kill()
        time.sleep(rng.uniform(*DEAD_S))
        start_ns = time.monotonic_ns()
        server.start()
        kills.append(Kill(at_ns, start_ns, time.monotonic_ns()))
        chunks.wait_after(kills[-1].listening_ns)
        print(f"{number:4d} after {(time.monotonic_ns() - at_ns) / 1e9:.2f} s", flush=True)
    time.sleep(1.0)
    return kills


def is_moving(states: Sequence[dict[str, Any]], at_ns: int) -> bool:
    """By the states in the half second before."""
    before = [s for s in states if at_ns - 500_000_000 <= s["observed_ns"] <= at_ns]
    if len(before) < 2:
        return False
    way = np.abs(np.subtract(before[-1]["position"][:2], before[0]["position"][:2])).max()
    return bool(way * 1e9 > MOVES_DEG_S * (before[-1]["observed_ns"] - before[0]["observed_ns"]))


def table(run: Deployment, kills: Sequence[Kill]) -> tuple[str, list[str]]:
    """The page, and the rules that were broken."""
    verdict, log = verdict_on(run), log_of(run)
    broken = list(verdict.violations)
    states = [x for x in log if x["type"] == "state" and x["mode"] in ("running", "holding")]
    came = sorted(x["sent_ns"] for x in log if x["type"] == "chunk")
    rollouts = len({x["t0_ns"] for x in states[1:]})  # the first heard `start`, in the grid before
    if rollouts != 1:
        broken.append(f"there were {rollouts} rollouts")
    if list(verdict.endings) != ["rest"]:
        broken.append(f"the arm ended by {dict(verdict.endings)}")
    first = [next(t for t in came if t > kill.listening_ns) for kill in kills]
    heard = [(t - kill.listening_ns) / 1e9 for t, kill in zip(first, kills, strict=True)]
    out = [(t - kill.at_ns) / 1e9 for t, kill in zip(first, kills, strict=True)]
    text = HEAD.format(
        conditions=conditions(__file__, len(kills) < KILLS), kills=len(kills), least=DEAD_S[0], most=DEAD_S[1],
        start=np.median([kill.listening_ns - kill.start_ns for kill in kills]) / 1e9,
        moves=MOVES_DEG_S, moving=sum(is_moving(states, kill.at_ns) for kill in kills),
        goals=verdict.n_goals, step=verdict.largest_step, broken="none" if not broken else f"**{len(broken)}**",
        rollouts=rollouts, endings=", ".join(verdict.endings), heard=np.median(heard), heard_most=max(heard),
        out=np.median(out), out_most=max(out),
        starved=100 * np.mean([x["n_actions_left"] == 0 for x in states]),
    )  # fmt: skip
    return text + "".join(f"\n    {sentence}\n" for sentence in broken), broken


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_kills.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/tmp") as name, contextlib.ExitStack() as ending:
        folder = Path(name)
        server = Server(make_bundle(folder / "bundle", turning=TURNING), free_port())
        ending.callback(server.kill)
        profile = write_fast_profile(folder / "so101_fast.toml")
        run = Deployment(folder, f"--policy={server.endpoint}/arm", profile, f"--seed={args.seed}")
        ending.callback(run.close)
        run.wait_for("robot        running", START_S)
        kills = killed(server, run, args.kills, random.Random(args.seed))
        run.process.send_signal(signal.SIGTERM)
        run.wait_for_end()
        text, broken = table(run, kills)
    args.out.write_text(text)
    print(text)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
