"""CUDA's runtime library through ctypes: memory, copies and streams, nothing beyond what JetPack brings."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import EngineError

SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "/usr/local/cuda/lib64/libcudart.so")
PROPERTIES_BYTES = 1 << 14
"""More than `cudaDeviceProp` has in any CUDA; it begins with the name."""
NAME_BYTES = 256
DEFAULT = 4
"""cudaMemcpyDefault: looks at the pointers."""


def candidates() -> Iterator[str]:
    """pip's (`nvidia-cuda-runtime`), which no search path of the linker knows, then the system's."""
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec("nvidia")
        for place in (found.submodule_search_locations or ()) if found else ():
            yield from (str(p) for p in sorted(Path(place).glob("*/lib/libcudart.so*"), reverse=True))
    yield from SONAMES


class Cuda:
    """The few functions of libcudart that a policy needs, on one device. Every error code becomes an EngineError."""

    def __init__(self, device_id: int = 0) -> None:
        self._lib = _opened()
        self._lib.cudaGetErrorString.restype = ctypes.c_char_p
        self.device_id = device_id
        self._of_thread = threading.local()
        self.use()

    def use(self) -> None:
        """The device is chosen per thread: whoever comes from another one begins on device 0."""
        if getattr(self._of_thread, "is_chosen", False):
            return
        self.call("cudaSetDevice", self.device_id)
        self._of_thread.is_chosen = True

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code != 0:
            text = self._lib.cudaGetErrorString(code).decode()
            raise EngineError(f"CUDA's {name} failed: {text}", code=code)

    def allocate(self, n_bytes: int) -> int:
        return self._made("cudaMalloc", ctypes.c_size_t(max(n_bytes, 1)))

    def allocate_pinned(self, n_bytes: int) -> int:
        """Host memory that the GPU reads and writes without a copy between."""
        return self._made("cudaMallocHost", ctypes.c_size_t(max(n_bytes, 1)))

    def stream(self) -> int:
        return self._made("cudaStreamCreate")

    def _made(self, name: str, *arguments: Any) -> int:
        pointer = ctypes.c_void_p()
        self.call(name, ctypes.byref(pointer), *arguments)
        return int(pointer.value or 0)

    def release(self, name: str, handle: int) -> None:
        """With `cudaFree`, `cudaFreeHost` or `cudaStreamDestroy`; at a process's end nobody is left to be told."""
        with contextlib.suppress(Exception):
            getattr(self._lib, name)(ctypes.c_void_p(handle))

    def copy(self, target: int, source: int, n_bytes: int) -> None:
        """Between any two places; returns when it is done."""
        where = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self.call("cudaMemcpy", *where, ctypes.c_size_t(n_bytes), DEFAULT)

    def copy_on(self, stream: int, target: int, source: int, n_bytes: int) -> None:
        """After what the stream does already; returns at once."""
        where = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self.call("cudaMemcpyAsync", *where, ctypes.c_size_t(n_bytes), DEFAULT, ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def describe(self) -> dict[str, int | str]:
        """What an engine depends on besides TensorRT: the GPU's name, compute capability and size, and the driver."""
        self.use()
        properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", properties, self.device_id)
        values: dict[str, int | str] = {"name": properties.raw[:NAME_BYTES].split(b"\0")[0].decode()}
        for name, attribute in (("major", 75), ("minor", 76), ("n_multiprocessors", 16)):
            value = ctypes.c_int()
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, self.device_id)
            values[name] = value.value
        driver = ctypes.c_int()
        self.call("cudaDriverGetVersion", ctypes.byref(driver))
        return {**values, "driver": driver.value}


def _opened() -> ctypes.CDLL:
    reason = ""
    for name in candidates():
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reason = reason or str(error)
    raise EngineError(
        f"CUDA's runtime library is not there ({reason}): on a Jetson install it with: sudo apt install "
        "nvidia-jetpack; elsewhere with: pip install nvidia-cuda-runtime"
    )


class Pool:
    """Device memory that is given back to be used again: after the first runs nothing is allocated."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._free: dict[int, list[int]] = {}

    def take(self, n_bytes: int) -> int:
        free = self._free.setdefault(n_bytes, [])
        return free.pop() if free else self.cuda.allocate(n_bytes)

    def give_back(self, pointer: int, n_bytes: int) -> None:
        self._free[n_bytes].append(pointer)

    def __del__(self) -> None:
        for pointers in getattr(self, "_free", {}).values():
            for pointer in pointers:
                self.cuda.release("cudaFree", pointer)


class DeviceArray:
    """Memory on the GPU with a shape; goes back to its pool with the object."""

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self.shape, self.dtype = pool, shape, np.dtype(dtype)
        self.n_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.pointer = pool.take(self.n_bytes)

    def numpy(self) -> np.ndarray:
        self._pool.cuda.use()
        out = np.empty(self.shape, self.dtype)
        self._pool.cuda.copy(out.ctypes.data, self.pointer, self.n_bytes)
        return out

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):
            self._pool.give_back(self.pointer, self.n_bytes)


class PinnedArray:
    """Host memory through which a graph's arrays pass on their way. array: (n,) of its dtype."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        size = int(np.prod(shape, dtype=np.int64))
        n_bytes = max(1, size * np.dtype(dtype).itemsize)
        self.pointer = cuda.allocate_pinned(n_bytes)
        memory = (ctypes.c_ubyte * n_bytes).from_address(self.pointer)
        self.array = np.frombuffer(memoryview(memory).cast("B"), dtype, size)

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):
            self._cuda.release("cudaFreeHost", self.pointer)
