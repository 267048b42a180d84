"""How near every golden comes: the largest absolute errors, written as a table.

    python tests/golden/parity_table.py [--goldens DIR] [--output FILE]

The same fixtures, adapters and tolerances as `pytest tests/golden`. Exit code 1 when a recorded key is beyond its
tolerance or nothing computes it.
"""

from __future__ import annotations

import argparse
import fnmatch
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from golden_harness import DEFAULT, Adapter, Fixture, compare, find_fixtures, open_adapter
from torch import Tensor

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "parity.md"
LOSSES = ("train*/loss", "train*/loss_valid")
GRADIENTS = ("train*/grad_norms",)
OPTIMIZED = ("train*/opt_losses",)
STEPS = ("infer/x", "infer/x0", "query/*/x")
CHUNKS = ("*/chunk", "*/chunk_camera_masked", "select/actions", "ensemble/actions")
ROBOT = ("*/chunk_robot", "*/actions_robot")

HEAD = """# Parity with the recorded reference

Written by `python tests/golden/parity_table.py`: torch {torch}, {machine}. The largest absolute error of each
recorded kind; allowed are 1e-5 + 1e-4 relative, for losses and gradient norms 1e-6 + 1e-4, for the losses after each
optimizer step 1e-6 + 1e-3 (the fixtures' own statement). A fixture records the L2 norm of every parameter's gradient;
the one that is furthest off is named with its recorded norm. A fixture whose name has a `+` is the same policy with
another checkpoint or other pipelines beside it. Actions include those guided by real-time chunking and whole episodes
from a reset. GR00T's network is fed the recorded pixels; ours are theirs to within one grey level, which is checked too.

| fixture | keys passed | loss | gradients, worst of n | 3 optimizer steps | actions, normalised | in robot units |
| --- | --- | --- | --- | --- | --- | --- |
"""
STEP_HEAD = """
## Each denoise step

The sample after every step (of X-VLA the clean action), largest error over all recorded queries. ACT has no steps.

| fixture | steps | error after each |
| --- | --- | --- |
"""


class Errors:
    """Differences of every recorded key of one fixture."""

    def __init__(self, adapter: Adapter, fixture: Fixture) -> None:
        self.adapter, self.fixture = adapter, fixture
        self.by_key: dict[str, Tensor] = {}
        self.failed: list[str] = []
        for key in fixture.expected:
            expected = fixture.cases[key]
            try:
                computed = torch.as_tensor(adapter.compute(key)).detach()
                compare(key, computed, expected, is_bfloat16=fixture.is_bfloat16)
            except (AssertionError, KeyError) as error:
                self.failed.append(f"{fixture.name}: {error or key}")
                continue
            self.by_key[key] = (computed.double() - expected.double()).abs()

    def of(self, patterns: Iterable[str]) -> dict[str, Tensor]:
        return {k: e for k, e in self.by_key.items() if any(fnmatch.fnmatchcase(k, p) for p in patterns)}

    def worst(self, patterns: Iterable[str]) -> str:
        return _number(max((float(e.max()) for e in self.of(patterns).values()), default=None))

    def gradients(self) -> str:
        for key, errors in self.of(GRADIENTS).items():
            suffix = "_v06" if key.startswith("train_v06/") else ""
            names, i = self.adapter.meta[f"grad_names{suffix}"], int(errors.argmax())
            norm = float(self.fixture.cases[key][i])
            return f"{_number(float(errors[i]))} of {len(names)}: `{names[i]}` ({norm:.2g})"
        return "-"

    def steps(self) -> str:
        found = [errors.flatten(1).amax(1) for errors in self.of(STEPS).values()]
        if not found:
            return ""
        worst = torch.stack(found).amax(0).tolist()
        return f"| {self.fixture.name} | {len(worst)} | {' '.join(map(_number, worst))} |"

    def row(self) -> str:
        n, total = len(self.by_key), len(self.fixture.expected)
        cells: list[Any] = [self.fixture.name, f"{n} of {total}", self.worst(LOSSES), self.gradients()]
        cells += [self.worst(kind) for kind in (OPTIMIZED, CHUNKS, ROBOT)]
        return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value else "0"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--goldens", type=Path, default=DEFAULT, help="one fixture, or a folder of them")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    fixtures = find_fixtures(arguments.goldens)
    if not fixtures:
        parser.error(f"no fixture (a folder with cases.safetensors) in {arguments.goldens}")
    torch.set_num_threads(1)
    rows, steps, failed = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for i, fixture in enumerate(fixtures):
            errors = Errors(open_adapter(fixture, Path(scratch) / str(i)), fixture)
            print(errors.row(), flush=True)
            rows.append(errors.row())
            steps.append(errors.steps())
            failed += errors.failed
    head = HEAD.format(torch=torch.__version__, machine=f"{platform.machine()} CPU, one thread")
    arguments.output.write_text(
        head + "\n".join(rows) + "\n" + STEP_HEAD + "\n".join(filter(None, steps)) + "\n"
    )
    for failure in failed:
        print(f"FAILED {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
