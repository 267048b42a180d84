"""Draws the cameras of a MuJoCo scene from the positions that a world tells.

Shadows and reflections are off: without a GPU they cost more than all the rest. An OpenGL context belongs to the thread
that made it, and every camera is drawn by a thread of its own, so each thread gets its own when it first draws.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevla import messages
from edgevla.errors import CameraError
from edgevla.simulated import Task
from edgevla.strict import nearest

from .engine import load, mujoco
from .gl import find_platform, make_context, undrawable

LARGEST_PX = 2048
MOST_GEOMS = 1000


class MujocoPainter:
    """`Painter` of a scene file. aliases: other name of a camera -> its name in the scene."""

    def __init__(self, scene: Path, task: Task, aliases: Mapping[str, str]) -> None:
        self._task, self._aliases = task, aliases
        self._load = functools.partial(load, scene, is_drawn=True)
        self._mine = threading.local()
        self._largest = (1, 1)

    def open(self, camera: str, width: int, height: int) -> None:
        known = (*self._task.cameras, *self._aliases)
        if camera not in known:
            raise CameraError(
                f"the simulated task {self._task.name} has no camera '{camera}'; it has {', '.join(known)}"
                + nearest(camera, known),
                camera=camera,
            )
        if max(width, height) > LARGEST_PX:
            raise CameraError(
                f"camera '{camera}' of {self._task.name} is drawn up to {LARGEST_PX} px wide and high, not "
                f"{width}x{height}; ask for less",
                camera=camera,
            )
        find_platform()
        self._largest = (max(width, self._largest[0]), max(height, self._largest[1]))

    def draw(self, camera: str, width: int, height: int, world: messages.World) -> np.ndarray:
        canvas = getattr(self._mine, "canvas", None)
        if canvas is None or not canvas.holds(width, height):
            canvas = self._mine.canvas = _Canvas(self._load(), *self._largest)
        assert world.qpos is not None, "a world without physics is drawn by another painter"
        return canvas.draw(self._aliases.get(camera, camera), width, height, world.qpos)


class _Canvas:
    """One thread's context, and the scene in its memory."""

    def __init__(self, model: Any, width: int, height: int) -> None:
        mj = mujoco()
        self._size = (width, height)
        self._model, self._data = model, mj.MjData(model)
        model.vis.global_.offwidth, model.vis.global_.offheight = self._size
        self._gl = make_context(width, height)
        try:
            self._gl.make_current()
            self._context = mj.MjrContext(model, mj.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # a window library without a screen fails only here
            raise undrawable(error) from error
        # Before the driver goes at the end of the process: what was registered last is called first.
        atexit.register(weakref.finalize(self, _release, self._gl, self._context))
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mj.MjvScene(model, maxgeom=MOST_GEOMS)
        self._scene.flags[mj.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mj.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option, self._camera = mj.MjvOption(), mj.MjvCamera()
        self._camera.type = mj.mjtCamera.mjCAMERA_FIXED
        self._everything = mj.mjtCatBit.mjCAT_ALL.value

    def holds(self, width: int, height: int) -> bool:
        return width <= self._size[0] and height <= self._size[1]

    def draw(self, camera: str, width: int, height: int, qpos: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) RGB. qpos: of the whole scene."""
        mj, model, data = mujoco(), self._model, self._data
        self._gl.make_current()  # another scene may have been drawn in between
        data.qpos[:] = qpos
        mj.mj_kinematics(model, data)
        mj.mj_comPos(model, data)
        mj.mj_camlight(model, data)
        self._camera.fixedcamid = model.camera(camera).id
        mj.mjv_updateScene(model, data, self._option, None, self._camera, self._everything, self._scene)
        picture, window = np.empty((height, width, 3), np.uint8), mj.MjrRect(0, 0, width, height)
        mj.mjr_render(window, self._scene, self._context)
        mj.mjr_readPixels(picture, None, window, self._context)
        return picture[::-1].copy()  # OpenGL counts rows from below


def _release(gl: Any, context: Any) -> None:
    with contextlib.suppress(
        Exception
    ):  # another thread's context cannot be made current here; it goes with its thread
        gl.make_current()
        context.free()
    with contextlib.suppress(Exception):
        gl.free()
