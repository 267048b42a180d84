"""What float16 graphs cost in accuracy, every policy: the actions against torch's float32.

    python benchmarks/half_parity.py [--goldens DIR] [--study WORK]

Every golden is exported as it is and in float16, with made-up observations, and compared through the runtime's own
`BundlePolicy`, as `edgevla export` does. --study: also what policies_closed_loop.py trained there, on frames of its data
set. Not part of the tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgevla.export.build import export_policy, in_float32
from edgevla.export.options import ExportOptions
from edgevla.train.checkpoint import load_policy

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))

from golden_harness import DEFAULT, own_graphs

N_FRAMES = 16
RESULTS = Path(__file__).parent / "results" / "half_parity.md"
HEAD = """# float16 graphs against float32 torch

Written by `python benchmarks/half_parity.py`: ONNX Runtime, CPU. Worst joint of {n} observations, as a share of that
joint's range (allowed: 5e-3, and 1e-3 for 99 of 100 actions); float32 layers: what the search keeps; worst
part: the largest error of a graph's output as a share of its allowance. The goldens' weights are random, so a chunk
amplifies errors that a trained policy pulls together: below them, the policies of
policies_closed_loop.md on {frames} frames of their data set.

| golden | float32 | float16 | accepted | float32 layers | worst part |
| --- | --- | --- | --- | --- | --- |
"""


def measure(name: str, folder: Path, scratch: Path, options: ExportOptions) -> str:
    shares = {}
    for precision in ("fp32", "fp16"):
        options = replace(options, precision=precision, n_timed=1, allow_parity_failure=True)
        done = export_policy(load_policy(folder, adapt=in_float32), folder, scratch / precision, options)
        parity = done.bundle.manifest.parity
        actions = parity.actions
        shares[precision] = float(np.divide(actions.max_abs_per_joint, actions.range_per_joint).max())
    kept = done.bundle.manifest.lowered
    worst = max(parity.stages, key=lambda name: parity.stages[name].max_abs / parity.stages[name].tolerance)
    stage = parity.stages[worst]
    cells = [
        name,
        f"{shares['fp32']:.1e}",
        f"{shares['fp16']:.1e}",
        "yes" if parity.passed else "no",
        f"{len(kept.kept)} of {kept.n_layers}",
        f"{worst} {stage.max_abs / stage.tolerance:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--goldens", type=Path, default=DEFAULT, help="one fixture, or a folder of them")
    parser.add_argument("--study", type=Path, metavar="WORK", help="folder of policies_closed_loop.py")
    parser.add_argument("--n", type=int, default=4, help="observations of each (default 4)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for fixture in own_graphs(arguments.goldens):
        with tempfile.TemporaryDirectory() as scratch:
            folder = fixture.write_checkpoint(Path(scratch) / "policy")
            options = ExportOptions(fps=30, joint_units="raw", n_samples=arguments.n)
            rows.append(measure(fixture.name, folder, Path(scratch), options))
        print(rows[-1], flush=True)
    for run in sorted(arguments.study.glob("runs/*")) if arguments.study else []:
        folder = run / "checkpoints/last/pretrained_model"
        with tempfile.TemporaryDirectory() as scratch:
            options = ExportOptions(dataset=str(arguments.study / "data"), n_samples=N_FRAMES)
            rows.append(measure(f"{run.name}, trained", folder, Path(scratch), options))
        print(rows[-1], flush=True)
    RESULTS.write_text(HEAD.format(n=arguments.n, frames=N_FRAMES) + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
