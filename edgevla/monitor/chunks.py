"""What became of every chunk: asked, arrived, first used, given up for the next; and the jump where it took over. Pure.

The robot says with every tick which chunk its goal is from. So a chunk that was never used although a newer one was has
come too late, what had gone by at its first use was skipped, and goals bend where one chunk takes over from another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevla.messages import Chunk, Message
from edgevla.monitor.rates import TickTiming

KEPT = 40


@dataclass(frozen=True)
class Seam:
    """The joint whose goal bends most at the first tick of a chunk, and by how much: a second difference, as in the
    run's summary, in the joint's unit."""

    joint: int
    jump: float


@dataclass
class Track:
    """One chunk's life. Times are monotonic ns.

    seq: of the request that it answers. asked_ns: the moment that was observed. arrived_ns: when it was published.
    first_ns: of the tick that used it first, last_ns: of the newest; None: not used (yet). at: how far it has been
    executed, in actions. is_late: a newer one was used, and this never.
    """

    seq: int
    asked_ns: int
    arrived_ns: int
    step_ns: int
    n: int
    first_ns: int | None = None
    last_ns: int | None = None
    n_skipped: int = 0
    at: float = 0.0
    seam: Seam | None = None
    is_late: bool = False
    is_over: bool = False

    @property
    def ends_ns(self) -> int:
        """When its last action would be due."""
        if self.first_ns is None:
            return self.arrived_ns
        return self.first_ns + (self.n - self.n_skipped) * self.step_ns


@dataclass(frozen=True)
class _Use:
    """The first tick whose goal is from a chunk."""

    at_ns: int
    index: float
    seam: Seam | None


@dataclass
class Timeline:
    """The chunks of the last while, the oldest first."""

    tracks: deque[Track] = field(default_factory=lambda: deque(maxlen=KEPT))
    _now: int | None = None
    _goals: deque[TickTiming] = field(default_factory=lambda: deque(maxlen=3))
    _uses: dict[int, _Use] = field(default_factory=dict)

    def arrived(self, message: Message[Chunk]) -> None:
        body = message.body
        number, sent_ns = body.request_id, message.header.sent_ns
        track = Track(number, message.observed_ns, sent_ns, body.step_ns, body.n_valid)
        self.tracks.append(track)
        use = self._uses.pop(number, None)
        if use is not None and use.at_ns >= track.asked_ns:
            self._begin(track, use)

    def take(self, tick: TickTiming) -> None:
        """One tick of the loop, in their order."""
        self._goals.append(tick)
        if tick.chunk_seq is None:
            self._now = None
            return
        track = self.of(tick.chunk_seq)
        if tick.chunk_seq != self._now:
            use = _Use(tick.deadline_ns, tick.action_index, _seam(list(self._goals)))
            self._now = tick.chunk_seq
            if track is None:
                self._uses = {tick.chunk_seq: use}
            elif track.first_ns is None:
                self._begin(track, use)
        if track is not None:
            track.last_ns, track.at = tick.deadline_ns, tick.action_index

    def of(self, seq: int | None) -> Track | None:
        return next((track for track in self.tracks if track.seq == seq), None)

    @property
    def newest_seam(self) -> Seam | None:
        return next((track.seam for track in reversed(self.tracks) if track.seam), None)

    def _begin(self, track: Track, use: _Use) -> None:
        track.first_ns, track.last_ns = use.at_ns, use.at_ns
        track.n_skipped, track.at, track.seam = int(use.index), use.index, use.seam
        for other in self.tracks:
            if other.seq < track.seq:
                other.is_over = True
                other.is_late = other.first_ns is None


def _seam(ticks: Sequence[TickTiming]) -> Seam | None:
    """At the last of three ticks in a row; None where a chunk does not take over from another."""
    if len(ticks) < 3 or ticks[1].chunk_seq is None or ticks[2].tick - ticks[0].tick != 2:
        return None
    goals = [np.frombuffer(tick.goal, "<f4").astype(float) for tick in ticks]
    if not goals[0].size or any(goal.shape != goals[0].shape for goal in goals):
        return None
    bend = np.abs(goals[2] - 2 * goals[1] + goals[0])
    if not np.isfinite(bend).all():
        return None
    joint = int(bend.argmax())
    return Seam(joint, float(bend[joint]))
