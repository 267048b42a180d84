"""The last look before an arm may move: do the cameras show what they showed in the training data?

Who waits here gives the camera node the second that it needs to say, as an event, that a picture is frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.errors import CameraError
from edgevla.look import CameraLook, Oddity, glance, oddities
from edgevla.messages import Frame
from edgevla.nodes.assembler import Recent, frame_pixels

FROZEN_NS = 1200 * NS_PER_MS
PATIENCE_NS = 3 * NS_PER_S
"""A camera that shows nothing at all is others' business: no chunk is made without it."""


class FirstLook:
    """One start of a policy. `step` until it returns something.

    cameras: feature -> name of the robot's camera. trained: by feature. drawn: names of simulated cameras, which may
    stand still.
    """

    def __init__(
        self,
        inbox: Recent,
        cameras: Mapping[str, str],
        trained: Mapping[str, CameraLook],
        drawn: Collection[str] = (),
    ) -> None:
        self._inbox, self._cameras = inbox, tuple(cameras.values())
        self._trained = {cameras[f]: look for f, look in trained.items() if f in cameras}
        self._moving = set(drawn)
        self._first_ns: dict[str, int] = {}
        self._began_ns: int | None = None

    def step(self, now_ns: int) -> list[Oddity] | None:
        """What is odd about the newest pictures; None while some camera has not shown enough to tell."""
        self._began_ns = now_ns if self._began_ns is None else self._began_ns
        for name in self._cameras:
            frames = self._inbox.recent(Frame, f"camera/{name}")
            if frames:
                self._first_ns.setdefault(name, now_ns)
            # The very first picture of a camera is new in any case.
            if any(f.body.n_repeated == 0 and f.seq > 0 for f in frames):
                self._moving.add(name)
        is_known = all(self._is_known(name, now_ns) for name in self._cameras)
        return self._judge() if is_known or now_ns - self._began_ns >= PATIENCE_NS else None

    def _is_known(self, name: str, now_ns: int) -> bool:
        first_ns = self._first_ns.get(name)
        return first_ns is not None and (name in self._moving or now_ns - first_ns >= FROZEN_NS)

    def _judge(self) -> list[Oddity]:
        live = {}
        for name in self._first_ns:
            frames = self._inbox.recent(Frame, f"camera/{name}")
            try:
                live[name] = glance(frame_pixels(frames[-1]))
            except CameraError:  # a damaged JPEG; the first inference says so
                continue
        return oddities(live, self._trained)
