"""Cameras through GStreamer, for those that V4L2 does not give: the CSI cameras of a Jetson.

pip's OpenCV has no GStreamer, and hides JetPack's, which has. So `gst-launch-1.0` runs the pipeline in a process of its
own, and its pictures come through a pipe: raw, whole, the newest only. Nothing of GStreamer is imported here.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import subprocess
import tempfile
import time

import numpy as np

from edgevla.cameras.base import GSTREAMER, CameraSettings, Picture
from edgevla.errors import CameraError

PROGRAM = "gst-launch-1.0"
FIRST_PICTURE_S = 20.0
NEXT_PICTURE_S = 5.0
LOCKS = ("fourcc", "has_locked_exposure", "exposure", "gain", "white_balance")


class GStreamerCamera:
    """`source`: `gst:` and a pipeline up to where pictures come out, such as `gst:nvarguscamerasrc ! nvvidconv`."""

    is_at_end = False
    n_rounds = 0
    is_drawn = False

    def __init__(self, settings: CameraSettings) -> None:
        """
        Raises:
            CameraError: the profile sets what only the pipeline can.
        """
        said = [name for name in LOCKS if getattr(settings, name)]
        if said:
            raise CameraError(
                f"camera '{settings.name}' is a GStreamer pipeline, which no {said[0]} can be set for from outside; "
                "say it in the pipeline, and remove it from the profile",
                camera=settings.name,
            )
        self.settings = settings
        width, height = settings.device_size
        self._shape, self._stride = (
            (height, width),
            (width * 3 + 3) // 4 * 4,
        )  # GStreamer's rows are whole words
        self._process: subprocess.Popen[bytes] | None = None
        self._first: Picture | None = None

    @property
    def about(self) -> str:
        return self.settings.source

    def open(self) -> None:
        """
        Raises:
            CameraError: GStreamer is not installed, or the pipeline gives no picture; with its last words.
        """
        name = self.settings.name
        with tempfile.TemporaryFile() as said:
            try:
                self._process = subprocess.Popen(
                    [PROGRAM, "-q", *pipeline(self.settings)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, bufsize=0,
                )  # fmt: skip
            except OSError as error:
                raise CameraError(
                    f"camera '{name}': {PROGRAM} cannot be run ({error.strerror}): sudo apt install gstreamer1.0-tools",
                    camera=name,
                ) from error
            self._first = self._next(FIRST_PICTURE_S)
            if self._first is None:
                self.close()
                said.seek(0)
                lines = [line.strip() for line in said.read().decode(errors="replace").splitlines()]
                errors = [line for line in lines if "erro" in line.lower()]  # ERROR, or: erroneous pipeline
                why = errors[0] if errors else f"it ended, or nothing came within {FIRST_PICTURE_S:g} s"
                raise CameraError(
                    f"camera '{name}' gives no picture of {self._shape[1]}x{self._shape[0]}: {why}; try its pipeline: "
                    f"{shlex.join([PROGRAM, *pipeline(self.settings)[:-3], 'fakesink'])}",
                    camera=name,
                )

    def read(self) -> Picture | None:
        first, self._first = self._first, None
        return first or self._next(NEXT_PICTURE_S)

    def _next(self, within_s: float) -> Picture | None:
        """None where the pipeline has ended, or stands still."""
        if self._process is None or self._process.stdout is None:
            return None
        height, width = self._shape
        rows = bytearray(height * self._stride)
        view, done, until = memoryview(rows), 0, time.monotonic() + within_s
        while done < len(rows):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            n = self._process.stdout.readinto(view[done:]) if ready else 0  # type: ignore[attr-defined]
            if not n:
                return None
            done += n
        pixels = np.frombuffer(rows, np.uint8).reshape(height, self._stride)[:, : width * 3]
        return Picture(pixels.reshape(height, width, 3), time.monotonic_ns())

    def close(self) -> None:
        process, self._process, self._first = self._process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            if process.stdout is not None:
                process.stdout.close()


def pipeline(settings: CameraSettings) -> list[str]:
    """Words for `gst-launch-1.0`: what was said, then pictures of the declared size, the newest only, into the pipe."""
    width, height = settings.device_size
    given = shlex.split(settings.source.removeprefix(GSTREAMER))
    caps = f"video/x-raw,format=BGR,width={width},height={height}"
    newest = ["queue", "leaky=downstream", "max-size-buffers=1"]
    return [*given, "!", "videoconvert", "!", caps, "!", *newest, "!", "fdsink", "fd=1", "sync=false"]
