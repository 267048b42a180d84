"""What tells one dataset from another: a hash over everything in it that training may read, files by their content."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from edgevla.dataset.layout import STATED
from edgevla.dataset.stats import Stats
from edgevla.digests import digests

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset


def identity(dataset: Dataset, tables: Sequence[str], stats: Stats) -> str:
    """sha256 over schema, tasks, episodes, numbers, texts, statistics as stored, and the content of pictures.

    tables: the data files, relative to the dataset's root. stats: as stored.
    """
    digest = hashlib.sha256()
    features = [_plain(feature) for feature in dataset.info.features.values()]
    episodes = [
        (e.index, e.length, sorted((c, s.file, s.start) for c, s in e.videos.items()))
        for e in dataset.episodes
    ]
    said = [dataset.fps, features, sorted(dataset.task_table.items()), episodes]
    digest.update(json.dumps(said, default=str).encode())
    for kind, arrays in (("", dataset.columns), *sorted(stats.items())):
        for name in sorted(arrays):
            digest.update(f"{kind}/{name}".encode())
            digest.update(arrays[name].tobytes())
    for name in sorted(dataset.texts):
        digest.update(json.dumps([name, dataset.texts[name].tolist()], default=str).encode())
    files = [STATED, *(span.file for e in dataset.episodes for span in e.videos.values())]
    if any(dataset.info.features[camera].dtype == "image" for camera in dataset.cameras):
        files += [*tables, *_pictures_beside(dataset, tables)]
    for file, content in digests(dataset.root, files):
        digest.update(f"{file}:{content}".encode())
    return digest.hexdigest()


def _plain(feature: Any) -> dict[str, Any]:
    """Every field of a feature but info.json's own words."""
    return {f.name: getattr(feature, f.name) for f in dataclasses.fields(feature) if f.name != "raw"}


def _pictures_beside(dataset: Dataset, tables: Sequence[str]) -> list[str]:
    """Picture files that the table only names."""
    named: set[str] = set()
    for table in tables:
        with contextlib.suppress(OSError, ValueError), pq.ParquetFile(dataset.root / table) as parquet:
            paths = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
            for path in paths:
                if path.endswith(".path") and _has_empty_cells(parquet, paths, path):
                    column = parquet.read(columns=[path]).column(0).combine_chunks()
                    named |= {cell["path"] for cell in column.to_pylist() if cell and cell.get("path")}
    return sorted(name for name in named if (dataset.root / name).is_file())


def _has_empty_cells(parquet: pq.ParquetFile, paths: list[str], path: str) -> bool:
    """Whether the cells beside a `path` may lack their bytes."""
    beside = path.removesuffix("path") + "bytes"
    if beside not in paths:
        return True
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    counts = [group.column(paths.index(beside)).statistics for group in groups]
    return any(c is None or not c.has_null_count or c.null_count > 0 for c in counts)
