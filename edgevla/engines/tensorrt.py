"""Native TensorRT, for machines whose onnxruntime has no TensorRT provider (Jetson): no onnxruntime needed.

An engine belongs to one GPU, one TensorRT and one driver, so it is built on the device that will run it, once, in a
process of its own (building takes gigabytes that must not stay with the policy), and kept under a key of all that
it depends on. Device memory is reached through libcudart, so nothing beyond JetPack is needed.

State: the parsing and building half is exercised in the tests by TensorRT-RTX; running an engine was never tried on
hardware.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.engines.options import EngineOptions
from edgevla.errors import EngineError, MissingExtraError
from edgevla.graph import GraphSpec, batched

BUILD_TIMEOUT_S = 3600
_WORKSPACE_BYTES = 2 << 30


def cache_folder(chosen: Path | None) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return chosen or base / "edgevla" / "tensorrt"


def import_tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "jetson", "tensorrt", "it comes with JetPack; make the environment with --system-site-packages"
        ) from error


class Cuda:
    """The ten functions of libcudart that a policy needs. Every error code becomes an EngineError."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("cudart") or "libcudart.so"
        try:
            self._lib = ctypes.CDLL(name)
        except OSError as error:
            raise EngineError(
                f"CUDA's runtime library is not there ({error}); is this a machine with a GPU?"
            ) from error
        self._lib.cudaGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code != 0:
            text = self._lib.cudaGetErrorString(code).decode()
            raise EngineError(f"CUDA's {name} failed: {text}", code=code)

    def allocate(self, n_bytes: int) -> int:
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(n_bytes, 1)))
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        self._lib.cudaFree(ctypes.c_void_p(pointer))

    def copy(self, target: int, source: int, n_bytes: int) -> None:
        """Between any two places; 4 is cudaMemcpyDefault, which looks at the pointers."""
        self.call("cudaMemcpy", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(n_bytes), 4)

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        return int(stream.value or 0)

    def synchronize(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def describe(self) -> dict[str, int]:
        """What an engine depends on besides TensorRT: compute capability and driver."""
        device, values = ctypes.c_int(), {}
        self.call("cudaGetDevice", ctypes.byref(device))
        for name, attribute in (("major", 75), ("minor", 76), ("n_multiprocessors", 16)):
            value = ctypes.c_int()
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, device)
            values[name] = value.value
        driver = ctypes.c_int()
        self.call("cudaDriverGetVersion", ctypes.byref(driver))
        return {**values, "driver": driver.value}


class DeviceArray:
    """Memory on the GPU with a shape; freed with the object."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda, self.shape, self.dtype = cuda, shape, np.dtype(dtype)
        self.n_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.pointer = cuda.allocate(self.n_bytes)

    def numpy(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        self._cuda.copy(out.ctypes.data, self.pointer, self.n_bytes)
        return out

    def fill(self, values: np.ndarray) -> None:
        """With as much as it holds, or less of it."""
        values = np.ascontiguousarray(values, self.dtype)
        self._cuda.copy(self.pointer, values.ctypes.data, values.nbytes)

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):
            self._cuda.free(self.pointer)


class TensorRtGraph:
    """One engine with its execution context. Inputs: numpy arrays, or device arrays of another graph."""

    def __init__(self, path: Path, spec: GraphSpec, options: EngineOptions) -> None:
        self.spec, self.path = spec, path
        self._keep = options.keep_on_device
        self._trt = import_tensorrt()
        self._cuda = Cuda()
        self._cuda.call("cudaSetDevice", options.device_id)
        logger = self._trt.Logger(self._trt.Logger.ERROR)
        engine_file = built_engine(path, self._trt.__version__, self._cuda.describe(), options)
        self._runtime = self._trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if self._engine is None:
            raise EngineError(f"TensorRT cannot read {engine_file}; delete it, it is built again")
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.stream()
        self._most = options.max_batch
        self._inputs = {
            s.name: DeviceArray(self._cuda, batched(s, self._most), np.dtype(s.dtype)) for s in spec.inputs
        }

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        first = self.spec.inputs[0]
        n = np.shape(inputs[first.name])[first.batch_axis]
        for spec in self.spec.inputs:
            name, value, wanted = spec.name, inputs[spec.name], batched(spec, n)
            place = value
            if not isinstance(value, DeviceArray):
                if np.shape(value) != wanted or n > self._most:
                    raise EngineError(
                        f"input '{name}' of {self.path.name} has shape {np.shape(value)}, not "
                        f"{wanted} of 1 to {self._most}"
                    )
                place = self._inputs[name]
                place.fill(value)
            self._context.set_tensor_address(name, place.pointer)
            if self._most > 1:
                self._context.set_input_shape(name, wanted)
        # Fresh outputs: a context tensor must outlive the next observation's encode.
        outputs = {
            s.name: DeviceArray(self._cuda, batched(s, n), np.dtype(s.dtype)) for s in self.spec.outputs
        }
        for name, array in outputs.items():
            self._context.set_tensor_address(name, array.pointer)
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(f"TensorRT failed to run {self.path.name}")
        self._cuda.synchronize(self._stream)
        return outputs if self._keep else {name: array.numpy() for name, array in outputs.items()}

    def stack(self, arrays: Sequence[Any]) -> np.ndarray:
        return np.stack([a if isinstance(a, np.ndarray) else a.numpy() for a in arrays], axis=1)


def engine_key(onnx: Path, version: str, device: Mapping[str, int], options: EngineOptions) -> str:
    """sha256 over the graph, its weights, and all else that an engine depends on: a stale engine is never found."""
    depends: list[Any] = [version, dict(device), options.provider_options]
    if options.max_batch > 1:
        depends.append(options.max_batch)
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode())
    for file in (onnx, onnx.with_name(onnx.name + ".data")):
        if file.is_file():
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:32]


def built_engine(onnx: Path, version: str, device: Mapping[str, int], options: EngineOptions) -> Path:
    """The engine file of a graph on this device; built in a process of its own when there is none.

    Raises:
        EngineError: TensorRT refuses the graph, or building ran out of memory or time; with its last words.
    """
    folder = cache_folder(options.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{onnx.stem}-{engine_key(onnx, version, device, options)}.engine"
    if target.is_file():
        return target
    part = target.with_suffix(f".part{os.getpid()}")
    command = [sys.executable, "-m", "edgevla.engines.tensorrt", str(onnx), str(part)]
    command.append(str(options.max_batch))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"TensorRT did not build {onnx.name} within {BUILD_TIMEOUT_S} s") from error
    if done.returncode != 0 or not part.is_file():
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        part.unlink(missing_ok=True)
        raise EngineError(f"TensorRT cannot build {onnx.name}: {words}")
    part.replace(target)
    return target


def build_serialized(trt: Any, onnx: Path, configure: Any = None, max_batch: int = 1) -> bytes:
    """Parses and builds one graph. `trt` is the module: tensorrt, or TensorRT-RTX's bindings (no GPU needed).

    Precision follows the graph's own types (strongly typed), so an fp16 bundle runs in fp16 and nothing else does.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(str(parser.get_error(i)).strip() for i in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot parse {onnx.name}: {errors}")
    config = builder.create_builder_config()
    if max_batch > 1:
        config.add_optimization_profile(_profile(builder, network, max_batch))
    if configure is not None:
        configure(trt, config)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"TensorRT parsed {onnx.name} but cannot build it")
    return bytes(serialized)


def _profile(builder: Any, network: Any, max_batch: int) -> Any:
    """1 to `max_batch` observations, fastest with the most of them."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        place = network.get_input(i)
        least, most = ([n if d < 0 else d for d in place.shape] for n in (1, max_batch))
        profile.set_shape(place.name, least, most, most)
    return profile


def _bounded(trt: Any, config: Any) -> None:
    """Bounded memory: a Jetson shares it with everything else."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)


def main(arguments: Sequence[str]) -> int:
    """`python -m edgevla.engines.tensorrt GRAPH.onnx ENGINE MAX_BATCH`: builds one engine and ends."""
    onnx, target, max_batch = arguments
    try:
        made = build_serialized(import_tensorrt(), Path(onnx), _bounded, int(max_batch))
        Path(target).write_bytes(made)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
