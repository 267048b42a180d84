"""`python -m edgevla.robots.tools.gpu_probe`: loads what a policy on a GPU needs, and says what it found, as JSON.

A process of its own: a library that does not fit may end whoever loads it. Values are versions, or `error: ...`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import json
from collections.abc import Callable

CUDARTS = ("libcudart.so", "libcudart.so.13", "libcudart.so.12")


def tensorrt() -> str:
    return str(importlib.import_module("tensorrt").__version__)


def cuda() -> str:
    """Versions of runtime and driver, and how many GPUs answer."""
    name = ctypes.util.find_library("cudart")
    library = None
    for candidate in [name, *CUDARTS] if name else CUDARTS:
        try:
            library = ctypes.CDLL(candidate)
            break
        except OSError:
            continue
    if library is None:
        raise OSError("libcudart is not there")
    found = []
    for call in ("cudaRuntimeGetVersion", "cudaDriverGetVersion", "cudaGetDeviceCount"):
        value = ctypes.c_int()
        code = getattr(library, call)(ctypes.byref(value))
        if code != 0:
            raise OSError(f"{call} failed with {code}")
        found.append(value.value)
    runtime, driver = (f"{v // 1000}.{v % 1000 // 10}" for v in found[:2])
    return f"{runtime}, driver {driver}, {found[2]} GPU{'s' * (found[2] != 1)}"


def opencv() -> str:
    """With what it opens CSI cameras, or not."""
    cv2 = importlib.import_module("cv2")
    lines = [
        line.split(":", 1)[1].strip()
        for line in cv2.getBuildInformation().splitlines()
        if "GStreamer:" in line
    ]
    return f"{cv2.__version__}, GStreamer {(lines or ['NO'])[0]}"


def told(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as error:  # whatever a foreign library says
        return f"error: {error or type(error).__name__}"


if __name__ == "__main__":
    print(json.dumps({ask.__name__: told(ask) for ask in (tensorrt, cuda, opencv)}))
