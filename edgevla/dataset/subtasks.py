"""The subtask of a frame as its instruction, from whichever of three places a dataset keeps it in.

subtask_index         a number per frame, its text in meta/subtasks.parquet     (LeRobot 0.4 and later)
subtask               a text per frame
language_persistent   rows {role, content, style, timestamp, ...}: of style `subtask`, the newest not later than the
                      frame's time is the one that holds                       (LeRobot 0.7)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edgevla.dataset.layout import Episode, Findings, Info
from edgevla.dataset.reading import SUBTASK_COLUMNS
from edgevla.dataset.tables import Frames, read_numbered_texts, read_table
from edgevla.errors import DatasetError, UsageError

SUBTASKS = "meta/subtasks.parquet"
SAME_TIME_S = 1e-4
"""Times are float32, and some were computed and some read."""


def take_subtasks(
    root: Path,
    info: Info,
    frames: Frames,
    order: np.ndarray,
    tasks: dict[int, str],
    episodes: Sequence[Episode],
    findings: Findings,
) -> dict[int, str]:
    """Gives every frame its subtask, and where it has none its task: a new `task_index`, and the table of its texts.

    episodes: those that count in what is said about frames without one.

    Raises:
        UsageError: the dataset has no subtasks, none of these episodes has.
    """
    texts = _texts(root, info, frames, order)
    rows = np.concatenate([np.arange(e.from_index, e.to_index) for e in episodes] or [np.zeros(0, int)])
    n_without = sum(not texts[row] for row in rows)
    if len(rows) and n_without == len(rows):
        raise UsageError(f"--task-from subtask: no frame of {root} has a subtask; leave the option out")
    if n_without:
        findings.warn(f"{n_without} of {len(rows)} frames have no subtask: their task is taken instead")
    old = frames.columns["task_index"]
    words = [text or tasks.get(int(old[row]), "") for row, text in enumerate(texts)]
    numbers = {text: i for i, text in enumerate(dict.fromkeys(words))}
    frames.columns["task_index"] = np.array([numbers[text] for text in words], np.int64)
    return {i: text for text, i in numbers.items()}


def _texts(root: Path, info: Info, frames: Frames, order: np.ndarray) -> list[str]:
    """Of every row, empty where there is none; from the first place that says anything."""
    n = frames.n_rows
    if "subtask_index" in frames.columns and (root / SUBTASKS).is_file():
        table = read_numbered_texts(root, SUBTASKS, "subtask_index", "subtask")
        return [table.get(int(number), "") for number in frames.columns["subtask_index"]]
    if "subtask" in frames.texts:
        return [str(text).strip() if isinstance(text, str) else "" for text in frames.texts["subtask"]]
    language = info.features.get("language_persistent")
    if language is not None:
        return _from_language(root, language.column, frames, order)[:n]
    if "subtask_index" in frames.columns:
        raise UsageError(
            f"--task-from subtask: {root} numbers its subtasks but lacks {SUBTASKS}, their texts; restore it from a copy"
        )
    raise UsageError(
        f"--task-from subtask: {root} has no subtasks: none of {', '.join(SUBTASK_COLUMNS)} is there; leave "
        "the option out"
    )


def _from_language(root: Path, column: str, frames: Frames, order: np.ndarray) -> list[str]:
    """By row of `frames`. An episode's rows are gathered over all its frames: writers repeat them on each."""
    episodes = frames.columns["episode_index"]
    times = frames.columns["timestamp"]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))  # from a row of the files to its place in `frames`
    found: dict[int, dict[tuple[float, str], None]] = {}
    for start, file in zip(frames.row_starts.tolist(), frames.files, strict=True):
        for row, content, seconds in _subtask_rows(root, file, column):
            at = int(place[start + row])
            if at < len(episodes):
                found.setdefault(int(episodes[at]), {})[(seconds, content)] = None
    texts = [""] * len(episodes)
    for episode, rows in found.items():
        listed = sorted(rows, key=lambda row: row[0])
        begins = np.array([seconds for seconds, _ in listed])
        inside = np.flatnonzero(episodes == episode)
        which = np.searchsorted(begins, times[inside].astype(np.float64) + SAME_TIME_S, side="right") - 1
        for row, i in zip(inside.tolist(), which.tolist(), strict=True):
            texts[row] = listed[i][1] if i >= 0 else ""
    return texts


def _subtask_rows(root: Path, file: str, column: str) -> list[tuple[int, str, float]]:
    """(row of the file, text, seconds) of each row of style `subtask`, in order.

    Raises:
        DatasetError: the column holds something else.
    """
    try:
        cells = read_table(root, file, [column]).column(column).combine_chunks()
        if isinstance(cells, pa.ChunkedArray):
            cells = pa.concat_arrays(cells.chunks)
        inner: Any = cells.flatten()
        parents = np.asarray(pc.list_parent_indices(cells))
        styles, contents, seconds = (
            inner.field(name).to_pylist() for name in ("style", "content", "timestamp")
        )
    except (pa.ArrowException, AttributeError, LookupError, TypeError) as error:
        raise DatasetError(
            f"{file}: column '{column}' is not a list of annotations with style, content and timestamp ({error})",
            file=file,
            feature=column,
        ) from error
    return [
        (int(row), content.strip(), float(when))
        for row, style, content, when in zip(parents, styles, contents, seconds, strict=True)
        if style == "subtask" and content and content.strip() and when is not None
    ]
