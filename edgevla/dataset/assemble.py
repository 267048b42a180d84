"""A LeRobotDataset v3.0 out of episodes of others: rows and numbers anew, pictures as they are.

    videos     a file all of whose episodes are kept is taken as it is; else packets are copied (cut.py)
    data       rows as stored, `index`, `episode_index` and `task_index` counted anew; a row group per episode
    meta       episodes with their statistics, tasks, stats.json (merged), info.json, what `meta/edgevla.json` says

Written into an empty folder; who calls gives it its name (whole.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgevla.dataset import stats as statistics
from edgevla.dataset.cut import Stretch, cut_video, stretch_of
from edgevla.dataset.layout import INFO, SCRATCH, STATED, V3_DATA, V3_EPISODES, V3_VIDEO
from edgevla.dataset.source import COUNTING, ChosenEpisodes
from edgevla.dataset.stated import Stated
from edgevla.dataset.store import MIB, episode_table, replace_json, write_parquet, write_tasks
from edgevla.dataset.video import index_video
from edgevla.errors import DatasetError

SUBTASKS = "meta/subtasks.parquet"
OURS = (
    "data",
    "videos",
    "images",
    "meta/episodes",
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    STATED,
)
"""What is written anew, or (images) is left over from a recording. Anything else is taken along."""
PASSING = (SCRATCH, ".cache")


@dataclass(frozen=True)
class Part:
    """Episodes of one source in the order that they get. retask: episode -> the instruction of all its rows."""

    source: ChosenEpisodes
    episodes: Sequence[int]
    retask: Mapping[int, str] = field(default_factory=dict)

    def tasks_of(self, episode: int) -> list[str]:
        rows = self.source.tasks_of(episode)
        return [self.retask[episode]] * len(rows) if episode in self.retask else rows


class Assembly:
    """Writes `parts` into the empty folder `root`; `run` does all of it.

    is_linked: files that stay as they are get a second name instead of a copy, for the source is about to vanish.
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[Part],
        *,
        is_linked: bool,
        splits: Mapping[str, str] | None,
        say: Callable[[str], None],
    ) -> None:
        self.root, self.parts, self.is_linked, self._say = root, parts, is_linked, say
        self._splits = splits
        self.info = parts[0].source.opened.info
        self._spans: list[dict[str, Any]] = []
        """Per episode of the result, its columns that say where its videos are."""

    def run(self) -> None:
        """
        Raises:
            DatasetError: a source is damaged, or sources do not fit each other.
        """
        self._spans = [{} for part in self.parts for _ in part.episodes]
        for feature in self.parts[0].source.videos:
            self._write_videos(feature.column)
        tasks = self._tasks()
        rows, stats = self._write_data(tasks)
        self._write_episodes(rows, stats)
        write_tasks(self.root, tasks)
        replace_json(self.root / "meta/stats.json", statistics.to_json(statistics.merge(stats)))
        stated = self._stated()
        if stated != Stated():
            replace_json(self.root / STATED, stated.to_json())
        self._take_along()
        self._write_info(len(rows), sum(row["length"] for row in rows), len(tasks))

    # -- videos -------------------------------------------------------------------------------------------

    def _write_videos(self, camera: str) -> None:
        number, at = 0, 0
        for part in self.parts:
            files: dict[tuple[int, int], list[int]] = {}
            for place, episode in enumerate(part.episodes):
                files.setdefault(_file_of(part.source, camera, episode), []).append(place)
            for file, places in files.items():
                chunk, index = divmod(number, self.info.chunks_size)
                spans = self._write_video(part, camera, file, places, self._video(camera, chunk, index))
                for place, (start, end) in zip(places, spans, strict=True):
                    self._spans[at + place].update(
                        {
                            f"videos/{camera}/chunk_index": chunk,
                            f"videos/{camera}/file_index": index,
                            f"videos/{camera}/from_timestamp": start,
                            f"videos/{camera}/to_timestamp": end,
                        }
                    )
                number += 1
            at += len(part.episodes)

    def _video(self, camera: str, chunk: int, file: int) -> Path:
        return self.root / V3_VIDEO.format(video_key=camera, chunk_index=chunk, file_index=file)

    def _write_video(
        self, part: Part, camera: str, file: tuple[int, int], places: Sequence[int], target: Path
    ) -> list[tuple[float, float]]:
        """The file, or what is kept of it; per episode the seconds at which it begins and ends there."""
        source, fps = part.source, part.source.opened.info.fps
        path = source.root / source.opened.info.video_file(camera, *file)
        numbers = [part.episodes[place] for place in places]
        starts = [float(_cell(source, f"videos/{camera}/from_timestamp", e)) for e in numbers]
        lengths = [source.episodes[e].length for e in numbers]
        as_they_are = [(start, start + n / fps) for start, n in zip(starts, lengths, strict=True)]
        index = index_video(path)
        kept: list[Stretch] = [stretch_of(index, s, n) for s, n in zip(starts, lengths, strict=True)]
        if sum(lengths) < index.n_frames:
            if _is_rising(kept) and cut_video(path, target, index, kept, fps):
                ends = np.cumsum([0, *lengths]) / fps
                return [(a, b) for a, b in pairwise(ends.tolist())]
            self._say(
                f"{path.name} of camera '{camera}' is kept whole, with the pictures of "
                f"{index.n_frames - sum(lengths)} rows that are gone: it could only be cut by encoding it again"
            )
        self._place(path, target)
        return as_they_are

    def _place(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.is_linked:
            try:
                os.link(source.resolve(), target)
                return
            except OSError:
                pass  # a file system without second names
        shutil.copy2(source, target)

    # -- rows ---------------------------------------------------------------------------------------------

    def _tasks(self) -> dict[str, int]:
        """Those that rows have, in the order of the sources' own numbers."""
        tasks: dict[str, int] = {}
        for part in self.parts:
            used = {text for episode in part.episodes for text in set(part.tasks_of(episode))}
            known = [text for _, text in sorted(part.source.opened.tasks.items()) if text in used]
            for text in [*known, *sorted(used - set(known))]:
                tasks.setdefault(text, len(tasks))
        return tasks

    def _write_data(self, tasks: Mapping[str, int]) -> tuple[list[dict[str, Any]], list[statistics.Stats]]:
        rows: list[dict[str, Any]] = []
        all_stats: list[statistics.Stats] = []
        n_frames = 0
        limit = float(self.info.raw.get("data_files_size_in_mb") or 100) * MIB
        with _DataFiles(self.root, self.info.chunks_size, limit) as files:
            for part in self.parts:
                stored = part.source.stats()
                for episode in part.episodes:
                    texts = part.tasks_of(episode)
                    counted = {
                        "index": np.arange(n_frames, n_frames + len(texts)),
                        "episode_index": np.full(len(texts), len(rows)),
                        "task_index": np.array([tasks[text] for text in texts], np.int64),
                    }
                    chunk, file = files.add(_renumbered(part.source, episode, counted))
                    stats = part.source.completed(episode, stored[episode])
                    stats.update(
                        {n: statistics.vector_stats(counted[n]) for n in COUNTING if n in self.info.features}
                    )
                    all_stats.append(stats)
                    rows.append(
                        {
                            "episode_index": len(rows),
                            "tasks": list(dict.fromkeys(texts)),
                            "length": len(texts),
                            "data/chunk_index": chunk,
                            "data/file_index": file,
                            "dataset_from_index": n_frames,
                            "dataset_to_index": n_frames + len(texts),
                            **self._spans[len(rows)],
                            "meta/episodes/chunk_index": 0,
                            "meta/episodes/file_index": 0,
                        }
                    )
                    n_frames += len(texts)
        return rows, all_stats

    def _write_episodes(self, rows: Sequence[Mapping[str, Any]], stats: Sequence[statistics.Stats]) -> None:
        """What we write, and the columns that somebody else added."""
        features = self.info.features
        made = pa.concat_tables(
            [episode_table(row, of_it, features) for row, of_it in zip(rows, stats, strict=True)],
            promote_options="permissive",
        )
        found = pa.concat_tables(
            [part.source.table.take(pa.array(list(part.episodes))) for part in self.parts],
            promote_options="permissive",
        )
        for name in found.column_names:
            if name not in made.column_names and not name.startswith(("stats/", "videos/")):
                made = made.append_column(name, found.column(name))
        write_parquet(self.root / V3_EPISODES.format(chunk_index=0, file_index=0), [made.combine_chunks()])

    # -- the rest -----------------------------------------------------------------------------------------

    def _stated(self) -> Stated:
        """What the sources say of themselves, for the episodes that are left."""
        said = [part.source.stated for part in self.parts]
        cameras = dict.fromkeys(camera for one in said for camera in one.repeated_pictures)
        repeated = {
            camera: [
                r
                for part in self.parts
                for r in _chosen(part.source.stated.repeated_pictures.get(camera, ()), part)
            ]
            for camera in cameras
        }
        success = [s for part in self.parts for s in _chosen(part.source.stated.success, part)]
        has_success = any(one.success for one in said)
        cut_off = [bool(c) for part in self.parts for c in _chosen(part.source.stated.cut_off, part)]
        return replace(
            said[0],
            repeated_pictures=repeated,
            success=tuple(success) if has_success else (),
            cut_off=tuple(cut_off),
        )

    def _take_along(self) -> None:
        """The dataset's card, subtasks and whatever else lies in the first source's folder."""
        source = self.parts[0].source.root
        for folder, folders, names in os.walk(source):
            here = Path(folder).relative_to(source)
            folders[:] = [f for f in folders if (here / f).as_posix() not in OURS and f not in PASSING]
            for name in names:
                if (here / name).as_posix() not in OURS and not name.endswith(".tmp"):
                    self._place(source / here / name, self.root / here / name)

    def _write_info(self, n_episodes: int, n_frames: int, n_tasks: int) -> None:
        raw = {k: v for k, v in self.info.raw.items() if k not in ("total_videos", "total_chunks")}
        raw.update(
            codebase_version="v3.0",
            total_episodes=n_episodes,
            total_frames=n_frames,
            total_tasks=n_tasks,
            chunks_size=self.info.chunks_size,
            splits=dict(self._splits or {"train": f"0:{n_episodes}"}),
            data_path=V3_DATA,
            video_path=V3_VIDEO if self.parts[0].source.videos else None,
        )
        replace_json(self.root / INFO, raw)


def _cell(source: ChosenEpisodes, column: str, episode: int) -> Any:
    value = source.table.column(column)[episode].as_py() if column in source.table.column_names else None
    if value is None:
        camera = column.split("/")[1]
        raise DatasetError(
            f"episode {episode} of {source.root} has no video of camera '{camera}' in the episode table; delete that "
            "episode first",
            episode=episode,
            feature=camera,
        )
    return value


def _file_of(source: ChosenEpisodes, camera: str, episode: int) -> tuple[int, int]:
    chunk, file = (_cell(source, f"videos/{camera}/{which}_index", episode) for which in ("chunk", "file"))
    return int(chunk), int(file)


def _is_rising(kept: Sequence[Stretch]) -> bool:
    return all(end <= first for (_, end), (first, _) in pairwise(kept))


def _chosen(values: Sequence[Any], part: Part) -> list[Any]:
    return [values[e] if e < len(values) else None for e in part.episodes]


def _renumbered(source: ChosenEpisodes, episode: int, counted: Mapping[str, np.ndarray]) -> pa.Table:
    """Its rows as stored, with these columns instead of its own, and those that a reader had to make."""
    table, frames = source.data(episode), source.opened.frames
    made = {n: frames.columns[n][source.rows_of(episode)] for n in ("frame_index", "timestamp")}
    for name, values in {**made, **counted}.items():
        if name in made and name in table.column_names:
            continue
        array = pa.array(values)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, array)
        else:
            table = table.append_column(name, array)
    for feature in source.opened.info.features.values():
        if feature.dtype == "image" and _lies_beside(table.column(feature.column)):
            raise DatasetError(
                f"pictures of '{feature.name}' lie beside the table of {source.root}, not in it; such a dataset is not "
                "edited",
                feature=feature.name,
            )
    return table


def _lies_beside(column: pa.ChunkedArray) -> bool:
    if not pa.types.is_struct(column.type):
        return False
    return any(chunk.field("bytes").null_count for chunk in column.chunks)


class _DataFiles:
    """Data files one after the other, a row group per episode, each about `limit` bytes at most."""

    def __init__(self, root: Path, chunks_size: int, limit: float) -> None:
        self._root, self._chunks_size, self._limit = root, chunks_size, limit
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._sink: Any = None
        self._number = -1

    def add(self, table: pa.Table) -> tuple[int, int]:
        """Writes the rows of one episode; (chunk, file).

        Raises:
            DatasetError: its columns are others than those of the first.
        """
        table = self._alike(table)
        if self._writer is not None and self._sink.tell() + table.nbytes > self._limit:
            self._end()
        if self._writer is None:
            self._begin(table.schema)
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        return divmod(self._number, self._chunks_size)

    def _alike(self, table: pa.Table) -> pa.Table:
        if self._schema is None:
            kept = {k: v for k, v in (table.schema.metadata or {}).items() if k == b"huggingface"}
            self._schema = table.schema.with_metadata(kept or None)
        try:
            return table.select(self._schema.names).cast(self._schema)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DatasetError(f"the data files' columns do not fit each other: {error}") from error

    def _begin(self, schema: pa.Schema) -> None:
        self._number += 1
        chunk, file = divmod(self._number, self._chunks_size)
        path = self._root / V3_DATA.format(chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = path.open("wb")
        self._writer = pq.ParquetWriter(self._sink, schema, compression="snappy", use_dictionary=True)

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
        self._writer = None

    def __enter__(self) -> _DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
