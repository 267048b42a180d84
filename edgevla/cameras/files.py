"""Pictures from files: a folder of images in name order, or a video. For rehearsals, tests and demonstrations."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np

from edgevla.cameras.base import CameraSettings, Picture
from edgevla.clock import NS_PER_S
from edgevla.errors import CameraError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")


class _Paced:
    """Keeps a file's rate in real time: the next picture is due one period after the last, never in a burst."""

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self.is_at_end = False
        self._due_ns = 0

    @property
    def about(self) -> str:
        return self.settings.source

    def _wait(self) -> int:
        """Monotonic time of the picture that is due."""
        now = time.monotonic_ns()
        if self.settings.paced:
            if self._due_ns > now:
                time.sleep((self._due_ns - now) / NS_PER_S)
            now = time.monotonic_ns()
            self._due_ns = max(self._due_ns, now - NS_PER_S // 2) + round(NS_PER_S / self.settings.fps)
        return now


class ImageFolder(_Paced):
    """All images of a folder, in the order of their names."""

    def open(self) -> None:
        folder = Path(self.settings.source)
        try:
            self._files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise CameraError(
                f"camera '{self.settings.name}': the folder {folder} cannot be read ({error.strerror}); name another "
                f"source: --camera {self.settings.name}=SOURCE",
                camera=self.settings.name,
            ) from error
        if not self._files:
            raise CameraError(
                f"camera '{self.settings.name}': the folder {folder} holds no images "
                f"({', '.join(IMAGE_SUFFIXES)}); put some there, or name another source",
                camera=self.settings.name,
            )
        self._next = 0

    def read(self) -> Picture | None:
        if self._next >= len(self._files):
            if not self.settings.loop:
                self.is_at_end = True
                return None
            self._next = 0
        file = self._files[self._next]
        self._next += 1
        try:
            data = np.fromfile(file, np.uint8)
        except OSError:  # it was there when the folder was opened: as a camera that was unplugged
            return None
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        if pixels is None:
            raise CameraError(
                f"camera '{self.settings.name}': {file} is not a picture that OpenCV can read; remove it",
                camera=self.settings.name,
            )
        return Picture(pixels, self._wait())

    def close(self) -> None:
        self._files = []
        self._next = 0


class VideoFile(_Paced):
    """The frames of a video, decoded by OpenCV's own FFmpeg."""

    _capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        self._capture = cv2.VideoCapture(self.settings.source)
        if not self._capture.isOpened():
            self.close()
            raise CameraError(
                f"camera '{self.settings.name}': {self.settings.source} cannot be decoded as a video; "
                f"check it with: ffprobe {self.settings.source}",
                camera=self.settings.name,
            )

    def read(self) -> Picture | None:
        if self._capture is None:
            return None
        ok, pixels = self._capture.read()
        if not ok and self.settings.loop:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            ok, pixels = self._capture.read()
        if not ok:
            self.is_at_end = True
            return None
        return Picture(pixels, self._wait())

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
