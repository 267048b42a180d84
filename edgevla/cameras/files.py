"""Pictures from files: a folder of images in name order, or a video. For rehearsals, tests and demonstrations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from edgevla.cameras.base import CameraSettings, Picture
from edgevla.clock import NS_PER_S
from edgevla.errors import CameraError, DatasetError, MissingExtraError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
WHOLE = 0.9
"""Share of the pictures that a video's header claims, which must be there; some containers only estimate them."""


class _Paced:
    """Keeps a file's rate in real time: the next picture is due one period after the last, never in a burst."""

    is_drawn = False

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self.is_at_end = False
        self.n_rounds = 0
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
                f"({', '.join(IMAGE_SUFFIXES)}); {_instead(folder)}",
                camera=self.settings.name,
            )
        self._next = 0

    def read(self) -> Picture | None:
        if self._next >= len(self._files):
            if not self.settings.loop:
                self.is_at_end = True
                return None
            self._next, self.n_rounds = 0, self.n_rounds + 1
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


def _instead(folder: Path) -> str:
    video = next(iter(sorted(folder.glob("videos/**/*.mp4"))), None)
    if video is not None:
        return f"it is a dataset: name one of its videos, such as {video}"
    return "put some there, or name another source"


class VideoFile(_Paced):
    """The frames of a video: decoded by OpenCV's own FFmpeg, and by PyAV what that cannot (AV1, as LeRobot records)."""

    _reader: _Reader | None = None

    def open(self) -> None:
        path = Path(self.settings.source)
        reader = _OpenCVReader(path)
        if reader.shows_something:
            self._reader = reader
            return
        reader.close()
        self._reader = self._by_pyav(path)

    def _by_pyav(self, path: Path) -> _Reader:
        try:
            if not path.stat().st_size:
                raise DatasetError(f"the video {path} is empty")
            return _PyAVReader(path)
        except ModuleNotFoundError as error:
            missing = MissingExtraError("record", "PyAV", "it decodes AV1, which datasets are recorded in")
            raise self._error(f"OpenCV cannot decode {path}, and {missing}") from error
        except DatasetError as error:
            name = self.settings.name
            raise self._error(f"{error}; name another source: --camera {name}=SOURCE") from error

    def _error(self, sentence: str) -> CameraError:
        name = self.settings.name
        return CameraError(f"camera '{name}': {sentence}", camera=name)

    def read(self) -> Picture | None:
        if self._reader is None:
            return None
        try:
            picture = self._reader.next()
            if picture is None and self.settings.loop:
                self.n_rounds += 1
                self._reader.rewind()
                picture = self._reader.next()
        except DatasetError as error:
            raise self._error(str(error)) from error
        if picture is None:
            self.is_at_end = True
            return None
        return Picture(picture, self._wait(), self._reader.is_bgr)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Reader(Protocol):
    """A video from its beginning to its end. is_bgr: order of the colours in its pictures."""

    is_bgr: bool

    def next(self) -> np.ndarray | None:
        """uint8 (H, W, 3); None at the end. Raises DatasetError where the video is damaged or cut short."""
        ...

    def rewind(self) -> None: ...

    def close(self) -> None: ...


class _OpenCVReader:
    """Reads one picture ahead: whether there is any tells whether OpenCV can decode the file."""

    is_bgr = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path))
        is_open = self._capture.isOpened()
        self._n_declared = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if is_open else 0
        self._n_read = 0
        self._ahead = self._grab() if is_open else None

    @property
    def shows_something(self) -> bool:
        return self._ahead is not None

    def _grab(self) -> np.ndarray | None:
        ok, pixels = self._capture.read()
        return pixels if ok else None

    def next(self) -> np.ndarray | None:
        picture = self._ahead
        if picture is not None:
            self._n_read += 1
            self._ahead = self._grab()
        elif self._n_read < WHOLE * self._n_declared:
            raise DatasetError(
                f"{self._path} is damaged or cut short: {self._n_read} of {self._n_declared} pictures can be decoded",
                file=str(self._path),
            )
        return picture

    def rewind(self) -> None:
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        self._n_read, self._ahead = 0, self._grab()

    def close(self) -> None:
        self._capture.release()


class _PyAVReader:
    """
    Raises:
        ModuleNotFoundError: PyAV is not installed. DatasetError: not a video, cut short, or of no picture.
    """

    is_bgr = False

    def __init__(self, path: Path) -> None:
        from edgevla.dataset.video import VideoDecoder, index_video

        index = index_video(path)
        if not index.n_frames or index.n_frames < WHOLE * index.declared:
            raise DatasetError(
                f"{path} is damaged or cut short: {index.n_frames} of {index.declared} pictures are there",
                file=str(path),
            )
        self._decoder, self._n_frames, self._number = VideoDecoder(path, index), index.n_frames, 0
        self._decode(0)

    def _decode(self, number: int) -> np.ndarray:
        return next(iter(self._decoder.read([number])))[1]

    def next(self) -> np.ndarray | None:
        if self._number >= self._n_frames:
            return None
        self._number += 1
        return self._decode(self._number - 1)

    def rewind(self) -> None:
        self._number = 0

    def close(self) -> None:
        self._decoder.close()
