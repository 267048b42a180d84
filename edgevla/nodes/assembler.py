"""From frames and states to the observation of one grid moment: what a recorder would have written there.

Per camera the newest frame not later than the moment, whose age is told; the state that the robot read at that tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgevla.codec import Message
from edgevla.errors import CameraError
from edgevla.types import Observation

OLDEST_FRAME_NS = 1_000_000_000
"""A picture older than this shows another scene: the camera counts as lost."""


class Recent(Protocol):
    """What the assembler needs of an inbox."""

    def recent(self, type: str, source: str) -> list[Message]:
        """Oldest first."""
        ...


@dataclass(frozen=True)
class Assembled:
    """ages_ns: camera feature -> grid moment minus capture; a lost camera has no entry here and in the images."""

    observation: Observation
    ages_ns: Mapping[str, int]
    lost: Sequence[str]


class Assembler:
    """cameras: feature -> name of the robot's camera. may_lose: whether a lost camera is left out or an error."""

    def __init__(self, inbox: Recent, cameras: Mapping[str, str], may_lose: bool = False) -> None:
        self._inbox, self._cameras, self._may_lose = inbox, dict(cameras), may_lose

    def frame(self, camera: str, moment_ns: int) -> Message | None:
        """The newest frame not later than the moment; the first one there is when all are later."""
        frames = self._inbox.recent("frame", f"camera/{camera}")
        earlier = [f for f in frames if f.observed_ns <= moment_ns]
        return earlier[-1] if earlier else (frames[0] if frames else None)

    def assemble(self, state: np.ndarray, moment_ns: int, task: str) -> Assembled:
        """
        Raises:
            CameraError: a camera has shown nothing for a second; names it.
        """
        images, ages, lost = {}, {}, []
        for feature, camera in self._cameras.items():
            frame = self.frame(camera, moment_ns)
            age = None if frame is None else moment_ns - frame.observed_ns
            if frame is None or age is None or age > OLDEST_FRAME_NS:
                if not self._may_lose:
                    shown = "nothing yet" if age is None else f"nothing new for {age / 1e9:.1f} s"
                    raise CameraError(
                        f"camera '{camera}' has shown {shown}; no chunk without it", camera=camera
                    )
                lost.append(camera)
                continue
            images[feature] = pixels(frame)
            ages[feature] = age
        return Assembled(Observation(state, images, task=task), ages, lost)


def pixels(frame: Message) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a `frame`.

    Raises:
        CameraError: a JPEG that is not one, or of another size than its header says.
    """
    if frame["encoding"] == "rgb8":
        return frame.payloads[0]
    import cv2

    picture = cv2.imdecode(frame.payloads[0], cv2.IMREAD_COLOR)
    if picture is None or picture.shape[:2] != (frame["height"], frame["width"]):
        raise CameraError(f"camera '{frame['camera']}' sent a damaged JPEG", camera=frame["camera"])
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
