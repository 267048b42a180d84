"""What float16 graphs cost in accuracy, every policy: the actions against torch's float32.

    python tests/bench/half_parity.py [--goldens DIR]

Every golden is exported as it is and in float16, with made-up observations, and compared through the
runtime's own `BundlePolicy`, as `edgevla export` does. Not part of the tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgevla.export.build import export_policy
from edgevla.export.options import ExportOptions
from edgevla.train.checkpoint import load_policy

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from golden_harness import DEFAULT, Fixture, find_fixtures

RESULTS = Path(__file__).parent / "results" / "half_parity.md"
HEAD = """# float16 graphs against float32 torch

Written by `python tests/bench/half_parity.py`: ONNX Runtime, CPU. Worst joint of {n} observations, as a share of that
joint's range (allowed: 1e-3); worst part: the largest error of a graph's output as a share of its allowance. The
goldens' weights are random, so a chunk amplifies errors that a trained policy pulls together; trained ones are compared
on their data set's frames by `edgevla export --precision fp16`, which refuses what it does not accept.

| golden | float32 | float16 | accepted | worst part |
| --- | --- | --- | --- | --- |
"""


def measure(fixture: Fixture, scratch: Path, n: int) -> str:
    folder = fixture.write_checkpoint(scratch / "policy")
    shares = {}
    for precision in ("fp32", "fp16"):
        options = ExportOptions(
            fps=30, joint_units="raw", precision=precision, n_samples=n, n_timed=1, allow_parity_failure=True
        )
        done = export_policy(load_policy(folder), folder, scratch / precision, options)
        parity = done.bundle.manifest.parity
        allowed = np.asarray(parity.actions.tolerance_per_joint)
        tolerance = {"fp32": 1e-5, "fp16": 1e-3}[precision]
        shares[precision] = float((np.asarray(parity.actions.max_abs_per_joint) / allowed).max()) * tolerance
    worst = max(parity.stages, key=lambda name: parity.stages[name].max_abs / parity.stages[name].tolerance)
    stage = parity.stages[worst]
    cells = [
        fixture.name,
        f"{shares['fp32']:.1e}",
        f"{shares['fp16']:.1e}",
        "yes" if shares["fp16"] <= 1e-3 and stage.max_abs <= stage.tolerance else "no",
        f"{worst} {stage.max_abs / stage.tolerance:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--goldens", type=Path, default=DEFAULT, help="one fixture, or a folder of them")
    parser.add_argument("--n", type=int, default=4, help="observations of each (default 4)")
    arguments = parser.parse_args()
    fixtures = [f for f in find_fixtures(arguments.goldens) if f.processors is None]
    if not fixtures:
        parser.error(f"no fixture (a folder with cases.safetensors) in {arguments.goldens}")
    torch.set_num_threads(1)
    rows = []
    for fixture in fixtures:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(fixture, Path(scratch), arguments.n))
        print(rows[-1], flush=True)
    RESULTS.write_text(HEAD.format(n=arguments.n) + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
