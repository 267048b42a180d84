"""Whether TensorRT takes a graph, on a machine without a GPU: parsed and built by TensorRT-RTX.

Its wheels are real ones on the public index and build for a named architecture with neither GPU nor driver. This
says that every node is supported and that the graph compiles; it says nothing about numbers or speed.

    python -m edgevla.export.trt_check BUNDLE
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from edgevla.bundle import load_bundle
from edgevla.engines.trt_build import build_serialized
from edgevla.errors import MissingExtraError
from edgevla.graph import GraphSpec

CAPABILITY = "SM89"
"""A named architecture: `CURRENT` would need a driver."""


def import_bindings() -> Any:
    """TensorRT-RTX's. Raises MissingExtraError: they are not installed."""
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "dev", "tensorrt_rtx_bindings", "it checks graphs for TensorRT without a GPU"
        ) from error


def build(path: Path, spec: GraphSpec, max_batch: int = 1) -> int:
    """Parses and builds one ONNX file; the engine's size in bytes.

    Raises:
        EngineError: TensorRT refuses it; with the parser's own words. BundleError: it is not what `spec` says.
    """
    engine, _ = build_serialized(import_bindings(), path, spec, _configure, max_batch)
    return int(engine.nbytes)


def check_bundle(folder: Path) -> dict[str, int]:
    """Graph name -> engine bytes, for every graph that TensorRT would run (`time` runs on the CPU)."""
    manifest = load_bundle(folder).manifest
    most = manifest.batch.max
    return {name: build(folder / g.file, g, most) for name, g in manifest.graphs.items() if name != "time"}


def _configure(trt: Any, config: Any) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITY), 0)


if __name__ == "__main__":
    for graph, n_bytes in check_bundle(Path(sys.argv[1])).items():
        print(f"{graph}: builds, {n_bytes / 1e6:.1f} MB")
