"""What a camera is to the rest: declared settings, and a source that gives one picture after the other.

    CameraSettings   what was declared: name, source, size, rate, fit; strict JSON between processes
    Source           opens, reads, closes; knows nothing of sockets
    Picture          pixels as the device gave them, and when; the camera node turns them to RGB, once

A source's `read` blocks until its next picture (capture releases the interpreter's lock), so each has a thread in
the camera node. What a person must act on is a `CameraError` naming the device; a picture that did not come is None.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from edgevla.descriptions import AboutCamera
from edgevla.errors import CameraError
from edgevla.strict import read

Fit = Literal["exact", "crop", "resize"]
FITS: tuple[Fit, ...] = ("exact", "crop", "resize")
ROTATIONS = (0, 90, 180, 270)
GSTREAMER = "gst:"
"""What a source begins with that is a pipeline of GStreamer."""


def is_fourcc(code: str) -> bool:
    """Whether a pixel format can be asked for by this: four letters or digits, or nothing."""
    return not code or (len(code) == 4 and code.isascii() and code.isprintable())


def is_device(source: str) -> bool:
    """A camera or a stream rather than files: `0`, `/dev/video0`, `rtsp://...`, `gst:...`."""
    return source.isdigit() or source.startswith(("/dev/", GSTREAMER)) or "://" in source


@dataclass(frozen=True)
class CameraSettings:
    """One camera as declared by the robot's profile and the command line.

    source: device number or path, image folder, video file. width, height: of the frames that are published.
    rotation: degrees by which the device's picture is turned clockwise; every width and height here is after it.
    asked_width, asked_height: what to ask the device for; 0: what is published.
    fit: what to do when the device gives another size: `exact` refuses, `crop` cuts the middle, `resize` averages
        areas to the published size; both differ from what the policy was trained on, and that is said.
    fourcc: pixel format to ask the device for (`MJPG`, `YUYV`); empty: the driver's choice.
    exposure, gain, white_balance: locked to these driver units where given; has_locked_exposure alone freezes what the
        driver's automatic found.
    encoding: of published frames. loop: files begin again at their end. paced: files keep their rate in real time.
    """

    name: str
    source: str
    width: int = 640
    height: int = 480
    fps: float = 30.0
    asked_width: int = 0
    asked_height: int = 0
    fit: Fit = "exact"
    fourcc: str = ""
    has_locked_exposure: bool = False
    exposure: float | None = None
    gain: float | None = None
    white_balance: float | None = None
    rotation: int = 0
    encoding: Literal["rgb8", "jpeg"] = "rgb8"
    jpeg_quality: int = 90
    loop: bool = True
    paced: bool = True

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 16384 and 1 <= self.height <= 16384 and 0 < self.fps <= 1000):
            raise CameraError(
                f"camera '{self.name}' is declared as {self.width}x{self.height} px at {self.fps:g} fps; "
                "1 to 16384 px and up to 1000 fps are possible",
                camera=self.name,
            )
        if self.fit not in FITS or self.encoding not in ("rgb8", "jpeg") or not is_fourcc(self.fourcc):
            raise CameraError(
                f"camera '{self.name}' has fit '{self.fit}', encoding '{self.encoding}', fourcc '{self.fourcc}'; "
                "expected exact, crop or resize; rgb8 or jpeg; four letters such as MJPG or nothing",
                camera=self.name,
            )
        if self.rotation not in ROTATIONS:
            raise CameraError(
                f"camera '{self.name}' has rotation {self.rotation}; 0, 90, 180 and 270 degrees are possible",
                camera=self.name,
            )

    @property
    def device_size(self) -> tuple[int, int]:
        """(width, height) to ask the device for: before the picture is turned."""
        width, height = self.asked_width or self.width, self.asked_height or self.height
        return (height, width) if self.rotation in (90, 270) else (width, height)

    @classmethod
    def of_profile(cls, camera: AboutCamera, source: str) -> CameraSettings:
        """A camera as the robot's `describe` tells it, looking through `source`.

        How the camera is mounted (`rotation`) belongs to devices: files were recorded upright and simulated pictures are
        drawn so, unless the profile itself names the file.
        """
        is_as_mounted = source != "sim" and (is_device(source) or source == camera.source)
        return cls(
            name=camera.name,
            source=source,
            width=camera.width,
            height=camera.height,
            fps=camera.fps,
            fit=camera.fit,
            fourcc=camera.fourcc,
            has_locked_exposure=camera.locked_exposure,
            exposure=camera.exposure,
            gain=camera.gain,
            white_balance=camera.white_balance,
            rotation=camera.rotation if is_as_mounted else 0,
        )

    @classmethod
    def from_json(cls, text: str) -> CameraSettings:
        """What another process gave on a command line.

        Raises:
            CameraError: not JSON, an unknown key, or a value of the wrong type.
        """
        try:
            return read(cls, json.loads(text), "it")
        except ValueError as error:
            raise CameraError(f"camera settings {text[:80]!r} cannot be read: {error}") from error

    def to_json(self) -> str:
        """What `from_json` reads in another process."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 (H, W, 3), in OpenCV's order where is_bgr. captured_ns: monotonic, when it was taken."""

    pixels: np.ndarray
    captured_ns: int
    is_bgr: bool = True


class Source(Protocol):
    """One device or file."""

    settings: CameraSettings

    @property
    def is_drawn(self) -> bool:
        """Whether a program draws its pictures: without noise, equal to the last bit while nothing moves."""
        ...

    @property
    def about(self) -> str:
        """Device and pixel format for people: `/dev/video0 MJPG`."""
        ...

    @property
    def is_at_end(self) -> bool:
        """Whether a file has no more pictures; devices never end."""
        ...

    @property
    def n_rounds(self) -> int:
        """How often a file has begun again from its beginning; devices never do."""
        ...

    def open(self) -> None:
        """Raises CameraError when the device is missing, busy, or cannot do what was declared."""
        ...

    def read(self) -> Picture | None:
        """The next picture; None when none came within about half a second (the caller counts and may reopen)."""
        ...

    def close(self) -> None:
        """Lets go of what `open` took; twice does no harm."""
        ...
