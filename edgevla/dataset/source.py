"""A LeRobotDataset v3.0 as material for another one: its episodes' rows, table entries, statistics and video stretches.

Everything is taken as it stands in the files, columns that we do not know included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from edgevla.dataset import stats as statistics
from edgevla.dataset.layout import (
    EPISODES_GLOB,
    INFO,
    Episode,
    FeatureInfo,
    Findings,
    read_info,
    relative_files,
)
from edgevla.dataset.open import Opened, listed_episodes, read_all
from edgevla.dataset.reader import Dataset
from edgevla.dataset.stated import Stated, read_stated
from edgevla.dataset.stats import BASIC, QUANTILES, Stats
from edgevla.dataset.tables import read_episode_stats, read_table
from edgevla.errors import DatasetError

CONVERT = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=USER/NAME --root=FOLDER"
COUNTING = ("index", "episode_index", "task_index")
"""Columns that an edit numbers anew."""


def n_listed(root: Path) -> int:
    """Episodes of a dataset that can be edited.

    Raises:
        DatasetError: it cannot be read, is of a version that is not edited, or holds none.
    """
    info = read_info(root)
    if info.version[0] != 3:
        raise DatasetError(
            f"{root} has version {info.version_text}; only v3.0 is edited. Convert it with LeRobot (0.4 or later): "
            f"{CONVERT}",
            file=INFO,
        )
    return len(listed_episodes(root))


@dataclass(frozen=True)
class ChosenEpisodes:
    """The chosen episodes of a dataset. table: all rows of meta/episodes as stored; row i is episode i."""

    root: Path
    opened: Opened
    episodes: dict[int, Episode]
    table: pa.Table
    stated: Stated
    _read: dict[str, pa.Table] = field(default_factory=dict)
    """The data file read last: episodes come in the order of the files."""

    @property
    def videos(self) -> list[FeatureInfo]:
        return [f for f in self.opened.info.features.values() if f.dtype == "video"]

    def rows_of(self, episode: int) -> slice:
        e = self.episodes[episode]
        return slice(e.from_index, e.to_index)

    def tasks_of(self, episode: int) -> list[str]:
        """The instruction of each row.

        Raises:
            DatasetError: a row's number is not in the task table.
        """
        numbers = self.opened.frames.columns["task_index"][self.rows_of(episode)].tolist()
        unknown = next((n for n in numbers if n not in self.opened.tasks), None)
        if unknown is not None:
            raise DatasetError(
                f"episode {episode} of {self.root} has task_index {unknown}, which its task table does not list",
                episode=episode,
                feature="task_index",
            )
        return [self.opened.tasks[n] for n in numbers]

    def data(self, episode: int) -> pa.Table:
        """Its rows with every column of the data files, by frame_index."""
        frames = self.opened.frames
        places = self.opened.order[self.rows_of(episode)]
        files = np.searchsorted(frames.row_starts, places, side="right") - 1
        parts = [
            self._file(frames.files[f]).take(pa.array(places[files == f] - frames.row_starts[f]))
            for f in dict.fromkeys(files.tolist())
        ]
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    def _file(self, name: str) -> pa.Table:
        if name not in self._read:
            self._read.clear()
            self._read[name] = read_table(self.root, name)
        return self._read[name]

    def stats(self) -> list[Stats]:
        """Of each episode of the table, as stored."""
        parts = read_episode_stats(self.root, relative_files(self.root, EPISODES_GLOB))
        return [statistics.as_stats(part) for part in parts]

    def completed(self, episode: int, stored: Stats) -> Stats:
        """With what is lacking, or impossible, computed from the rows, and for a camera from pictures of them."""
        stats = {name: by for name, by in stored.items() if name in self.opened.info.features}
        for name, feature in self.opened.info.features.items():
            by = stats.get(name, {})
            if feature.is_numeric and not all(s in by for s in (*BASIC, *QUANTILES)):
                made = statistics.vector_stats(self.opened.frames.columns[name][self.rows_of(episode)])
                is_alike = "mean" not in by or by["mean"].shape == made["mean"].shape
                stats[name] = {**made, **by} if is_alike else dict(by)
            elif feature.is_camera and (not all(s in by for s in BASIC) or statistics.is_bad_image_std(by)):
                stats[name] = self._picture_stats(episode, name)
        return stats

    def _picture_stats(self, episode: int, camera: str) -> dict[str, np.ndarray]:
        dataset = Dataset(self.root, self.opened, Findings())
        first = self.episodes[episode].from_index
        counter = statistics.ImageCounter()
        for row in statistics.sample_rows(self.episodes[episode].length):
            counter.add(dataset.frame(camera, first + int(row)))
        return counter.stats()


def read_source(root: Path, episodes: Sequence[int]) -> ChosenEpisodes:
    """What other episodes need may be missing or damaged.

    Raises:
        DatasetError: one of these cannot be read.
    """
    opened = read_all(root, Findings(), wanted=list(episodes))
    there = {e.index: e for e in opened.episodes if e.index in set(episodes)}
    files = relative_files(root, EPISODES_GLOB)
    table = pa.concat_tables([read_table(root, f) for f in files], promote_options="permissive")
    return ChosenEpisodes(root, opened, there, table, read_stated(root))
