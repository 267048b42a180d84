"""From frames and states to the observation of one grid moment: what a recorder would have written there.

Per camera the newest frame not later than the moment, whose age is told; the state that the robot read at that tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from edgevla.errors import CameraError
from edgevla.messages import Frame, Message
from edgevla.types import CameraAge, Observation

OLDEST_FRAME_NS = 1_000_000_000
"""A picture older than this shows another scene: the camera counts as lost."""


class Recent(Protocol):
    """What the assembler needs of an inbox."""

    def recent(self, cls: type[Frame], source: str, /) -> list[Message[Frame]]:
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

    def frame(self, camera: str, moment_ns: int) -> Message[Frame] | None:
        """The newest frame not later than the moment; the first one there is when all are later."""
        frames = self._inbox.recent(Frame, f"camera/{camera}")
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
            images[feature] = frame_pixels(frame)
            ages[feature] = age
        return Assembled(Observation(state, images, task=task), ages, lost)


class AgeWatch:
    """Whether pictures are as old as those the policy learned from; what it leads by depends on it.

    Judged once per camera, by the median of the first `N_JUDGED` inferences: a camera's own delay is what differs
    between two set-ups, a single late frame happens in either.

    trained: feature -> ages while the training data were recorded. cameras: feature -> name of the robot's camera.
    """

    N_JUDGED = 10
    TOLERANCE_STEPS = 1.5
    """One comes from how camera and grid lie to each other: a frame just too late waits for the next moment."""

    def __init__(self, trained: Mapping[str, CameraAge], cameras: Mapping[str, str], step_ms: float) -> None:
        self._trained, self._cameras, self._step_ms = trained, cameras, step_ms
        self._seen: dict[str, list[float]] = {f: [] for f in trained if f in cameras}

    def see(self, ages_ns: Mapping[str, int]) -> list[str]:
        """A sentence for each camera that has just been found too far off."""
        found = []
        for feature in [f for f in self._seen if f in ages_ns]:
            seen = self._seen[feature]
            seen.append(ages_ns[feature] / 1e6)
            if len(seen) == self.N_JUDGED:
                del self._seen[feature]
                found += self._judge(feature, float(np.median(seen)))
        return found

    def _judge(self, feature: str, live_ms: float) -> list[str]:
        trained = self._trained[feature].p50
        if abs(live_ms - trained) <= self.TOLERANCE_STEPS * self._step_ms:
            return []
        late, cure = (
            ("late", "look for what delays it (exposure, USB, a busy machine)")
            if live_ms > trained
            else ("early", "use the camera it was recorded with")
        )
        return [
            f"camera '{self._cameras[feature]}' gives pictures {live_ms:.0f} ms old, in the training data they were "
            f"{trained:.0f} ms (medians), and a policy step is {self._step_ms:.0f} ms: the arm will act too {late}; "
            f"{cure}, or record and train anew"
        ]


class StillWatch:
    """Whether joints that never moved in the training data are where they were then; each is judged until it is not.

    still: per element of the state its value in training, policy units, None where it moved.
    """

    FAR: ClassVar[dict[str, float]] = {
        "deg": 5.0,
        "range100": 5.0,
        "percent": 5.0,
        "rad": 0.1,
        "unit": 0.05,
        "m": 0.02,
    }
    """What a calibration made anew, or gravity, may change."""

    def __init__(
        self, still: Sequence[float | None], names: Sequence[str], units: Sequence[str], is_told: bool
    ) -> None:
        self._is_told = is_told
        self._watched = {
            i: (value, names[i], units[i])
            for i, value in enumerate(still)
            if value is not None and units[i] in self.FAR
        }

    def see(self, state: np.ndarray) -> list[str]:
        """A sentence for each joint that has just been found somewhere else. state: float32 (S,), policy units."""
        far = [
            i
            for i, (value, _, unit) in self._watched.items()
            if not abs(float(state[i]) - value) <= self.FAR[unit]
        ]
        return [self._say(*self._watched.pop(i), float(state[i])) for i in far]

    def _say(self, value: float, name: str, unit: str, live: float) -> str:
        told = (
            f"the policy is told {value:.4g}, and acts as if it were there"
            if self._is_told
            else "the policy never saw it there"
        )
        return (
            f"joint '{name}' is at {live:.4g} {unit}; in the training data it always was at {value:.4g}: {told}. "
            "Bring it there, or train on data in which it moves"
        )


def frame_pixels(message: Message[Frame]) -> np.ndarray:
    """uint8 (H, W, 3) RGB.

    Raises:
        CameraError: a JPEG that is not one, or of another size than its header says.
    """
    frame = message.body
    if frame.encoding == "rgb8":
        return message.payloads[0]
    from edgevla.cameras.pixels import decode_jpeg  # OpenCV only where pictures come compressed

    picture = decode_jpeg(message.payloads[0])
    if picture is None or picture.shape[:2] != (frame.height, frame.width):
        raise CameraError(f"camera '{frame.camera}' sent a damaged JPEG", camera=frame.camera)
    return picture
