"""Inference engines behind one call: a graph's file and signature in, something that runs it out.

cpu, cuda   ONNX Runtime's providers      tensorrt  ONNX Runtime's TensorRT provider where the wheel has it, else
native TensorRT (Jetson): an engine built on the device in a process of its own, and kept by what it depends on

A provider that is not there is an error, never the CPU.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import EngineError
from edgevla.graph import Graph, GraphSpec
from edgevla.strict import nearest

PROVIDERS = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class EngineOptions:
    """threads: of one graph; 0 means all cores but one, so that the control loop keeps a core.
    prepack: False leaves weights memory-mapped and shared between processes (slower runs, far less memory).
    keep_on_device: outputs stay on the GPU, as whatever the next graph takes.
    cache_dir: where TensorRT engines are kept; None: beside the user's other caches.
    provider_options: passed to the provider as they are.
    """

    threads: int = 0
    prepack: bool = True
    device_id: int = 0
    keep_on_device: bool = False
    cache_dir: Path | None = None
    provider_options: dict[str, Any] = field(default_factory=dict)

    @property
    def n_threads(self) -> int:
        return self.threads or max(1, n_cores() - 1)


def n_cores() -> int:
    """Cores this process may use (a container or taskset may allow fewer than the machine has)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


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
    if provider == "tensorrt" and not _onnxruntime_has_tensorrt():
        from edgevla.engines.tensorrt import TensorRtGraph

        return TensorRtGraph(path, spec, options)
    from edgevla.engines.onnx import OnnxGraph

    return OnnxGraph(path, spec, provider, options)


def to_numpy(value: Any) -> np.ndarray:
    """An engine's output on the host, wherever it lives."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


def _onnxruntime_has_tensorrt() -> bool:
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "TensorrtExecutionProvider" in onnxruntime.get_available_providers()
