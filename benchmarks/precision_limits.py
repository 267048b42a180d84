"""How far from torch may a bundle be before it drives worse? One policy, worse and worse, in its simulated task.

    python benchmarks/precision_limits.py BUNDLE --dataset DATA -o WORK [--task follow_cube/conveyor] [--episodes 100]

BUNDLE: of float32, an ACT or another policy whose one heavy graph is `encode`. Its variants are the exporter's int8,
int8 with every range static, the same from one calibration frame, and weights rounded to 5, 4 and 3 bits. Each is held
against float32 on 64 frames by export/gate.py, then all drive on the same places. Not part of the tests.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgevla.bundle import Bundle, list_files, load_bundle, write_manifest
from edgevla.cli import main as edgevla
from edgevla.dataset import open_dataset
from edgevla.export.gate import usual_error
from edgevla.export.quantize import Quantizer
from edgevla.export.samples import PolicyInput, dataset_samples
from edgevla.graph import Graph
from edgevla.runner import BundlePolicy

N_FRAMES = 64
SMALLEST = 500
"""Weights of fewer values are not rounded."""


@dataclass
class Recorded:
    """`encode`, which remembers what went in."""

    graph: Graph
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = self.graph.spec

    def run(self, inputs: Any) -> Any:
        self.calls.append(dict(inputs))
        return self.graph.run(inputs)

    def stack(self, arrays: Sequence[Any]) -> Any:
        return self.graph.stack(arrays)


def chunks(policy: BundlePolicy, samples: Sequence[PolicyInput]) -> np.ndarray:
    out = []
    for i, s in enumerate(samples):
        policy.reset()
        out.append(policy.infer(s.observation, grid_index=s.grid_index, past=s.past, chunk_seq=i).actions)
    return np.stack(out)


def rounded(source: Path, path: Path, bits: int) -> None:
    """Weights of a convolution per output channel, of a product per column."""
    model = onnx.load(source)
    for one in model.graph.initializer:
        values = numpy_helper.to_array(one)
        if values.dtype == np.float32 and values.ndim >= 2 and values.size > SMALLEST:
            axes = tuple(range(1, values.ndim)) if values.ndim == 4 else (0,)
            step = np.abs(values).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1) + 1e-12
            one.CopyFrom(
                numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), one.name)
            )
    onnx.save(model, path)


def quantised(source: Path, path: Path, calls: Sequence[Any], is_shared: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Quantizer(source, Path(folder), "cpu", calls, is_shared).write(path, ())


def variant(bundle: Bundle, folder: Path, write: Callable[[Path, Path], None]) -> Bundle:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.folder, folder)
    write(bundle.path(bundle.manifest.graphs["encode"].file), folder / "encode.onnx")
    m = bundle.manifest
    target = replace(m.target, precision={**m.target.precision, "encode": "int8"})
    return write_manifest(folder, replace(m, name=folder.name, target=target, files=list_files(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="WORK")
    parser.add_argument("--task", default="follow_cube/conveyor")
    parser.add_argument("--episodes", default="100", help="0: only the differences")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    m = bundle.manifest
    assert m.parity is not None
    width = np.asarray(m.parity.actions.range_per_joint)
    samples = dataset_samples(
        open_dataset(arguments.dataset), {c: c for c in m.cameras}, m, N_FRAMES, m.n_obs_steps
    )
    float32 = BundlePolicy(bundle)
    recorded = Recorded(float32.graphs["encode"])
    reference = chunks(BundlePolicy(bundle, graphs={**float32.graphs, "encode": recorded}), samples)
    ways: dict[str, Callable[[Path, Path], None]] = {
        "int8": lambda a, b: quantised(a, b, recorded.calls, False),
        "int8-static": lambda a, b: quantised(a, b, recorded.calls, True),
        "5-bit": lambda a, b: rounded(a, b, 5),
        "4-bit": lambda a, b: rounded(a, b, 4),
        "3-bit": lambda a, b: rounded(a, b, 3),
        "int8-one-frame": lambda a, b: quantised(a, b, recorded.calls[:1], True),
    }
    folders = []
    for name, write in ways.items():
        made = variant(bundle, arguments.output / name, write)
        folders.append(str(made.folder))
        error = np.abs(chunks(BundlePolicy(made), samples).astype(np.float64) - reference)
        usual, most = (usual_error(error) / width).max(), (error.max(axis=(0, 1)) / width).max()
        print(f"{name}: 99 of 100 within {usual:.2%} of range, all within {most:.2%}", flush=True)
    if arguments.episodes != "0":
        given = ["--task", arguments.task, "--execution", "sync", "--episodes", arguments.episodes]
        edgevla(["eval", arguments.bundle, *folders, *given, "-o", str(arguments.output / "eval")])


if __name__ == "__main__":
    main()
