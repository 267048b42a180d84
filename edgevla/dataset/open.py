"""From a folder to checked arrays: metadata and the data table of either version, judged while read.

Rows decide, counters are compared with them: totals, lengths and ranges that disagree with the table are findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.dataset import stats as statistics
from edgevla.dataset.account import account_of_info
from edgevla.dataset.depth import find_depth
from edgevla.dataset.layout import (
    EPISODES_GLOB,
    INFO,
    Episode,
    Findings,
    Info,
    VideoSpan,
    read_info,
    read_jsonl,
    relative_files,
)
from edgevla.dataset.reading import DatasetReading
from edgevla.dataset.stats import Stats
from edgevla.dataset.subtasks import take_subtasks
from edgevla.dataset.tables import (
    Frames,
    read_episode_rows,
    read_episode_stats,
    read_frames,
    read_tasks,
    task_table,
)
from edgevla.errors import DatasetError


@dataclass
class Opened:
    """What a dataset holds, under the names of `reading`.

    order: for each row, its place in the files as read (None of them moved: arange).
    empty: numbers of episodes without frames.
    """

    info: Info
    tasks: dict[int, str]
    episodes: list[Episode]
    frames: Frames
    order: np.ndarray
    stats: Stats
    reading: DatasetReading
    empty: frozenset[int]


def listed_episodes(root: Path) -> list[int]:
    """Numbers of the episodes in the metadata, rising. Raises DatasetError: it cannot be read."""
    info = read_info(root)
    _refuse_empty(root, info)
    return [row["episode_index"] for row in _episode_rows(root, info, Findings())]


def read_all(
    root: Path,
    findings: Findings,
    wanted: Sequence[int] | None = None,
    reading: DatasetReading | None = None,
    remembered: DatasetReading | None = None,
) -> Opened:
    """Reads everything but videos. With `wanted` episodes, what only others need may be missing or damaged.

    Raises:
        UsageError: a reading that the dataset does not allow.
        DatasetError: what makes the dataset unreadable; with `findings.raise_errors` also the first defect.
    """
    info = read_info(root)
    reading = (reading or DatasetReading()).over(remembered or DatasetReading(), info)
    info = reading.applied(info)
    is_v2 = info.version[0] == 2
    account_of_info(info, findings)
    if not info.says_version:
        findings.warn(
            f"{INFO} says codebase_version = {info.raw.get('codebase_version')!r}, which is none; read as "
            f"{info.version_text}, which its files look like",
            file=INFO,
        )
    if info.version not in ((2, 0), (2, 1), (3, 0)):
        findings.warn(
            f"{INFO} says version {info.version_text}; read as v3.0, unknown extras are ignored", file=INFO
        )
    _refuse_empty(root, info)
    rows = _episode_rows(root, info, findings)
    files = _data_files(root, info, rows, findings, wanted)
    read = read_frames(root, files, info.features, findings, is_partial=wanted is not None)
    frames = _with_bookkeeping(read, info, findings)
    order = _sort_rows(frames, findings)
    episodes = _episodes(root, info, rows, frames, findings, wanted)
    if wanted is None:
        _check_totals(info, rows, episodes, findings)
    needed = [e for e in episodes if wanted is None or e.index in wanted]
    info = find_depth(root, info, needed, frames.files, findings)
    tasks = _tasks(root, is_v2, findings)
    if reading.task_from == "subtask":
        tasks = take_subtasks(root, info, frames, order, tasks, needed, findings)
    stats = _stored_stats(root, is_v2, findings)
    return Opened(
        info=info,
        tasks=tasks,
        episodes=episodes,
        frames=frames,
        order=order,
        stats={f.name: stats[f.column] for f in info.features.values() if f.column in stats},
        reading=reading,
        empty=frozenset(row["episode_index"] for row in rows if row.get("length") == 0),
    )


def _refuse_empty(root: Path, info: Info) -> None:
    """A recording that was ended before its first episode is whole, and there is nothing to restore."""
    table = [root / "meta/episodes.jsonl"] if info.version[0] == 2 else list(root.glob(EPISODES_GLOB))
    if info.raw.get("total_episodes") == 0 and not any(f.is_file() and f.stat().st_size for f in table):
        raise DatasetError(
            f"the recording {root} holds no episode: it was ended before one was kept. Record some: "
            f"edgevla record {root}",
            file="meta/episodes",
        )


# -- metadata -----------------------------------------------------------------------------------------------


def _guard(findings: Findings, read: Any, otherwise: Any) -> Any:
    """Runs a reader; in collecting mode a DatasetError becomes a finding and `otherwise` is used."""
    try:
        return read()
    except DatasetError as error:
        findings.error(str(error), file=error.fields.get("file"))
        return otherwise


def _tasks(root: Path, is_v2: bool, findings: Findings) -> dict[int, str]:
    if is_v2:
        lines = _guard(findings, lambda: list(read_jsonl(root / "meta/tasks.jsonl")), [])
        pairs = [(line.get("task_index"), line.get("task")) for line in lines]
        return _guard(findings, lambda: task_table(pairs, "meta/tasks.jsonl"), {})
    if (root / "meta/tasks.parquet").is_file():
        return _guard(findings, lambda: read_tasks(root), {})
    findings.error(
        f"meta/tasks.parquet is missing in {root}; restore it from a copy", file="meta/tasks.parquet"
    )
    return {}


def _episode_rows(root: Path, info: Info, findings: Findings) -> list[dict[str, Any]]:
    return _episode_rows_v2(root, findings) if info.version[0] == 2 else _episode_rows_v3(root, findings)


def _episode_rows_v2(root: Path, findings: Findings) -> list[dict[str, Any]]:
    lines = _guard(findings, lambda: list(read_jsonl(root / "meta/episodes.jsonl")), [])
    rows = _typed_rows(lines, "meta/episodes.jsonl", findings)
    return [row for _, row in sorted({row["episode_index"]: row for row in rows}.items())]


def _episode_rows_v3(root: Path, findings: Findings) -> list[dict[str, Any]]:
    files = relative_files(root, EPISODES_GLOB)
    if not files:
        findings.error(
            f"{root} has no episode table (meta/episodes/chunk-000/file-000.parquet); restore it from a copy",
            file="meta/episodes",
        )
    rows = [
        row for file in files for row in _guard(findings, lambda f=file: read_episode_rows(root, [f]), [])
    ]
    rows = _typed_rows(rows, "meta/episodes", findings)
    numbers = [row["episode_index"] for row in rows]
    if numbers != list(range(len(rows))):
        findings.error(
            f"the episode table of {root} lists episodes {numbers[:5]} ...; expected 0, 1, 2, ...: a tool "
            "took some out, or a recording was killed; restore meta/episodes from a copy",
            file="meta/episodes",
        )
    return rows


def _typed_rows(rows: Sequence[Mapping[str, Any]], file: str, findings: Findings) -> list[dict[str, Any]]:
    """Rows with their numbers as int (seconds: float); NaN, which pandas writes for nothing, becomes None."""
    typed = [_guard(findings, lambda r=row: _typed_row(r, file), None) for row in rows]
    return [row for row in typed if row is not None]


def _typed_row(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    typed: dict[str, Any] = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
    typed.setdefault("episode_index", None)
    for name, value in typed.items():
        is_whole = name in ("episode_index", "length") or name.endswith(("/chunk_index", "/file_index"))
        try:
            if value is None and name != "episode_index":
                continue
            if is_whole:
                typed[name] = int(value)
            elif name.endswith("_timestamp"):
                typed[name] = float(value)
            elif name == "tasks":
                typed[name] = [str(t) for t in ([value] if isinstance(value, str) else value)]
        except (TypeError, ValueError):
            raise DatasetError(
                f"{file}: the row of episode {row.get('episode_index')} has {name} = {value!r}", file=file
            ) from None
    return typed


def _stored_stats(root: Path, is_v2: bool, findings: Findings) -> Stats:
    """stats.json, else merged from the episodes' statistics, else empty (then computed from the data)."""
    path = root / "meta/stats.json"
    if path.is_file():
        try:
            return statistics.read_stats(path)
        except DatasetError as error:
            findings.warn(f"{error}; they are rebuilt", file="meta/stats.json")
    if is_v2 and (root / "meta/episodes_stats.jsonl").is_file():
        lines = _guard(findings, lambda: list(read_jsonl(root / "meta/episodes_stats.jsonl")), [])
        return _merged([line.get("stats") for line in lines], "meta/episodes_stats.jsonl", findings)
    files = [] if is_v2 else relative_files(root, EPISODES_GLOB)
    parts = [p for p in (read_episode_stats(root, files) if files else []) if p]
    source = "rebuilt from the episodes' statistics" if parts else "computed from the data"
    if not path.is_file():
        findings.warn(
            f"meta/stats.json is missing in {root}: statistics are {source}", file="meta/stats.json"
        )
    return _merged(parts, "meta/episodes", findings)


def _merged(parts: Sequence[Any], file: str, findings: Findings) -> Stats:
    try:
        return statistics.merge([statistics.as_stats(p) for p in parts])
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        findings.warn(
            f"statistics in {file} are not readable ({error}); they are computed from the data", file=file
        )
        return {}


# -- the data table -----------------------------------------------------------------------------------------


def _data_files(
    root: Path, info: Info, rows: list[dict[str, Any]], findings: Findings, wanted: Sequence[int] | None
) -> list[str]:
    """All data files there are; files that the episodes name and the folder lacks are findings.

    For v3.0 the file numbers of episodes are only hints (LeRobot's converter writes wrong ones).
    """
    there = relative_files(root, info.data_glob())
    have = set(there)
    if info.version[0] == 2:
        named = {
            info.episode_data_path(r["episode_index"]): r["episode_index"]
            for r in rows
            if r.get("length") != 0
        }
    else:
        named = {}
        for row in rows:
            chunk, file = row.get("data/chunk_index"), row.get("data/file_index")
            if chunk is not None and file is not None:
                named.setdefault(
                    info.data_path.format(chunk_index=chunk, file_index=file), row["episode_index"]
                )
    for file, episode in named.items():
        if file not in have and (wanted is None or episode in wanted):
            findings.error(
                f"{file} is missing in {root}; it holds episode {episode}. Restore it, or take the other "
                "episodes: --episodes",
                file=file,
                episode=episode,
            )
    if not there:
        findings.error(
            f"{root} holds no data files ({info.data_glob()}); restore them from a copy", file="data"
        )
    return [f for f in there if f in named] if info.version[0] == 2 else there


def _with_bookkeeping(frames: Frames, info: Info, findings: Findings) -> Frames:
    """Makes the five bookkeeping columns that a third-party dataset may leave out."""
    c, n = frames.columns, frames.n_rows
    if not c and not findings.has_errors:
        raise DatasetError("the dataset holds no complete episode; record some first", file="data")
    if not c:
        raise DatasetError("no data file can be read, so nothing else was checked", file="data")
    if "episode_index" not in c:
        raise DatasetError(
            "the data files have no column episode_index; the dataset cannot be read", feature="episode_index"
        )
    starts = np.flatnonzero(np.diff(c["episode_index"], prepend=-1))
    made: dict[str, Any] = {
        "index": lambda: np.arange(n),
        "frame_index": lambda: np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n))),
        "timestamp": lambda: (c["frame_index"] / info.fps).astype(np.float32),
        "task_index": lambda: np.zeros(n, np.int64),
    }
    for name, make in made.items():
        if name not in c:
            if name not in info.features:
                findings.warn(f"the data files have no column '{name}'; it is computed", feature=name)
            c[name] = make()
    return frames


def _sort_rows(frames: Frames, findings: Findings) -> np.ndarray:
    """Brings rows into (episode, frame) order where the files hold them otherwise."""
    c = frames.columns
    order = np.lexsort((c["frame_index"], c["episode_index"]))
    if not np.array_equal(order, np.arange(len(order))):
        findings.warn(
            "rows of the data files are not in order of episode_index and frame_index: sorted in memory"
        )
        for name in c:
            c[name] = np.ascontiguousarray(c[name][order])
        for name in frames.texts:
            frames.texts[name] = frames.texts[name][order]
    return order


def _episodes(
    root: Path,
    info: Info,
    rows: list[dict[str, Any]],
    frames: Frames,
    findings: Findings,
    wanted: Sequence[int] | None,
) -> list[Episode]:
    """Episodes by what the table holds; a length that the metadata states otherwise is an error."""
    numbers, first, counts = np.unique(frames.columns["episode_index"], return_index=True, return_counts=True)
    at = {int(n): (int(f), int(c)) for n, f, c in zip(numbers, first, counts, strict=True)}
    listed = {r["episode_index"] for r in rows}
    orphans = sorted(set(at) - listed)
    if orphans and rows:
        findings.warn(
            f"the data files hold rows of episode {orphans[0]}, which the episode table does not list (a recording was "
            f"killed while saving it): {sum(at[o][1] for o in orphans)} rows ignored",
            episode=orphans[0],
            feature="episode_index",
        )
    episodes = []
    for row in rows:
        number, stated = row["episode_index"], row.get("length") or 0
        start, n = at.get(number, (0, 0))
        if n != stated and wanted is not None and number not in wanted:
            continue
        if n == stated == 0:
            if wanted is not None and number not in wanted:
                continue
            findings.warn(
                f"episode {number} of {root} is empty: it has no frames, and is left out", episode=number
            )
            continue
        if n == 0:
            findings.error(
                f"episode {number} of {root} has no rows in the data files", episode=number, file="data"
            )
            continue
        if n != stated:
            findings.error(
                f"episode {number} of {root} has {n} rows in the data files; the episode table says {stated}",
                episode=number,
                file="meta/episodes",
            )
        spans = _spans(info, row, n)
        episodes.append(Episode(number, n, start, start + n, tuple(row.get("tasks") or ()), spans))
    _drop_rows(frames, episodes)
    return episodes


def _drop_rows(frames: Frames, episodes: list[Episode]) -> None:
    """Orphan rows stand after the listed episodes: a view without them. Gaps inside keep their rows."""
    end = max((e.to_index for e in episodes), default=0)
    if end < frames.n_rows:
        frames.columns.update({k: v[:end] for k, v in frames.columns.items()})
        frames.texts.update({k: v[:end] for k, v in frames.texts.items()})


def _spans(info: Info, row: Mapping[str, Any], length: int) -> dict[str, VideoSpan]:
    spans = {}
    for camera in info.cameras:
        if info.features[camera].dtype != "video":
            continue
        column = info.features[camera].column
        if info.version[0] == 2:
            file = info.episode_video_path(column, row["episode_index"])
            spans[camera] = VideoSpan(file, 0.0, length / info.fps)
            continue
        chunk, number = row.get(f"videos/{column}/chunk_index"), row.get(f"videos/{column}/file_index")
        start = row.get(f"videos/{column}/from_timestamp")
        if chunk is None or number is None or start is None:
            continue
        end = row.get(f"videos/{column}/to_timestamp")
        file = info.video_file(column, chunk, number)
        spans[camera] = VideoSpan(file, start, start + length / info.fps if end is None else end)
    return spans


def _check_totals(
    info: Info, rows: Sequence[Mapping[str, Any]], episodes: list[Episode], findings: Findings
) -> None:
    n_empty = sum(row.get("length") == 0 for row in rows)
    for key, count in (
        ("total_episodes", len(episodes) + n_empty),
        ("total_frames", sum(e.length for e in episodes)),
    ):
        stated = info.raw.get(key)
        if stated is not None and stated != count:
            findings.warn(f"{INFO} says {key} = {stated}; the tables hold {count}, which is used", file=INFO)
