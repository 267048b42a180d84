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

from edgevla.errors import CameraError
from edgevla.strict import read

Fit = Literal["exact", "crop", "resize"]
FITS: tuple[Fit, ...] = ("exact", "crop", "resize")


@dataclass(frozen=True)
class CameraSettings:
    """One camera as declared by the robot's profile and the command line.

    source: device number or path, image folder, video file. width, height: of the frames that are published.
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
        if self.fit not in FITS or self.encoding not in ("rgb8", "jpeg") or len(self.fourcc) not in (0, 4):
            raise CameraError(
                f"camera '{self.name}' has fit '{self.fit}', encoding '{self.encoding}', fourcc '{self.fourcc}'; "
                "expected exact, crop or resize; rgb8 or jpeg; four letters such as MJPG or nothing",
                camera=self.name,
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
    def about(self) -> str:
        """Device and pixel format for people: `/dev/video0 MJPG`."""
        ...

    @property
    def is_at_end(self) -> bool:
        """Whether a file has no more pictures; devices never end."""
        ...

    def open(self) -> None:
        """Raises CameraError when the device is missing, busy, or cannot do what was declared."""
        ...

    def read(self) -> Picture | None:
        """The next picture; None when none came within about half a second (the caller counts and may reopen)."""
        ...

    def close(self) -> None: ...
