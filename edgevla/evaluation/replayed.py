"""Policies on recorded observations: every frame is read once and given to all of them, with the same noise.

So whatever is done when the work is ended, all policies have seen the same frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.dataset.observations import moments_until, observations
from edgevla.errors import EdgeVLAError, EngineError
from edgevla.evaluation.plan import EvaluatedFrame
from edgevla.evaluation.subjects import Subject
from edgevla.types import ACTION, STATE, Observation

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset

BLOCK = 16
"""Frames whose pictures are decoded together."""
HOLD, MEAN = "hold", "mean action"


@dataclass
class Seat:
    """A policy, and where its inputs lie in the dataset. chunks: (T, A) of each frame. seconds: of each inference."""

    subject: Subject
    sources: Mapping[str, str]
    chunks: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def view(self) -> tuple[Any, ...]:
        """Equal for policies that see the same: their pictures are decoded once."""
        features = self.subject.manifest.features.items()
        taken = tuple((n, f.kind, f.shape, self.sources.get(n, n)) for n, f in features if f.kind != "action")
        return (*taken, self.subject.runner.n_moments)

    def see(self, dataset: Dataset, rows: Sequence[int]) -> dict[int, Observation]:
        """The observations of these rows, as this policy sees them."""
        return observations(dataset, rows, self.subject.manifest.features, self.sources)

    def moments(self, dataset: Dataset, row: int) -> list[int]:
        """Rows that one inference at `row` looks at, oldest first."""
        return moments_until(dataset, row, self.subject.runner.n_moments)

    def predict(
        self, frame: EvaluatedFrame, moments: Sequence[int], seen: Mapping[int, Observation]
    ) -> np.ndarray:
        """
        Raises:
            EngineError: it failed, or yielded what is no number; names the frame.
        """
        runner = self.subject.runner
        runner.reset()
        past = {row: seen[row] for row in moments[:-1]}
        try:
            done = runner.infer(seen[frame.row], grid_index=frame.row, past=past, chunk_seq=frame.noise)
        except EngineError as error:
            raise EngineError(
                f"{self.subject.name}, episode {frame.episode}, frame {frame.frame}: {error}"
            ) from error
        return done.actions


@dataclass
class Replay:
    """What came of it. frames: those that every policy has done. stopped: why it ended early; None: it is complete."""

    frames: list[EvaluatedFrame]
    seats: list[Seat]
    stopped: str | None = None
    error: EdgeVLAError | None = None
    seconds: float = 0.0


def seconds_per_frame(dataset: Dataset, seats: Sequence[Seat], frame: EvaluatedFrame) -> float:
    """How long one frame takes with all policies, measured on this one; the first time opens files and warms up."""
    spent = 0.0
    views: set[Any] = set()
    for seat in seats:
        moments = seat.moments(dataset, frame.row)
        seen = seat.see(dataset, moments)
        began = time.perf_counter()
        seat.see(dataset, moments)
        spent += 0.0 if seat.view in views else (time.perf_counter() - began) / len(moments)
        views.add(seat.view)
        seat.predict(frame, moments, seen)
        began = time.perf_counter()
        seat.predict(frame, moments, seen)
        spent += time.perf_counter() - began
    return spent


def check_pictures(dataset: Dataset, seats: Sequence[Seat], frames: Sequence[EvaluatedFrame]) -> None:
    """Whether every picture that is needed is there, by the videos' indices, before any is decoded.

    Raises:
        DatasetError: a video is missing, or lacks a frame; names it.
    """
    for seat in seats:
        rows = np.unique([row for f in frames for row in seat.moments(dataset, f.row)])
        for camera in seat.subject.manifest.cameras:
            source = seat.sources.get(camera, camera)
            if dataset.info.features[source].dtype != "image":
                dataset.locate(source, rows)


def replay(
    dataset: Dataset,
    seats: list[Seat],
    frames: Sequence[EvaluatedFrame],
    *,
    show: Callable[[int], None] = lambda _: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Replay:
    """All frames, or those until somebody asks to stop, or until a picture or a policy fails (kept as `error`)."""
    result = Replay([], seats)
    began = time.monotonic()
    try:
        for first in range(0, len(frames), BLOCK):
            block = frames[first : first + BLOCK]
            views = {seat.view: seat for seat in seats}
            seen = {view: _see_all(dataset, seat, block) for view, seat in views.items()}
            for frame in block:
                if asked_to_stop():
                    result.stopped = "interrupted"
                    return result
                _one_frame(dataset, result, frame, seen)
                show(len(result.frames))
    except EdgeVLAError as error:
        result.stopped, result.error = str(error), error
    finally:
        for seat in seats:
            del seat.chunks[len(result.frames) :], seat.seconds[len(result.frames) :]
        result.seconds = time.monotonic() - began
    return result


def _see_all(dataset: Dataset, seat: Seat, block: Sequence[EvaluatedFrame]) -> dict[int, Observation]:
    return seat.see(dataset, [row for f in block for row in seat.moments(dataset, f.row)])


def _one_frame(
    dataset: Dataset,
    result: Replay,
    frame: EvaluatedFrame,
    seen: Mapping[tuple[Any, ...], Mapping[int, Observation]],
) -> None:
    for seat in result.seats:
        began = time.perf_counter()
        seat.chunks.append(seat.predict(frame, seat.moments(dataset, frame.row), seen[seat.view]))
        seat.seconds.append(time.perf_counter() - began)
    result.frames.append(frame)


# -- what to compare with -----------------------------------------------------------------------------------


def baselines(
    dataset: Dataset, frames: Sequence[EvaluatedFrame], n: int, sources: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Chunks (frames, n, A) that no network made: the present position held, and the mean action of the data."""
    actions = actions_of(dataset, sources)
    rows = np.array([f.row for f in frames])
    mean = np.nanmean(actions, axis=0)
    return {
        HOLD: np.repeat(_present(dataset, actions, rows, frames, sources)[:, None], n, axis=1),
        MEAN: np.tile(mean, (len(frames), n, 1)),
    }


def _present(
    dataset: Dataset,
    actions: np.ndarray,
    rows: np.ndarray,
    frames: Sequence[EvaluatedFrame],
    sources: Mapping[str, str],
) -> np.ndarray:
    """Where the arm is at each frame (n, A): its state where that has the actions' joints, else the action before."""
    name, action = sources.get(STATE, STATE), dataset.info.features[sources.get(ACTION, ACTION)]
    state = dataset.info.features.get(name)
    if state is not None and state.names == action.names and state.shape == action.shape:
        return dataset.columns[name][rows].reshape(len(rows), -1)
    return actions[[row - (f.frame > 0) for row, f in zip(rows, frames, strict=True)]]


def actions_of(dataset: Dataset, sources: Mapping[str, str]) -> np.ndarray:
    """float64 (rows, A)."""
    return dataset.columns[sources.get(ACTION, ACTION)].reshape(dataset.n_frames, -1).astype(np.float64)


def joint_ranges(dataset: Dataset, sources: Mapping[str, str]) -> np.ndarray:
    """float64 (A,): how far each joint's action goes in the whole dataset, as far as it was read.

    0 for one that stands still but for rounding.
    """
    values = dataset.all_columns[sources.get(ACTION, ACTION)]
    actions = values.reshape(len(values), -1).astype(np.float64)
    width = np.nanmax(actions, axis=0) - np.nanmin(actions, axis=0)
    return np.where(width > 1e-6 * max(1.0, float(width.max(initial=0.0))), width, 0.0)
