"""Files of a v3.0 dataset as the writer puts them: whole or not at all, numbered, size-limited, repaired on resume."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgevla.dataset import stats as statistics
from edgevla.dataset.layout import (
    EPISODES_GLOB,
    SCRATCH,
    FeatureInfo,
    Findings,
    Info,
    natural,
    read_info,
    relative_files,
)
from edgevla.dataset.open import Opened, read_all
from edgevla.dataset.tables import open_parquet, read_episode_stats

MIB = 2**20


def replace_file(scratch: Path, target: Path) -> None:
    """Syncs a finished file and gives it its name, also across a power cut."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")
    replace_file(scratch, path)


def write_parquet(path: Path, groups: list[pa.Table]) -> None:
    """One row group per table; the first table's schema (and its metadata) is the file's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(scratch, groups[0].schema, compression="snappy", use_dictionary=True) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    replace_file(scratch, path)


class FileSeries:
    """Numbered files of one kind: chunk-000/file-000, ... A new one begins where the next episode would not fit.

    A resumed recording begins a new file, so files of other programs are never rewritten.
    """

    def __init__(self, root: Path, template: str, chunks_size: int, limit_mb: float) -> None:
        self.root, self.template, self.chunks_size = root, template, chunks_size
        self.limit = limit_mb * MIB
        numbers = [natural(p.relative_to(root).with_suffix(""))[-2:] for p in self._existing()]  # no .mp4
        chunk, file = max(numbers) if numbers else (0, -1)
        self._number = chunk * chunks_size + file
        """Number of the newest file, counted through all chunks."""
        self._is_mine = False

    def _existing(self) -> list[Path]:
        pattern = self.template.replace("{chunk_index:03d}", "*").replace("{file_index:03d}", "*")
        return list(self.root.glob(pattern))

    def _path(self, number: int) -> Path:
        chunk, file = divmod(number, self.chunks_size)
        return self.root / self.template.format(chunk_index=chunk, file_index=file)

    def current_for(self, n_bytes: int) -> Path | None:
        """The file to append `n_bytes` to; None when a new one must begin."""
        if not self._is_mine:
            return None
        path = self._path(self._number)
        return path if path.stat().st_size + n_bytes < self.limit else None

    def next_path(self) -> Path:
        """The file that comes after the one that is being filled."""
        return self._path(self._number + 1)

    def commit(self, scratch: Path, target: Path) -> tuple[int, int]:
        """Gives `scratch` the name `target` (the current or the next file); returns (chunk, file)."""
        replace_file(scratch, target)
        if target == self.next_path():
            self._number += 1
        self._is_mine = True
        return divmod(self._number, self.chunks_size)

    def append(
        self, table: pa.Table, place: Callable[[pa.Table, int, int], pa.Table] | None = None
    ) -> tuple[int, int]:
        """Adds a table by rewriting the current file (at most `limit` bytes); returns (chunk, file).

        A parquet file is valid only with its footer, so appending in place would lose all of it when killed.
        Data get a row group per episode. Episode rows come with `place`, which adds columns that tell the file's
        numbers, and share one group: a group costs some 40 kB in a table of so many columns.
        """
        current = self.current_for(table.nbytes)
        target = current or self.next_path()
        number = self._number if current else self._number + 1
        chunk, file = divmod(number, self.chunks_size)
        table = place(table, chunk, file) if place else table
        groups = []
        if current is not None:
            with pq.ParquetFile(current) as parquet:
                groups = [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
        groups.append(table)
        write_parquet(target, [pa.concat_tables(groups)] if place else groups)
        self._number, self._is_mine = number, True
        return chunk, file


# -- tables -------------------------------------------------------------------------------------------------


def data_table(columns: Mapping[str, Any], features: Mapping[str, FeatureInfo]) -> pa.Table:
    """Rows of one episode with the types LeRobot's own writer gives them, and its `huggingface` metadata."""
    arrays, fields = [], []
    for name, values in columns.items():
        array = _arrow(values, features[name])
        arrays.append(array)
        fields.append(pa.field(name, array.type))
    described = {name: _hf_feature(features[name]) for name in columns}
    metadata = {b"huggingface": json.dumps({"info": {"features": described}}).encode()}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))


def _arrow(values: Any, feature: FeatureInfo) -> pa.Array:
    if feature.dtype == "string":
        return pa.array(values, pa.string())
    if feature.dtype == "image":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": data, "path": None} for data in values], kind)
    dtype = np.dtype("bool" if feature.dtype == "bool" else feature.dtype)
    array = np.ascontiguousarray(values, dtype)
    arrow = pa.array(array.ravel())
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(arrow, array.shape[1])
    for size in reversed(array.shape[1:]):
        offsets = np.arange(0, len(arrow) + 1, size, dtype=np.int32)
        arrow = pa.ListArray.from_arrays(pa.array(offsets), arrow)
    return arrow


def _hf_feature(feature: FeatureInfo) -> dict[str, Any]:
    """The feature in the words of the `datasets` library."""
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "List"}
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}


def episode_table(
    row: Mapping[str, Any], stats: statistics.Stats, features: Mapping[str, FeatureInfo]
) -> pa.Table:
    """One row of meta/episodes: the episode, then its statistics as `stats/<feature>/<statistic>`."""
    columns: dict[str, pa.Array] = {}
    for name, value in row.items():
        kind = (
            pa.list_(pa.string())
            if name == "tasks"
            else pa.float64()
            if isinstance(value, float)
            else pa.int64()
        )
        columns[name] = pa.array([value], kind)
    for feature, by_name in stats.items():
        for name, array in by_name.items():
            kind = _stat_type(features[feature].dtype, name)
            nested = array.astype(
                np.bool_ if kind == pa.bool_() else np.int64 if kind == pa.int64() else np.float64
            )
            columns[f"stats/{feature}/{name}"] = pa.array([nested.tolist()], _nested(kind, array.ndim))
    return pa.table(columns)


def _stat_type(dtype: str, statistic: str) -> pa.DataType:
    if statistic == "count":
        return pa.int64()
    if statistic in ("min", "max") and dtype == "bool":
        return pa.bool_()
    if statistic in ("min", "max") and dtype.startswith(("int", "uint")):
        return pa.int64()
    return pa.float64()


def _nested(kind: pa.DataType, depth: int) -> pa.DataType:
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def write_tasks(root: Path, tasks: Mapping[str, int]) -> None:
    """meta/tasks.parquet as pandas would: the text is the index, which the metadata says."""
    index = "__index_level_0__"
    column = {"metadata": None, "name": "task_index", "field_name": "task_index"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {**column, "pandas_type": "int64", "numpy_type": "int64"},
            {
                "name": None,
                "field_name": index,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": None,
            },
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), (index, pa.string())], metadata={b"pandas": json.dumps(pandas).encode()}
    )
    rows = sorted((number, text) for text, number in tasks.items())
    arrays = [pa.array([n for n, _ in rows], pa.int64()), pa.array([t for _, t in rows], pa.string())]
    write_parquet(root / "meta/tasks.parquet", [pa.Table.from_arrays(arrays, schema=schema)])


# -- resume -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a dataset holds when a recording resumes it."""

    info: Info
    n_episodes: int
    n_frames: int
    tasks: dict[str, int]
    stats: statistics.Stats


def clean_after_crash(root: Path) -> Found:
    """Removes what a killed recording left: scratch files, and rows of an episode that was never listed.

    Raises:
        DatasetError: the dataset is damaged beyond that.
    """
    shutil.rmtree(root / SCRATCH, ignore_errors=True)
    for leftover in root.rglob("*.tmp"):
        leftover.unlink()
    info = read_info(root)
    if info.raw.get("total_episodes") == 0 and not list(root.glob("meta/episodes/*/*.parquet")):
        for orphan in root.glob("data/*/*.parquet"):
            orphan.unlink()
        return Found(info, 0, 0, {}, {})
    opened = read_all(root, Findings())
    n_episodes = len(opened.episodes)
    for file in opened.frames.files:
        _drop_unlisted(root, file, n_episodes)
    return Found(
        info=opened.info,
        n_episodes=n_episodes,
        n_frames=sum(e.length for e in opened.episodes),
        tasks={text: number for number, text in opened.tasks.items()},
        stats=_stats_of_episodes(root, opened),
    )


def _stats_of_episodes(root: Path, opened: Opened) -> statistics.Stats:
    """Merged anew from the episode rows: stats.json may be from before the last one."""
    parts = read_episode_stats(root, relative_files(root, EPISODES_GLOB))
    return statistics.merge([statistics.as_stats(p) for p in parts]) if all(parts) else opened.stats


def _drop_unlisted(root: Path, file: str, n_episodes: int) -> None:
    """Rewrites a data file without the rows of episodes from `n_episodes` on."""
    with open_parquet(root, file) as parquet:
        groups = [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
    kept = []
    for table in groups:
        is_listed = np.asarray(table.column("episode_index")) < n_episodes
        kept.append(table if is_listed.all() else table.filter(pa.array(is_listed)))
    kept = [t for t in kept if t.num_rows]
    if not kept:
        (root / file).unlink()
    elif sum(t.num_rows for t in kept) < sum(t.num_rows for t in groups):
        write_parquet(root / file, kept)
