"""How much faster the exported graphs are than eager PyTorch, every policy in one run.

    python benchmarks/exported_vs_eager.py [--goldens DIR] [--real-size]

Every golden is exported, then torch and ONNX Runtime infer by turns in one process with one thread each: the whole
chunk from raw observation to robot units, through the runtime's own `BundlePolicy`. --real-size adds SmolVLA at its
published dimensions (a quarter of an hour, 4 GB of disk). Not part of the tests.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgevla.engines import EngineOptions
from edgevla.export.build import export_policy, in_float32
from edgevla.export.options import ExportOptions
from edgevla.runner import BundlePolicy
from edgevla.train.checkpoint import load_policy
from edgevla.train.policies.base import TorchGraph

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))

import real_sizes
from golden_harness import DEFAULT, Fixture, own_graphs

RESULTS = Path(__file__).parent / "results" / "exported_vs_eager.md"
PARTS = ("encode", "denoise", "decode")
HEAD = """# Exported against eager

Written by `python benchmarks/exported_vs_eager.py`: ONNX Runtime and eager torch {torch}, CPU, one thread each,
float32, by turns in one process on {machine} (load average {load:.1f} at the end: other work ran). Medians of {n}
chunks, ms; at published dimensions of 5 encodes and 5 steps, put together. best: the same ratio of both minima. encode,
step: the ratio of those parts alone. The goldens are tiny, so there the ratio is mostly what Python costs eager torch;
only the last row says something about a real policy.

| golden | parameters | steps | eager ms | exported ms | eager / exported | best | encode | step |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def measure(fixture: Fixture, scratch: Path, n: int) -> str:
    """Exports one golden and times it."""
    folder = fixture.write_checkpoint(scratch / "policy")
    policy = load_policy(folder, adapt=in_float32)
    n_parameters = sum(p.numel() for p in policy.parameters())
    options = ExportOptions(fps=30, joint_units="raw", n_samples=2, n_timed=1)
    done = export_policy(policy, folder, scratch / "bundle", options)
    sample = done.comparison.samples[0]
    torch_graphs = {str(k): TorchGraph(policy, k, spec) for k, spec in policy.graphs().items()}
    threads = EngineOptions(threads=1)
    both = (
        BundlePolicy(done.bundle, graphs=torch_graphs, options=threads),
        BundlePolicy(done.bundle, options=threads),
    )
    spent: tuple[list[list[int]], list[list[int]]] = ([], [])
    with torch.no_grad():
        for i in range(n + 1):
            for runner, laps in zip(both, spent, strict=True):
                runner.reset()
                result = runner.infer(
                    sample.observation, grid_index=sample.grid_index, past=sample.past, chunk_seq=0
                )
                if i:  # the first is a warm-up
                    laps.append([*(result.timing_ns[p] for p in PARTS), sum(result.timing_ns.values())])
    eager, exported = (np.array(laps) / 1e6 for laps in spent)
    middle = np.median(eager, axis=0) / np.maximum(np.median(exported, axis=0), 1e-9)
    steps = done.bundle.manifest.schedule.n_steps if done.bundle.manifest.schedule is not None else 0
    cells = [
        fixture.name,
        f"{n_parameters / 1e3:.0f} k",
        str(steps),
        f"{np.median(eager[:, -1]):.1f}",
        f"{np.median(exported[:, -1]):.1f}",
        f"**{middle[-1]:.2f}**",
        f"{eager[:, -1].min() / exported[:, -1].min():.2f}",
        f"{middle[0]:.2f}",
        f"{middle[1]:.2f}" if steps else "-",
    ]
    return f"| {' | '.join(cells)} |"


def real_size(scratch: Path) -> str:
    """SmolVLA, 450 M parameters, by the stages of real_sizes.py."""
    arguments = argparse.Namespace(kind="smolvla", dtype="float32")
    folder = scratch / "policy"
    made = real_sizes.stage("build", arguments, folder)
    real_sizes.stage("export", arguments, folder)
    best = real_sizes.stage("latency", arguments, folder)
    encode, step = best["encode"], best["step"]
    n = best["n_steps"]
    chunk = [e + n * s for e, s in zip(encode["median_ms"], step["median_ms"], strict=True)]
    chunk_best = [e + n * s for e, s in zip(encode["best_ms"], step["best_ms"], strict=True)]
    ratio = lambda pair: f"{pair[0] / pair[1]:.2f}"  # noqa: E731
    cells = [
        "smolvla, published dimensions",
        f"{made['parameters'] / 1e6:.0f} M",
        str(n),
        *(f"{ms:.0f}" for ms in chunk),
        f"**{ratio(chunk)}**",
        ratio(chunk_best),
        ratio(encode["median_ms"]),
        ratio(step["median_ms"]),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--goldens", type=Path, default=DEFAULT, help="one fixture, or a folder of them")
    parser.add_argument("--real-size", action="store_true", help="also SmolVLA with 450 M parameters")
    parser.add_argument("--n", type=int, default=30, help="chunks of each (default 30)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for fixture in own_graphs(arguments.goldens):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(fixture, Path(scratch), arguments.n))
        print(rows[-1], flush=True)
    if arguments.real_size:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(real_size(Path(scratch)))
        print(rows[-1], flush=True)
    machine = f"{os.cpu_count()} {platform.machine()} cores"
    head = HEAD.format(torch=torch.__version__, machine=machine, load=os.getloadavg()[0], n=arguments.n)
    RESULTS.write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
