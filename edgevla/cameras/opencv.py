"""V4L2 cameras through OpenCV: opened strictly, read by a blocking grab, opened again after they were gone.

Settings are asked for and then looked at again: a driver that silently gives another size, rate or pixel format is
told to the person, and another size is refused by the node unless a fit is declared.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what happens is said once, in our words
import cv2

from edgevla.cameras import v4l2
from edgevla.cameras.base import CameraSettings, Picture
from edgevla.errors import CameraError

_AUTO_EXPOSURE, _MANUAL_EXPOSURE = 3.0, 1.0  # V4L2_EXPOSURE_APERTURE_PRIORITY, V4L2_EXPOSURE_MANUAL


class OpenCVCamera:
    """`source`: a number (`0`), a device (`/dev/video0`, `/dev/v4l/by-id/...`), or a stream's address (`rtsp://...`)."""

    is_at_end = False
    n_rounds = 0
    is_drawn = False

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self._capture: cv2.VideoCapture | None = None
        self._format = ""

    @property
    def about(self) -> str:
        return f"{self._device} {self._format}".strip()

    @property
    def _device(self) -> str:
        source = self.settings.source
        return f"/dev/video{source}" if source.isdigit() else source

    def open(self) -> None:
        settings, device = self.settings, self._device
        is_stream = "://" in device
        if not is_stream:
            self._check_device(device)
        capture = cv2.VideoCapture(device, cv2.CAP_ANY if is_stream else cv2.CAP_V4L2)
        if not capture.isOpened():
            capture.release()
            if is_stream:
                raise CameraError(
                    f"camera '{settings.name}' cannot be reached at {device}; check that it is on, and its address: "
                    f"ffplay {device}",
                    camera=settings.name,
                    device=device,
                )
            raise CameraError(
                f"camera '{settings.name}' cannot be opened at {device}: another program may be using it, or it is no "
                f"capture device. See who has it: fuser -v {device}; cameras found: {v4l2.found()}",
                camera=settings.name,
                device=device,
            )
        if not is_stream:
            self._configure(capture)
        self._capture = capture

    def _check_device(self, device: str) -> None:
        name = self.settings.name
        if not Path(device).exists():
            raise CameraError(
                f"camera '{name}' is not there: {device} does not exist; cameras found: {v4l2.found()}. "
                f"Plug it in, or choose another: --camera {name}=/dev/videoN",
                camera=name,
                device=device,
            )
        if not os.access(device, os.R_OK | os.W_OK):
            raise CameraError(
                f"camera '{name}': no permission to use {device}; add yourself to its group and log in again: "
                f"sudo usermod -aG {v4l2.group_of(device)} $USER",
                camera=name,
                device=device,
            )
        about = v4l2.look(device)
        if about is not None and not about[1]:
            raise CameraError(
                f"camera '{name}': {device} gives no pictures, it only tells about those of '{about[0]}'; cameras "
                f"found: {v4l2.found()}. Choose one: --camera {name}=/dev/videoN",
                camera=name,
                device=device,
            )

    def _configure(self, capture: cv2.VideoCapture) -> None:
        s = self.settings
        if s.fourcc:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*s.fourcc))
        width, height = s.device_size
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        capture.set(cv2.CAP_PROP_FPS, s.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        code = int(capture.get(cv2.CAP_PROP_FOURCC))
        self._format = "".join(chr((code >> 8 * i) & 0xFF) for i in range(4)).strip("\0 ")
        if s.fourcc and self._format != s.fourcc.strip():
            capture.release()
            raise CameraError(
                f"camera '{s.name}' at {self._device} gives {self._format or 'another format'}, not {s.fourcc} as "
                f"declared; list what it can: v4l2-ctl -d {self._device} --list-formats-ext",
                camera=s.name,
                device=self._device,
            )
        if s.has_locked_exposure or s.exposure is not None:
            self._lock(capture, cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL_EXPOSURE, "exposure")
        if s.exposure is not None:
            self._lock(capture, cv2.CAP_PROP_EXPOSURE, s.exposure, "exposure")
        if s.gain is not None:
            self._lock(capture, cv2.CAP_PROP_GAIN, s.gain, "gain")
        if s.white_balance is not None:
            self._lock(capture, cv2.CAP_PROP_AUTO_WB, 0.0, "white balance")
            self._lock(capture, cv2.CAP_PROP_WB_TEMPERATURE, s.white_balance, "white balance")

    def _lock(self, capture: cv2.VideoCapture, what: int, value: float, word: str) -> None:
        if not capture.set(what, value):
            capture.release()
            raise CameraError(
                f"camera '{self.settings.name}' at {self._device} does not let its {word} be set to {value:g}; remove "
                "that setting from the profile, or use a camera that has the control",
                camera=self.settings.name,
                device=self._device,
            )

    def read(self) -> Picture | None:
        if self._capture is None:
            return None
        ok, pixels = (
            self._capture.read()
        )  # V4L2 waits for the next frame and gives up by itself when unplugged
        return Picture(pixels, time.monotonic_ns()) if ok and pixels is not None else None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
