"""Episodes of a LeRobot dataset as scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgevla.dataset.facts import feature_names, joint_unit_names
from edgevla.dataset.layout import Episode, short_name
from edgevla.dataset.reader import Dataset
from edgevla.dataset.stated import Stated, read_stated
from edgevla.joint_units import joint_name
from edgevla.types import ACTION, STATE
from edgevla.view.scene import Outcome, Scene, TimeSeries

BLOCK = 32
"""Pictures that are decoded together."""
SUCCESS = "next.success"
"""LeRobot's column: whether the task is done at a row."""


@dataclass(frozen=True)
class EpisodePictures:
    dataset: Dataset
    camera: str
    first: int
    times: np.ndarray

    def at(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """
        Raises:
            DatasetError: one is missing, damaged, or not at its row's time.
        """
        for k in range(0, len(rows), BLOCK):
            yield from self.dataset.frames(self.camera, self.first + np.asarray(rows[k : k + BLOCK]))


def scene(dataset: Dataset, episode: Episode) -> Scene:
    """
    Raises:
        DatasetError: what the recording says of itself is damaged.
    """
    stated = read_stated(dataset.root)
    rows = slice(episode.from_index, episode.to_index)
    times = dataset.columns["timestamp"][rows].astype(np.float64)
    cameras = {
        short_name(camera): EpisodePictures(dataset, camera, episode.from_index, times)
        for camera in dataset.cameras
    }
    tables = {
        words: _table(dataset, name, rows, times, stated)
        for words, name in (("state", STATE), ("action", ACTION))
        if name in dataset.columns
    }
    end = float(times[-1]) + 1 / dataset.fps
    units = "" if stated.joint_units is not None else "; joint units are not stated"
    return Scene(
        f"episode-{episode.index:03d}",
        f"{dataset.root.name}, episode {episode.index}: {_tasks(dataset, episode)}\n"
        f"{end:.1f} s, {episode.length} rows at {dataset.fps:g} per s{units}",
        (float(times[0]), end),
        tables,
        cameras,
        outcome=_outcome(dataset, episode, stated),
    )


def _tasks(dataset: Dataset, episode: Episode) -> str:
    numbers = dataset.columns["task_index"][episode.from_index : episode.to_index]
    tasks = [dataset.task_table.get(int(n), f"task {n}") for n in dict.fromkeys(numbers.tolist())]
    return "; ".join(f"“{task}”" for task in tasks)


def _table(dataset: Dataset, name: str, rows: slice, times: np.ndarray, stated: Stated) -> TimeSeries:
    values = dataset.columns[name][rows].astype(np.float64).reshape(len(times), -1)
    names = [joint_name(n) for n in feature_names(dataset, name)]
    if len(names) != values.shape[1] or len(set(names)) != len(names):
        names = [f"number {k}" for k in range(values.shape[1])]
    units = joint_unit_names(names, stated.joint_units) if stated.joint_units is not None else ()
    return TimeSeries(times, names, values, units)


def _outcome(dataset: Dataset, episode: Episode, stated: Stated) -> Outcome | None:
    """A person's verdict, else LeRobot's column, which many demonstrations leave false."""
    verdict = stated.success[episode.index] if episode.index < len(stated.success) else None
    if verdict is not None:
        return Outcome(verdict, "success" if verdict else "failure")
    if SUCCESS not in dataset.columns:
        return None
    is_good = bool(dataset.columns[SUCCESS][episode.from_index : episode.to_index].any())
    return Outcome(is_good, f"{SUCCESS}: {'yes' if is_good else 'never'}")
