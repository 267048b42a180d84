"""A run of the flight recorder as a scene, all of it or the time of one saved moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import UsageError
from edgevla.flight.frames import Kept, kept
from edgevla.flight.moments import About, camera_names, read_seen
from edgevla.flight.reader import Run
from edgevla.flight.story import stamp
from edgevla.messages import MODES
from edgevla.view.scene import Scene, TimedSentence, TimeSeries

LEAST_S = 0.1
"""An axis of time must have a length."""
COLUMNS = {"measured": "position", "sent": "goal", "wanted": "wanted"}
"""What a person calls it -> the log's column."""


@dataclass(frozen=True)
class SavedPictures:
    """Of one camera, out of the observations that were saved."""

    camera: str
    entries: Sequence[Kept]
    times: np.ndarray

    def at(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """
        Raises:
            UsageError: a saved observation is damaged.
        """
        for row in rows:
            seen = read_seen(*self.entries[row])
            yield seen.moments[seen.grid_index].images[self.camera]


def whole(run: Run) -> tuple[Scene, list[str]]:
    """Every tick, event and picture that the run left, and what of it is damaged, in sentences."""
    entries, damaged = kept(run.folder)
    span = (0.0, _end(run))
    title = f"{run.about.get('robot', 'run')}, {run.folder.name}"
    cameras, unreadable = _cameras(run, list(entries.values()))
    return _scene(run, "run", title, span, cameras), damaged + unreadable


def moment(run: Run, place: Path, note: About) -> Scene:
    """What the policy saw before a fault, or when somebody asked; the arm over the same time. What of it is damaged,
    `whole` says."""
    entries: list[Kept] = [(place, entry) for entry in note.chunks]
    seen = [entry["observed_ns"] for _, entry in entries]
    begin = float(run.seconds(min(seen)))
    span = begin, max(begin + LEAST_S, float(run.seconds(max(*seen, note.saved_ns))))
    title = (
        f"{run.about.get('robot', 'run')}, {run.folder.name}: {stamp(run, min(seen))} to {stamp(run, max(seen))}, "
        f"{len(entries)} observations\nsaved because: {note.why}"
    )
    return _scene(run, place.name, title, span, _cameras(run, entries)[0])


def _scene(
    run: Run, name: str, title: str, span: tuple[float, float], cameras: Mapping[str, SavedPictures]
) -> Scene:
    ticks = run.ticks
    times = run.seconds(ticks["deadline_ns"])
    inside = (times >= span[0]) & (times <= span[1])
    # An end wants the rest pose at once, which would dwarf everything else.
    is_end = (ticks["mode"] == MODES.index("stopped"))[:, None]
    values = {words: ticks[column] for words, column in COLUMNS.items()}
    values["wanted"] = np.where(is_end, np.nan, values["wanted"])
    tables = {
        words: TimeSeries(times[inside], run.joints, of_each[inside], run.units)
        for words, of_each in values.items()
    }
    return Scene(
        name,
        title,
        span,
        tables,
        cameras,
        run.wall_ns,
        others={"loop": _loop(run, times, inside)},
        said=_said(run, times),
        clock="run time",
    )


def _loop(run: Run, times: np.ndarray, inside: np.ndarray) -> TimeSeries:
    ticks = run.ticks
    chunk = np.where(ticks["chunk_seq"] < 0, np.nan, ticks["chunk_seq"])
    columns = [ticks["late_ns"] / 1e6, ticks["n_actions_left"], chunk, ticks["action_index"]]
    values = np.stack(columns, axis=1).astype(np.float64) if len(times) else np.zeros((0, 4))
    return TimeSeries(
        times[inside],
        ["late", "actions_left", "chunk", "action_index"],
        values[inside],
        ["ms", "", "", ""],
    )


def _said(run: Run, times: np.ndarray) -> list[TimedSentence]:
    """Events in their words, and each change of mode."""
    mode = run.ticks["mode"]
    changes = np.flatnonzero(np.diff(mode, prepend=-1))
    said = [TimedSentence(float(times[k]), "info", f"mode: {MODES[int(mode[k])]}") for k in changes]
    for note in run.notes.get("event", []):
        words = f"{note['source']}: {note['text']}"
        said.append(TimedSentence(float(run.seconds(note["observed_ns"])), note["severity"], words))
    return sorted(said, key=lambda s: s.time)


def _cameras(run: Run, entries: Sequence[Kept]) -> tuple[Mapping[str, SavedPictures], list[str]]:
    """Of each the observations that have a picture of it: one that is lost is left out, where that is allowed. And what
    is damaged, in sentences."""
    of_each: dict[str, list[Kept]] = {}
    damaged = []
    for place, entry in sorted(entries, key=lambda kept: kept[1]["observed_ns"]):
        try:
            names = camera_names(place, entry)
        except UsageError as error:
            damaged.append(str(error))
            continue
        for name in names:
            of_each.setdefault(name, []).append((place, entry))
    return {name.rpartition(".")[2]: _pictures(run, name, own) for name, own in of_each.items()}, damaged


def _pictures(run: Run, name: str, entries: Sequence[Kept]) -> SavedPictures:
    return SavedPictures(name, entries, run.seconds([entry["observed_ns"] for _, entry in entries]))


def _end(run: Run) -> float:
    known: list[Any] = [run.begun_ns, *run.ticks["observed_ns"][-1:].tolist()]
    known += [note["observed_ns"] for note in run.notes.get("event", [])[-1:]]
    return float(run.seconds(max(known)))
