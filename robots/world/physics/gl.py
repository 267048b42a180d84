"""OpenGL without a screen: EGL where its driver works, else OSMesa; whoever sets MUJOCO_GL decides himself.

Which one works is found out before PyOpenGL is imported: it binds to one of them for the life of the process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
from typing import Any

from edgevla.errors import CameraError

from .engine import mujoco

EGL_LIBRARIES = ("libEGL.so.1", "libEGL.so")
OSMESA_LIBRARIES = ("libOSMesa.so", "libOSMesa.so.8", "libOSMesa.so.6")
PLATFORM_DEVICE_EXT = 0x313F
MOST_DEVICES = 16


def make_context(width: int, height: int) -> Any:
    """A context for pictures up to this size; `make_current` binds it to the calling thread.

    Raises:
        CameraError: this machine cannot draw.
    """
    mujoco()
    platform = find_platform()
    os.environ.setdefault("PYOPENGL_PLATFORM", platform)
    try:
        module = importlib.import_module(f"mujoco.{platform}")
        if not hasattr(module.GLContext, "_context"):
            module.GLContext._context = None  # its __del__ reads it, also after an __init__ that failed
        return module.GLContext(width, height)
    except Exception as error:  # whatever a driver or PyOpenGL raises
        raise undrawable(error) from error


def undrawable(error: Exception) -> CameraError:
    """What a person must know and do where OpenGL failed."""
    return CameraError(
        f"the cameras of simulated physics cannot be drawn with {find_platform()} ({type(error).__name__}: {error}); "
        "set MUJOCO_GL to egl or osmesa, or: apt-get install libegl1 libgl1-mesa-dri libosmesa6"
    )


@functools.cache
def find_platform() -> str:
    """`egl` or `osmesa`, or what MUJOCO_GL says.

    Raises:
        CameraError: neither is there; names the packages.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in ("egl", "osmesa", "glfw", "cgl"):
        return asked
    if sys.platform == "darwin":
        return "cgl"
    if _has_egl():
        return "egl"
    if _library(OSMESA_LIBRARIES) is not None:
        return "osmesa"
    raise CameraError(
        "the cameras of simulated physics are drawn with OpenGL, and neither EGL nor OSMesa works on this machine; "
        "install one of them: apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6"
    )


def _library(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _has_egl() -> bool:
    """Whether a device is there on which EGL draws without a screen; a library alone does not say so."""
    egl = _library(EGL_LIBRARIES)
    if egl is None:
        return False
    find = egl.eglGetProcAddress
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query, display_of = find(b"eglQueryDevicesEXT"), find(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return False
    devices, n = (ctypes.c_void_p * MOST_DEVICES)(), ctypes.c_int(0)
    signature = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    if not signature(query)(MOST_DEVICES, devices, ctypes.byref(n)):
        return False
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
        display_of
    )
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    displays = (get_display(PLATFORM_DEVICE_EXT, device, None) for device in devices[: n.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
