"""What real-time chunking costs in a denoise step that is not guided: the exported graph beside one without it.

    python benchmarks/guidance_cost.py

SmolVLA and Pi0 at their published dimensions with random weights. The plain graph is traced from the same weights
without the `rtc:*` inputs. With zero weights both must give the same bits; steps are timed by turns on ONNX Runtime, one
thread. Takes some GB of memory and of disk for a while. Not part of the tests.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from real_sizes import published

from edgevla.engines import EngineOptions, load_graph
from edgevla.export.trace import example_input, save, trace
from edgevla.train.memory import without_init

RESULTS = Path(__file__).parent / "results/guidance_cost.md"
HEAD = """# What guidance costs where it is not used

Written by `python benchmarks/guidance_cost.py`: one denoise step at published dimensions, random weights, ONNX
Runtime on one of {cores} {machine} cores, {n} steps of each by turns. With zero weights both graphs give the same bits.

| policy | plain ms | with guidance ms | ratio of medians | of minima |
| --- | --- | --- | --- | --- |
"""


def measure(kind: str, folder: Path, n: int) -> str:
    with without_init():
        policy = published(kind, folder, "float32")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if (
            ".vlm." in name or ".paligemma." in name
        ):  # a step does not read it: untouched memory costs nothing
            continue
        bound = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
        parameter.data.uniform_(-bound, bound, generator=generator)
    policy.eval()
    policy.bake()
    spec = policy.graphs()["denoise"]
    plain = replace(spec, inputs=tuple(i for i in spec.inputs if not (i.source or "").startswith("rtc:")))
    specs = {"plain": plain, "guided": spec}
    for name, each in specs.items():
        (folder / name).mkdir()
        save(trace(policy, "denoise", each), folder / name, "denoise")
    values = {i.name: example_input(i, k).numpy() for k, i in enumerate(spec.inputs)}
    for i in spec.inputs:
        if i.source == "rtc:weights":
            values[i.name] = np.zeros_like(values[i.name])
    del policy
    options = EngineOptions(threads=1)
    graphs = {
        name: load_graph(folder / name / "denoise.onnx", each, options=options)
        for name, each in specs.items()
    }
    inputs = {name: {i.name: values[i.name] for i in each.inputs} for name, each in specs.items()}
    first = [np.asarray(graphs[name].run(inputs[name])["x_next"]) for name in specs]
    assert np.isfinite(first[0]).all()
    np.testing.assert_array_equal(*first)
    spent: dict[str, list[float]] = {name: [] for name in specs}
    for _ in range(n):
        for name, graph in graphs.items():
            began = time.perf_counter()
            graph.run(inputs[name])
            spent[name].append(1e3 * (time.perf_counter() - began))
    middle = {name: float(np.median(laps)) for name, laps in spent.items()}
    return (
        f"| {kind} | {middle['plain']:.1f} | {middle['guided']:.1f} | **{middle['guided'] / middle['plain']:.3f}** | "
        f"{min(spent['guided']) / min(spent['plain']):.3f} |"
    )


def main() -> None:
    n, rows = 40, []
    for kind in ("smolvla", "pi0"):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(kind, Path(scratch), n))
        print(rows[-1], flush=True)
    head = HEAD.format(cores=os.cpu_count(), machine=platform.machine(), n=n)
    RESULTS.write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
