"""Native TensorRT, for machines whose onnxruntime has no TensorRT provider (Jetson): no onnxruntime needed.

An engine belongs to one GPU, one TensorRT and one driver, so it is built on the device that will run it: ahead, by
`edgevla build` or before `deploy` starts anything of the arm (`trt_build.py`, in a process of its own). Here it is only
opened and run; a graph without an engine is an error that says how to make one.

State: building is exercised in the tests by TensorRT-RTX, running by a stand-in for TensorRT and CUDA on the CPU;
neither was tried on a GPU.
"""

from __future__ import annotations

import importlib
import mmap
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.engines.cudart import Cuda, DeviceArray, PinnedArray, Pool
from edgevla.engines.engine_files import EngineFiles, touch
from edgevla.engines.options import EngineOptions
from edgevla.engines.signature import Found, check_signature
from edgevla.errors import BundleError, EngineError
from edgevla.graph import GraphSpec, batched

OLDEST = 10
"""The first TensorRT whose networks can be strongly typed in every precision; JetPack 6.1 brings 10.3."""
WORDS_KEPT = 3
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
VENV = "python3 -m venv --system-site-packages ENV (with the system's own python3)"


def import_tensorrt() -> Any:
    """
    Raises:
        EngineError: there is none, it cannot be loaded, or it is too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
        version = str(trt.__version__)
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise EngineError(f"TensorRT's Python package cannot be loaded: {error}") from error
        raise EngineError(
            f"this Python has no tensorrt. On a Jetson it comes with JetPack, for an environment made by {VENV}; "
            "elsewhere: pip install tensorrt"
        ) from error
    except Exception as error:  # a library that is missing, of another CUDA, of another Python
        raise EngineError(
            f"TensorRT's Python package is there and cannot be loaded ({error}); its libraries must be of the "
            f"same release: on a Jetson those of JetPack, in {VENV}"
        ) from error
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < OLDEST:
        raise EngineError(
            f"TensorRT {version} is too old: EdgeVLA needs {OLDEST} or later, which JetPack 6.1 and later bring; "
            "update JetPack, or export and deploy for cpu"
        )
    return trt


def make_logger(trt: Any) -> Any:
    """A logger whose `words` are the last errors TensorRT said; it prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.words: deque[str] = deque(maxlen=WORDS_KEPT)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.words.append(" ".join(text.split()))

    return Log()


def reason_of(log: Any) -> str:
    """What TensorRT said last, in brackets; empty where it said nothing."""
    return f" ({'; '.join(log.words)})" if log.words else ""


class TensorRtGraph:
    """One engine with its execution context. Inputs: numpy arrays, or device arrays of another graph."""

    def __init__(self, path: Path, spec: GraphSpec, options: EngineOptions) -> None:
        self.spec, self.path = spec, path
        self._keep, self._most = options.keep_on_device, options.max_batch
        trt = import_tensorrt()
        self._cuda = Cuda(options.device_id)
        engine_file, _ = EngineFiles(trt.__version__, self._cuda.describe()).find(path, self._most)
        if not engine_file.is_file():
            raise EngineError(
                f"{path.name} has no TensorRT engine for this machine yet; build it, with the arm off: "
                f"edgevla build {path.parent}"
            )
        self._log = make_logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._opened(engine_file)
        touch(engine_file)
        check_signature(f"the engine of {path.name}", spec, *_signature(trt, self._engine))
        self._check_profile()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"TensorRT has no memory left to run {path.name}{reason_of(self._log)}")
        self._stream = self._cuda.stream()
        self._pool = Pool(self._cuda)
        self._inputs = {s.name: self._place(batched(s, self._most), np.dtype(s.dtype)) for s in spec.inputs}
        self._outputs = {
            s.name: PinnedArray(self._cuda, batched(s, self._most), np.dtype(s.dtype)) for s in spec.outputs
        }

    def _place(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[PinnedArray, DeviceArray]:
        return PinnedArray(self._cuda, shape, dtype), DeviceArray(self._pool, shape, dtype)

    def _opened(self, file: Path) -> Any:
        """The file is mapped, not read: TensorRT's copy is the only one."""
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise EngineError(
                f"TensorRT cannot read {file}{reason_of(self._log)}; unless memory has run out, delete that file and "
                f"build it again: edgevla build {self.path.parent}"
            )
        return engine

    def _check_profile(self) -> None:
        """That it takes as many observations as the bundle does."""
        for s in self.spec.inputs if self._most > 1 else ():
            most = tuple(self._engine.get_tensor_profile_shape(s.name, 0)[2])
            if most != batched(s, self._most):
                raise BundleError(
                    f"the engine of {self.path.name} takes '{s.name}' up to {list(most)}; the manifest says "
                    f"{list(batched(s, self._most))}"
                )

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Input name -> array to output name -> array (a device array with `keep_on_device`).

        Raises:
            EngineError: an input of another shape or type than the manifest's, or TensorRT failed.
        """
        self._cuda.use()
        self._log.words.clear()
        first = self.spec.inputs[0]
        n = np.shape(inputs[first.name])[first.batch_axis]
        for s in self.spec.inputs:
            wanted = batched(s, n)
            self._context.set_tensor_address(s.name, self._arrived(s.name, inputs[s.name], wanted, n))
            if self._most > 1:
                self._context.set_input_shape(s.name, wanted)
        # Of their own for every run: a context tensor must outlive the next observation's encode.
        outputs = {
            s.name: DeviceArray(self._pool, batched(s, n), np.dtype(s.dtype)) for s in self.spec.outputs
        }
        for name, array in outputs.items():
            self._context.set_tensor_address(name, array.pointer)
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(f"TensorRT failed to run {self.path.name}{reason_of(self._log)}")
        if self._keep:
            self._cuda.synchronize(self._stream)
            return outputs
        return self._on_host(outputs)

    def _arrived(self, name: str, value: Any, wanted: tuple[int, ...], n: int) -> int:
        """Where on the device the input lies; a host's array is on its way there when this returns."""
        staged, place = self._inputs[name]
        is_there = isinstance(value, DeviceArray)
        if np.shape(value) != wanted or n > self._most or (is_there and value.dtype != place.dtype):
            raise EngineError(
                f"input '{name}' of {self.path.name} has shape {np.shape(value)}, not {wanted} of 1 to {self._most}"
            )
        if is_there:
            return int(value.pointer)
        values = np.asarray(value)
        np.copyto(staged.array[: values.size].reshape(values.shape), values, casting="unsafe")
        n_bytes = values.size * staged.array.itemsize
        self._cuda.copy_on(self._stream, place.pointer, staged.pointer, n_bytes)
        return place.pointer

    def _on_host(self, outputs: Mapping[str, DeviceArray]) -> dict[str, np.ndarray]:
        for name, array in outputs.items():
            self._cuda.copy_on(self._stream, self._outputs[name].pointer, array.pointer, array.n_bytes)
        self._cuda.synchronize(self._stream)
        return {
            name: self._outputs[name].array[: int(np.prod(array.shape))].reshape(array.shape).copy()
            for name, array in outputs.items()
        }

    def stack(self, arrays: Sequence[Any]) -> np.ndarray:
        return np.stack([a if isinstance(a, np.ndarray) else a.numpy() for a in arrays], axis=1)

    def __del__(self) -> None:
        if stream := getattr(self, "_stream", 0):
            self._cuda.release("cudaStreamDestroy", stream)


def tensor_found(dtype: Any, shape: Any) -> tuple[str, tuple[int | None, ...]]:
    """As `check_signature` compares it; -1 is a length that is free."""
    return DTYPES.get(dtype.name, dtype.name.lower()), tuple(None if d < 0 else int(d) for d in shape)


def _signature(trt: Any, engine: Any) -> tuple[Found, Found]:
    """Inputs and outputs of an engine."""
    inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {}
    outputs: dict[str, tuple[str, tuple[int | None, ...]]] = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        found = tensor_found(engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs)[name] = found
    return inputs, outputs
