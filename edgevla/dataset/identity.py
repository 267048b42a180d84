"""What tells one dataset from another: a hash over everything in it that training may read.

Files are known by their whole content. Sizes and times are no proof (a file may be replaced by one of equal size, a
copy keeps its times), and a sample of bytes misses one picture of a thousand. Each file is read once, at about the
disk's speed: its digest is remembered by device, inode, size and times, of which the time of change (ctime) cannot be
set back by any copying tool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from edgevla.dataset.layout import STATED
from edgevla.dataset.stats import Stats

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset

REMEMBERED = "file-digests.jsonl"
SETTLED_NS = 2_000_000_000
"""A file that changed so shortly ago may change again within the clock's tick, and is not remembered."""
MOST_REMEMBERED = 1 << 24
"""Bytes of the memory; a larger one is begun anew."""
_BLOCK = 1 << 20

Stamp = tuple[int, int, int, int, int]
"""(device, inode, size, time of writing, time of change) of a file, times in ns."""


def cache_folder() -> Path:
    """`$EDGEVLA_CACHE`, else `~/.cache/edgevla` (or under XDG_CACHE_HOME)."""
    if named := os.environ.get("EDGEVLA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgevla"


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


# -- digests of files -----------------------------------------------------------------------------------------


def digests(root: Path, files: Iterable[str]) -> list[tuple[str, str]]:
    """(file, digest of its content, `-` where it is missing), each file once, in the order of their names."""
    names = sorted(set(files))
    known = _remembered()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: _digest(root / name, known), names))
    _remember([(stamp, text) for stamp, text in found if stamp is not None and stamp not in known])
    return [(name, text) for name, (_, text) in zip(names, found, strict=True)]


def _digest(path: Path, known: dict[Stamp, str]) -> tuple[Stamp | None, str]:
    """Its stamp, None where it is not to be remembered, and its digest."""
    try:
        with path.open("rb", buffering=0) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            if stamp in known:
                return stamp, known[stamp]
            digest = hashlib.blake2b(digest_size=32)
            while block := file.read(_BLOCK):
                digest.update(block)
            is_settled = (
                time.time_ns() - max(stamp[3:]) > SETTLED_NS and _stamp(os.fstat(file.fileno())) == stamp
            )
            return stamp if is_settled else None, digest.hexdigest()
    except OSError:
        return None, "-"


def _stamp(state: os.stat_result) -> Stamp:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _remembered() -> dict[Stamp, str]:
    known: dict[Stamp, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (cache_folder() / REMEMBERED).read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a line that a killed process left half
                *stamp, digest = json.loads(line)
                known[tuple(stamp)] = digest  # type: ignore[index]
    return known


def _remember(new: list[tuple[Stamp, str]]) -> None:
    """A folder that cannot be written costs time, nothing else."""
    if not new:
        return
    path = cache_folder() / REMEMBERED
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size > MOST_REMEMBERED:
            path.unlink()
        with path.open("a") as file:
            file.write("".join(json.dumps([*stamp, digest]) + "\n" for stamp, digest in new))
