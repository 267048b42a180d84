"""Every policy at its published size on every known computer, at best: the tables of docs/boards.md.

    python benchmarks/boards.py

Two cameras of 480x640, six joints, the published number of denoise steps. Nothing is computed and no weights are
filled: a policy of 4 billion parameters takes 400 MB and some seconds. Bounds as `edgevla inspect --device` gives them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from real_sizes import published

from edgevla.export.planner import Device, PlanSubject, PrecisionPlan, devices, plans
from edgevla.export.work import count
from edgevla.train.memory import without_init

PAGE = Path(__file__).parents[1] / "docs" / "boards.md"
BEGIN, END = "<!-- benchmarks/boards.py -->\n", "<!-- end -->\n"
KINDS = {
    "act": "ACT",
    "diffusion": "Diffusion",
    "smolvla": "SmolVLA",
    "xvla": "X-VLA",
    "groot": "GR00T N1.5",
    "pi0": "Pi0",
    "pi05": "Pi0.5",
}
LIKED = {"gpu": "fp16", "cpu": "int8"}
"""What a processor likes best of what every policy can be exported to."""


def subject(kind: str) -> PlanSubject:
    with tempfile.TemporaryDirectory() as folder, without_init():
        policy = published(kind, Path(folder), "float32")
        steps = policy.schedule.n_steps if policy.schedule is not None else 0
        chunk = policy.graphs()["decode"].outputs[0].shape[1]
        return PlanSubject(count(policy), steps, chunk, None, ())


def sizes(subjects: dict[str, PlanSubject]) -> list[str]:
    lines = [
        "| policy | encode Gflop | denoise Gflop | steps | weights read, millions | memory fp16, GPU | int8, CPU |"
    ]
    lines += ["| --- " * 7 + "|"]
    gpu, cpu = (
        Device("", kind, 1e3, 1, dict.fromkeys(("fp32", "fp16", "int8"), 1.0), "") for kind in ("gpu", "cpu")
    )
    for kind, one in subjects.items():
        step = one.work.get("denoise")
        weights = sum(work.weights for work in one.work.values()) / 1e6
        cells = [
            KINDS[kind],
            f"{one.work['encode'].flops / 1e9:.0f}",
            "-" if step is None else f"{step.flops / 1e9:.3g}",
        ]
        cells += [str(one.n_steps or "-"), f"{weights:.0f}"]
        cells += [
            f"{at(one, gpu, 'fp16').memory_bytes / 1e9:.2g} GB",
            f"{at(one, cpu, 'int8').memory_bytes / 1e9:.2g} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def at(one: PlanSubject, device: Device, precision: str) -> PrecisionPlan:
    return next(plan for plan in plans(one, device) if plan.precision == precision)


def bounds(subjects: dict[str, PlanSubject]) -> list[str]:
    known = devices()
    lines = ["| policy | " + " | ".join(f"`{name}`" for name in known) + " |"]
    lines += ["| --- " * (1 + len(known)) + "|"]
    for kind, one in subjects.items():
        found = [at(one, device, LIKED[device.processor]) for device in known.values()]
        cells = [f"{plan.chunk_ms:.2g}" if plan.chunk_ms < 100 else f"{plan.chunk_ms:.0f}" for plan in found]
        cells = [cell if plan.fits else "does not fit" for cell, plan in zip(cells, found, strict=True)]
        lines.append(f"| {KINDS[kind]} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    subjects = {kind: subject(kind) for kind in KINDS}
    tables = "\n".join([*sizes(subjects), "", "Milliseconds per chunk at best:", "", *bounds(subjects), ""])
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + tables + END + rest.split(END)[1])
    print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
