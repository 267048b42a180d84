"""What the policy saw at a moment of a run, as pictures: out of the observations that were saved for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.errors import UsageError
from edgevla.flight.moments import Seen, about, moments, read_seen
from edgevla.flight.reader import Run
from edgevla.flight.story import stamp

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

NEAR_NS = 5_000_000_000
"""What was seen longer before a moment says nothing of it."""
NOT_SAVED = (
    "what the policy saw then was not saved: a fault saves the 30 s before it, and so do --save and the monitor's key m "
    "while the run goes on"
)


@dataclass(frozen=True)
class Glimpse:
    """One observation to be shown. letter: marks it in the timeline. why: it is this one, in words."""

    letter: str
    why: str
    seen: Seen

    @property
    def images(self) -> Mapping[str, np.ndarray]:
        """Camera -> uint8 (H, W, 3), as the policy got it."""
        return self.seen.moments[self.seen.grid_index].images


Kept = tuple[Path, dict[str, Any]]
"""A saved observation: its moment's folder, and its entry there."""


def kept(folder: Path) -> tuple[dict[int, Kept], list[str]]:
    """Chunk -> where its observation is and what the moment notes of it; and what is damaged, in sentences."""
    found: dict[int, Kept] = {}
    damaged = []
    for place in moments(folder):
        try:
            for entry in about(place).chunks:
                found.setdefault(entry["chunk"], (place, entry))
        except UsageError as error:
            damaged.append(str(error))
    return found, damaged


def glimpses(run: Run, ns: int) -> tuple[list[Glimpse], list[str]]:
    """What the arm's action at a moment was inferred from, and the newest observation before it; what is damaged.

    They are the same one where chunks are short. Empty: neither was saved.
    """
    chunks, damaged = kept(run.folder)
    tick = int(np.abs(run.ticks["deadline_ns"] - ns).argmin())
    executed = int(run.ticks["chunk_seq"][tick])
    past = [n for n, (_, entry) in chunks.items() if ns - NEAR_NS <= entry["observed_ns"] <= ns]
    newest = max(past, key=lambda n: chunks[n][1]["observed_ns"], default=None)
    wanted = {executed: "its actions are executed here"} if executed in chunks else {}
    if newest is not None:
        wanted.setdefault(newest, "the newest picture before this moment")
    shown: list[Glimpse] = []
    for number, why in wanted.items():
        try:
            shown.append(Glimpse("AB"[len(shown)], why, read_seen(*chunks[number])))
        except UsageError as error:
            damaged.append(str(error))
    return shown, damaged


def told(run: Run, ns: int, shown: Sequence[Glimpse]) -> list[str]:
    """What is to be seen beside the timeline, or why nothing is."""
    if not shown:
        return [NOT_SAVED]
    if not any(glimpse.images for glimpse in shown):
        return ["the policy looks through no camera"]
    return [f"{g.letter} in the picture is what the policy saw {_when(run, ns, g)}: {g.why}" for g in shown]


def _when(run: Run, ns: int, glimpse: Glimpse) -> str:
    seen = glimpse.seen
    before = max(0, ns - seen.observed_ns) / 1e9
    return f"at {stamp(run, seen.observed_ns)}, {before:.2f} s before, for chunk {seen.request_id}"


def draw_glimpses(figure: SubFigure, run: Run, ns: int, shown: Sequence[Glimpse]) -> None:
    """A column per observation, a row per camera."""
    cameras = list(dict.fromkeys(camera for glimpse in shown for camera in glimpse.images))
    axes = figure.subplots(len(cameras), len(shown), squeeze=False)
    for column, glimpse in enumerate(shown):
        task = glimpse.seen.moments[glimpse.seen.grid_index].task
        words = f"{glimpse.letter}: {glimpse.why}\nseen {_when(run, ns, glimpse)}\n{_short(task)}"
        for row, camera in enumerate(cameras):
            axis = axes[row, column]
            axis.set_axis_off()
            axis.set_anchor("NW")
            image = glimpse.images.get(camera)
            if image is None:
                continue
            axis.imshow(image, interpolation="nearest", aspect="equal")
            size = f"{camera.rpartition('.')[2]}, {image.shape[1]}x{image.shape[0]}"
            axis.set_title(f"{words}\n{size}" if row == 0 else size, fontsize=8, loc="left")


def _short(task: str) -> str:
    return f"“{task[:47]}...”" if len(task) > 50 else f"“{task}”" if task else "no task"
