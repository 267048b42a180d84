"""Inference engines behind one call: a graph's file and signature in, something that runs it out.

cpu, cuda   ONNX Runtime's providers      tensorrt  ONNX Runtime's TensorRT provider where the wheel has it, else
native TensorRT (Jetson): an engine built ahead, on the device, in a process of its own (`ahead.py`)

A provider that is not there is an error, never the CPU.
"""

from __future__ import annotations

from pathlib import Path

from edgevla.engines.ahead import is_native
from edgevla.engines.options import EngineOptions, n_cores, to_numpy
from edgevla.errors import EngineError
from edgevla.graph import Graph, GraphSpec
from edgevla.strict import nearest

__all__ = ["PROVIDERS", "EngineOptions", "load_graph", "n_cores", "to_numpy"]

PROVIDERS = ("cpu", "cuda", "tensorrt")


def load_graph(
    path: Path, spec: GraphSpec, *, provider: str = "cpu", options: EngineOptions | None = None
) -> Graph:
    """Opens one ONNX graph.

    Raises:
        MissingExtraError: no engine for this provider is installed.
        EngineError: the provider, its libraries or its device are not there, or the engine refuses the graph.
        BundleError: the graph's inputs and outputs are not those of `spec`.
    """
    options = options or EngineOptions()
    if provider not in PROVIDERS:
        raise EngineError(f"provider '{provider}' is unknown{nearest(provider, PROVIDERS)}")
    if path.suffix == ".npz":
        from edgevla.engines.table import TableGraph

        return TableGraph(path, spec)
    if is_native(provider):
        from edgevla.engines.tensorrt import TensorRtGraph

        return TensorRtGraph(path, spec, options)
    from edgevla.engines.onnx import OnnxGraph

    return OnnxGraph(path, spec, provider, options)
