"""Every defect of a dataset as one sentence: metadata and tables (found while reading), values, times, videos.

`check_dataset` looks at all of it and never raises for what is wrong inside; `check_values` and `check_videos` are
also what training runs before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgevla.dataset import stats as statistics
from edgevla.dataset.check_stats import check_stats
from edgevla.dataset.depth import deep_gray_video
from edgevla.dataset.facts import feature_names, state_units
from edgevla.dataset.layout import SCRATCH, STATED, Episode, Finding, Findings, relative_files
from edgevla.dataset.open import read_all
from edgevla.dataset.pictures import check_pictures
from edgevla.dataset.reader import Dataset
from edgevla.dataset.reading import DatasetReading, how_to_name, lookalikes
from edgevla.dataset.sizes import check_sizes
from edgevla.dataset.stated import Stated, read_stated
from edgevla.dataset.still import still_sentences, still_values
from edgevla.dataset.video import VideoIndex
from edgevla.errors import DatasetError
from edgevla.types import ACTION, STATE

Progress = Callable[[int, int, str], None]
"""(done, total, what)"""


def check_dataset(path: str | Path, *, progress: Progress | None = None) -> list[Finding]:
    """Reads and checks everything in a dataset folder, pictures' statistics included. No findings: it is sound."""
    return examine(path, progress=progress)[0]


def examine(
    path: str | Path, *, progress: Progress | None = None, reading: DatasetReading | None = None
) -> tuple[list[Finding], Dataset | None]:
    """Findings, and the dataset as far as it could be opened (None: not at all)."""
    root = Path(path).expanduser()
    findings = Findings(raise_errors=False)
    try:
        opened = read_all(root, findings, reading=reading)
    except DatasetError as error:
        fields = error.fields
        findings.error(
            str(error), file=fields.get("file"), feature=fields.get("feature"), episode=fields.get("episode")
        )
        return findings.all, None
    dataset = Dataset(root, opened, findings)
    if not dataset.episodes:
        findings.error(f"{root} holds no complete episode", file="meta/episodes")
        return findings.all, dataset
    check_values(dataset, findings)
    check_videos(dataset, findings, progress=progress)
    _check_names(dataset, findings)
    _check_leftovers(root, findings)
    check_pictures(dataset, _stated(root, findings), findings)
    if not findings.has_errors:
        try:
            check_stats(dataset, findings)
        except DatasetError as error:  # a frame that cannot be decoded
            findings.error(f"{error}. Restore it from a copy.", file=error.fields.get("file"))
    return findings.all, dataset


# -- the table ----------------------------------------------------------------------------------------------


def check_values(dataset: Dataset, findings: Findings, features: Sequence[str] | None = None) -> None:
    """NaN and infinity, times off the fps grid, indices that do not count, unknown tasks, shapes without names.

    features: those whose numbers are looked at, besides the times; None: all."""
    _check_finite(dataset, findings, None if features is None else ["timestamp", *features])
    _check_times(dataset, findings)
    _check_counting(dataset, findings)
    _check_tasks(dataset, findings)
    for name, feature in dataset.info.features.items():
        n = int(np.prod(feature.shape))
        if feature.is_numeric and feature.names and len(feature.names) != n:
            findings.warn(
                f"feature '{name}' has {n} elements and {len(feature.names)} names; the names are not used",
                feature=name,
            )
        twice = sorted({joint for joint in feature.names if feature.names.count(joint) > 1})
        if twice and name in (STATE, ACTION):
            findings.warn(
                f"feature '{name}' names {', '.join(twice)} more than once; a robot's joints are found by name, so what "
                "is trained on it cannot be exported: correct the names in meta/info.json",
                feature=name,
            )


def _check_finite(dataset: Dataset, findings: Findings, features: Sequence[str] | None) -> None:
    for name in features or dataset.columns:
        values = dataset.columns.get(name)
        if values is None or not np.issubdtype(values.dtype, np.floating):
            continue
        with np.errstate(over="ignore"):  # policies compute in float32
            is_bad = ~np.isfinite(values.reshape(len(values), -1).astype(np.float32))
        for episode, rows in _by_episode(dataset, np.flatnonzero(is_bad.any(1))):
            row = int(rows[0])
            element = int(is_bad[row].argmax())
            names = dataset.info.features[name].names
            which = f" ('{names[element]}')" if element < len(names) else ""
            report = findings.error if dataset.info.features[name].is_needed else findings.warn
            report(
                f"episode {episode.index}, feature '{name}' element {element}{which} is "
                f"{values.reshape(len(values), -1)[row, element]} in frame {row - episode.from_index} "
                f"({len(rows)} such rows; {dataset.file_of(row)}); remove the episode or repair the value",
                file=dataset.file_of(row),
                feature=name,
                episode=episode.index,
            )


def _by_episode(dataset: Dataset, rows: np.ndarray) -> list[tuple[Episode, np.ndarray]]:
    ends = np.array([e.to_index for e in dataset.episodes])
    which = np.searchsorted(ends, rows, side="right")
    return [(dataset.episodes[e], rows[which == e]) for e in np.unique(which)]


def _check_times(dataset: Dataset, findings: Findings) -> None:
    c, fps = dataset.columns, dataset.fps
    times = c["timestamp"].astype(np.float64)
    off = np.abs(times - c["frame_index"] / fps)
    off[~np.isfinite(off)] = 0  # said by _check_finite
    allowed = np.maximum(dataset.tolerance_s, 2 * np.spacing(np.abs(times).astype(np.float32)))
    report = findings.error if any(e.videos for e in dataset.episodes) else findings.warn
    for episode, rows in _by_episode(dataset, np.flatnonzero(off > allowed)):
        row = int(rows[off[rows].argmax()])
        report(
            f"episode {episode.index}: timestamp {times[row]:.4f} s of frame {row - episode.from_index} is "
            f"{off[row]:.4f} s off the {fps:g} fps grid ({len(rows)} such rows; {dataset.file_of(row)}): the clock's "
            "time was recorded instead of frame / fps, or fps in meta/info.json is wrong",
            file=dataset.file_of(row),
            feature="timestamp",
            episode=episode.index,
        )


def _check_counting(dataset: Dataset, findings: Findings) -> None:
    c = dataset.columns
    wrong = []
    for episode in dataset.episodes:
        inside = slice(episode.from_index, episode.to_index)
        if not np.array_equal(c["frame_index"][inside], np.arange(episode.length)):
            wrong.append(episode.index)
    for number in wrong:
        findings.error(
            f"episode {number}: frame_index does not count 0, 1, 2, ... to its length; frames are missing or doubled",
            feature="frame_index",
            episode=number,
        )
    if not wrong and not dataset.is_subset and not np.array_equal(c["index"], np.arange(dataset.n_frames)):
        findings.warn(
            "column 'index' does not count the rows 0, 1, 2, ...; rows are used by position", feature="index"
        )


def _check_tasks(dataset: Dataset, findings: Findings) -> None:
    known = np.array(sorted(dataset.task_table), np.int64)
    is_unknown = ~np.isin(dataset.columns["task_index"], known)
    for episode, rows in _by_episode(dataset, np.flatnonzero(is_unknown)):
        number = int(dataset.columns["task_index"][rows[0]])
        findings.error(
            f"episode {episode.index} has task_index {number}, which the task table does not list "
            f"({len(known)} tasks); add the task, or correct the column",
            file=dataset.file_of(int(rows[0])),
            feature="task_index",
            episode=episode.index,
        )
    if any(not text.strip() for text in dataset.tasks):
        findings.warn("the task table holds an empty instruction", file="meta/tasks")
    if dataset.reading.task_from != "subtask":
        _check_listed_tasks(dataset, findings)


def _check_listed_tasks(dataset: Dataset, findings: Findings) -> None:
    """The episode table repeats the tasks as text; where the rows' numbers say another, a merge forgot one of them."""
    table, other = dataset.task_table, []
    for episode in dataset.episodes:
        numbers = np.unique(dataset.columns["task_index"][episode.from_index : episode.to_index]).tolist()
        unlisted = [table[n] for n in numbers if n in table and table[n] not in episode.tasks]
        if episode.tasks and unlisted:
            other.append((episode, unlisted[0]))
    if other:
        episode, text = other[0]
        findings.warn(
            f"episode {episode.index} is listed with the task {episode.tasks[0]!r}, and its rows have {text!r}, "
            f"which is taken ({len(other)} such episodes): merging or editing changed only one of the two",
            file="meta/episodes",
            feature="task_index",
            episode=episode.index,
        )


# -- videos -------------------------------------------------------------------------------------------------


def check_videos(
    dataset: Dataset,
    findings: Findings,
    cameras: Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
) -> None:
    """Every file is there, opens, is not cut short, and has a frame for every row; one frame of each is decoded."""
    wanted = dataset.cameras if cameras is None else list(cameras)
    n_before = len(findings.all)
    users: dict[tuple[str, str], list[Episode]] = {}
    for camera in wanted:
        if dataset.info.features[camera].dtype != "video":
            _check_pictures(dataset, camera, findings)
            continue
        for episode in dataset.episodes:
            span = episode.videos.get(camera)
            if span is None:
                findings.error(
                    f"episode {episode.index} has no video of camera '{camera}' in the episode table",
                    file="meta/episodes",
                    feature=camera,
                    episode=episode.index,
                )
            else:
                users.setdefault((camera, span.file), []).append(episode)

    def index(key: tuple[str, str]) -> VideoIndex | DatasetError:
        try:
            return dataset.video_index(key[1])
        except DatasetError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        for done, (key, found) in enumerate(zip(users, pool.map(index, users), strict=True), 1):
            _check_video(dataset, key[0], key[1], users[key], found, findings)
            if progress:
                progress(done, len(users), key[1])
    broken = {f.feature for f in findings.all[n_before:] if f.severity == "error"}
    check_sizes(dataset, findings, [camera for camera in wanted if camera not in broken])


def _check_video(
    dataset: Dataset,
    camera: str,
    file: str,
    episodes: list[Episode],
    index: VideoIndex | DatasetError,
    findings: Findings,
) -> None:
    first = episodes[0].index
    several = f"episode {first}" if len(episodes) == 1 else f"episodes {first} to {episodes[-1].index}"
    if isinstance(index, DatasetError):
        reason = (
            "is missing" if not (dataset.root / file).exists() else "cannot be opened: damaged or cut short"
        )
        findings.error(
            f"{several}, camera '{camera}': {file} {reason}. Restore it from a copy, or train on the other episodes.",
            file=file,
            feature=camera,
            episode=first,
        )
        return
    if index.declared and index.n_frames < index.declared:
        findings.error(
            f"{several}, camera '{camera}': {file} is cut short: {index.n_frames} of {index.declared} frames are there. "
            "Restore it from a copy.",
            file=file,
            feature=camera,
            episode=first,
        )
        return
    if deep_gray_video(index.pix_fmt):
        findings.error(
            f"{several}, camera '{camera}': {file} holds {index.pix_fmt}, distances rather than colours; take other "
            f"episodes, or do without it: --without {camera}",
            file=file,
            feature=camera,
            episode=first,
        )
        return
    height, width, _ = dataset.info.features[camera].hwc
    if (index.height, index.width) != (height, width):
        findings.warn(
            f"camera '{camera}': {file} is {index.width}x{index.height}; meta/info.json says {width}x{height}, the "
            "video is believed",
            file=file,
            feature=camera,
        )
    shown: list[tuple[int, int, int]] = []
    for episode in episodes:
        numbers = _frame_numbers(dataset, camera, file, episode, findings)
        if numbers is None:
            return
        if len(numbers):
            shown.append((int(numbers.min()), int(numbers.max()), episode.index))
    if _is_shared(shown, camera, file, findings):
        return
    try:
        dataset.frame(camera, episodes[-1].to_index - 1)
    except DatasetError as error:
        findings.error(str(error), file=file, feature=camera, episode=episodes[-1].index)


def _frame_numbers(
    dataset: Dataset, camera: str, file: str, episode: Episode, findings: Findings
) -> np.ndarray | None:
    """The file's frame for each of the episode's rows; None after a finding, empty where times are no numbers."""
    rows = np.arange(episode.from_index, episode.to_index)
    if not np.isfinite(dataset.columns["timestamp"][rows]).all():
        return np.zeros(0, np.int64)  # said already
    try:
        numbers = np.concatenate([n for _, _, n in dataset.locate(camera, rows)])
    except DatasetError as error:
        findings.error(str(error), file=file, feature=camera, episode=episode.index)
        return None
    if len(np.unique(numbers)) < len(numbers):
        findings.error(
            f"episode {episode.index}, camera '{camera}': {len(numbers)} rows share {len(np.unique(numbers))} frames of "
            f"{file}; the video has another frame rate than the table",
            file=file,
            feature=camera,
            episode=episode.index,
        )
        return None
    return numbers


def _is_shared(shown: Sequence[tuple[int, int, int]], camera: str, file: str, findings: Findings) -> bool:
    """Whether two episodes have the same frames: one of them shows what the other's arm did. shown: (first frame, last
    frame, episode)."""
    for (_, last, one), (first, _, other) in pairwise(sorted(shown)):
        if first <= last:
            low, high = sorted((one, other))
            findings.error(
                f"episodes {low} and {high}, camera '{camera}': both have frame {first} of {file}, so one of them shows "
                "the other's pictures; correct from_timestamp in meta/episodes, or take only the right one: --episodes",
                file=file,
                feature=camera,
                episode=high,
            )
            return True
    return False


def _check_pictures(dataset: Dataset, camera: str, findings: Findings) -> None:
    """First and last picture of every episode."""
    for episode in dataset.episodes:
        try:
            dataset.frames(camera, sorted({episode.from_index, episode.to_index - 1}))
        except DatasetError as error:
            findings.error(str(error), file=error.fields.get("file"), feature=camera, episode=episode.index)


def _stated(root: Path, findings: Findings) -> Stated:
    try:
        stated = read_stated(root)
    except DatasetError as error:
        findings.error(f"{error}; correct it, or remove the file", file=STATED)
        return Stated()
    for number in stated.cut_off_episodes:
        text = f"episode {number}: the recording was ended while it was open, so it may lack its end"
        findings.warn(text, episode=number)
    return stated


# -- the rest -----------------------------------------------------------------------------------------------


def _check_leftovers(root: Path, findings: Findings) -> None:
    if (root / SCRATCH).is_dir() or relative_files(root, "**/*.tmp"):
        findings.warn(
            "scratch files of a killed recording are left; they are ignored, and removed when it is resumed",
            file=SCRATCH,
        )


def _check_names(dataset: Dataset, findings: Findings) -> None:
    """Without an action nothing is learnt; without a state, or with a still one, less than one may think."""
    columns = dataset.columns
    named = {f.feature for f in findings.all if f.severity == "error"}
    """Such as one that the data files lost; no other feature is meant then."""
    if ACTION not in columns and ACTION not in named:
        findings.warn(
            f"no feature is named '{ACTION}', so no policy can train on this: {how_to_name(ACTION, dataset.info)}",
            feature=ACTION,
        )
    if STATE not in columns and STATE not in named and (alike := lookalikes(STATE, dataset.info.features)):
        findings.warn(
            f"no feature is named '{STATE}'; if that is '{alike[0]}', say --feature {STATE}={alike[0]}",
            feature=STATE,
        )
    for name in (n for n in (STATE, ACTION) if n in columns and columns[n].ndim > 2):
        findings.warn(
            f"'{name}' has shape {list(columns[name].shape[1:])}; policies take one row of numbers, so none trains on "
            "this",
            feature=name,
        )
    if STATE in columns and columns[STATE].ndim <= 2:
        units = state_units(dataset)
        still = still_values(statistics.vector_stats(columns[STATE]), units)
        for sentence in still_sentences(still, feature_names(dataset, STATE), units):
            findings.warn(sentence, feature=STATE)
