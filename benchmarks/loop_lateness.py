"""How late the control loop is, beside an empty absolute-deadline loop of the same rate in the same run.

    python benchmarks/loop_lateness.py BUNDLE [--seconds 300] [--servo-hz 50] [--out FILE.json]

Two rounds, idle and with every core loaded by another process. In each round both loops run at the same time: the
deployment (emulator, guardian, control loop, camera, policy) and the empty loop, which asks for the same priority.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edgevla.clock import MonotonicClock, ticker
from edgevla.nodes.vitals import ask_for_real_time, freeze_garbage


def empty_loop(period_ns: int, until: float, results: multiprocessing.SimpleQueue) -> None:
    refusal = ask_for_real_time()
    freeze_garbage()
    late = []
    for tick in ticker(MonotonicClock(), period_ns):
        late.append(tick.late_ns)
        if time.monotonic() > until:
            break
    results.put((figures(np.array(late) / 1e6), refusal))


def figures(late_ms: np.ndarray) -> dict[str, float]:
    p50, p99 = np.percentile(late_ms, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": float(late_ms.max()), "n": len(late_ms)}


def burn() -> None:
    while True:
        sum(i * i for i in range(100_000))


def one_round(args: argparse.Namespace, is_loaded: bool) -> dict[str, object]:
    n_burners = (os.cpu_count() or 1) if is_loaded else 0
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(n_burners)]
    for burner in burners:
        burner.start()
    queue: multiprocessing.SimpleQueue = multiprocessing.SimpleQueue()
    hz = args.servo_hz
    empty = multiprocessing.Process(
        target=empty_loop, args=(round(1e9 / hz), time.monotonic() + args.seconds + 4, queue)
    )
    empty.start()
    command = [sys.executable, "-m", "edgevla", "deploy", args.bundle, "--robot=so101", "--sim", "--json"]
    command += [f"--duration={args.seconds}", f"--servo-hz={hz}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    floor, refusal = queue.get()
    empty.join()
    for burner in burners:
        burner.terminate()
    if done.returncode:
        raise SystemExit(done.stderr)
    summary = json.loads(done.stdout)
    loop = summary["lateness_ms"]
    return {
        "load": "every core loaded" if is_loaded else "idle",
        "loop_ms": loop,
        "empty_ms": floor,
        "real_time": refusal or "granted",
        "deadline_misses": summary["deadline_misses"],
        "ticks": summary["ticks_running"],
        "bus": summary["bus"],
        "aim_met": loop["p99"] <= 1.5 * floor["p99"] + 0.5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--servo-hz", type=float, default=50.0, help="at least the bundle's fps")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds = [one_round(args, is_loaded) for is_loaded in (False, True)]
    print(
        f"{'':<20}{'loop p50':>10}{'p99':>8}{'max':>8}   {'empty p50':>10}{'p99':>8}{'max':>8}   missed   (ms)"
    )
    for r in rounds:
        loop, empty = r["loop_ms"], r["empty_ms"]
        print(
            f"{r['load']:<20}{loop['p50']:10.3f}{loop['p99']:8.3f}{loop['max']:8.2f}   {empty['p50']:10.3f}"
            f"{empty['p99']:8.3f}{empty['max']:8.2f}   {r['deadline_misses']:>6} of {r['ticks']}"
        )
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
