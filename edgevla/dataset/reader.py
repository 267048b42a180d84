"""`open_dataset` and `Dataset`: numeric columns as arrays, frames by row, windows with padding masks.

Everything numeric is read once into contiguous arrays, so a window is a slice. Frames stay uint8 (H, W, 3) RGB
and are decoded when asked for; rows asked for together are grouped by file and decoded in order, each once.
Safe for several threads, and after a fork. A local folder never touches the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.dataset import stats as statistics
from edgevla.dataset.hub import local_folder
from edgevla.dataset.identity import identity
from edgevla.dataset.images import ImageTable
from edgevla.dataset.layout import BOOKKEEPING, Episode, Findings, Info
from edgevla.dataset.open import Opened, listed_episodes, read_all
from edgevla.dataset.reading import DatasetReading
from edgevla.dataset.stats import Stats
from edgevla.dataset.video import VideoIndex, VideoPool
from edgevla.errors import DatasetError, UsageError

DEFAULT_TOLERANCE_S = 1e-4
AS_IT_IS = DatasetReading()


def open_dataset(
    path_or_repo: str | Path,
    episodes: Sequence[int] | None = None,
    *,
    root: str | Path | None = None,
    tolerance_s: float = DEFAULT_TOLERANCE_S,
    reading: DatasetReading = AS_IT_IS,
    remembered: DatasetReading = AS_IT_IS,
) -> Dataset:
    """Opens a LeRobot dataset from a folder, or from the hub by its id (`owner/name`).

    episodes: only these, in dataset order whatever the order given. root: where a hub dataset lies or is put.
    tolerance_s: how far a frame's presentation time may be from its row's timestamp.
    reading: features under other names, what is left out, which text is the task. remembered: the same as a checkpoint
    knows it from its training data (`DatasetFacts.reading`); what of it does not fit this dataset is left aside.

    Raises:
        UsageError: a reading that the dataset does not allow.
        DatasetError: what cannot be read, in one sentence naming the file. What can be repaired in memory (wrong
            totals, missing statistics) is, with a warning; see `Dataset.findings`.
    """
    folder, repo_id = local_folder(path_or_repo, root)
    findings = Findings()
    opened = read_all(folder, findings, episodes, reading, remembered)
    if not opened.episodes:
        raise DatasetError(f"{folder} holds no complete episode; record some first", file="meta/episodes")
    return Dataset(folder, opened, findings, repo_id=repo_id, episodes=episodes, tolerance_s=tolerance_s)


def episode_numbers(path_or_repo: str | Path, root: str | Path | None = None) -> list[int]:
    """The numbers of all episodes that a dataset lists, rising; nothing but its metadata is read.

    Raises:
        DatasetError: that cannot be read.
    """
    return listed_episodes(local_folder(path_or_repo, root)[0])


class Dataset:
    """An opened dataset, whole or some of its episodes. Rows count over what was opened.

    columns: feature -> contiguous array (N, ...), (N,) for scalars, in the declared dtype.
    texts: string features as object arrays. `index` and `episode_index` keep the numbers of the whole dataset.
    """

    def __init__(
        self,
        root: Path,
        opened: Opened,
        findings: Findings,
        *,
        repo_id: str | None = None,
        episodes: Sequence[int] | None = None,
        tolerance_s: float = DEFAULT_TOLERANCE_S,
    ) -> None:
        self.root, self.repo_id, self.tolerance_s = root, repo_id, tolerance_s
        self.info: Info = opened.info
        self.findings = findings.all
        self._opened, self._findings = opened, findings
        self.task_table: dict[int, str] = opened.tasks
        self.tasks: list[str] = list(dict.fromkeys(opened.tasks.values()))
        self.cameras: list[str] = self.info.cameras
        self.reading = opened.reading
        self.is_subset = episodes is not None
        self.episodes, kept = _select(opened, episodes, root)
        frames = opened.frames
        if kept is None:
            self.columns, self.texts = frames.columns, frames.texts
        else:
            self.columns = {k: np.ascontiguousarray(v[kept]) for k, v in frames.columns.items()}
            self.texts = {k: v[kept] for k, v in frames.texts.items()}
        self._table_row = kept if kept is not None else np.arange(frames.n_rows)
        self._episode_ends = np.array([e.to_index for e in self.episodes], np.int64)
        self._offset_errors: dict[tuple[str, str], float] = {}
        self._video = VideoPool()
        self._images = ImageTable(root, frames.files)

    # -- what is in it ------------------------------------------------------------------------------------

    @property
    def all_columns(self) -> dict[str, np.ndarray]:
        """Like `columns`, with the rows of episodes that were read, but not chosen."""
        return self._opened.frames.columns

    @property
    def n_frames(self) -> int:
        """Rows that were opened."""
        return len(self.columns["index"])

    def __len__(self) -> int:
        return self.n_frames

    @property
    def n_episodes(self) -> int:
        """Episodes that were opened."""
        return len(self.episodes)

    @property
    def fps(self) -> float:
        """Rows per second."""
        return self.info.fps

    def episode_of(self, row: int) -> Episode:
        """The episode that a row lies in."""
        if not 0 <= row < self.n_frames:
            raise UsageError(f"row {row} is outside the dataset's {self.n_frames} frames")
        return self.episodes[int(np.searchsorted(self._episode_ends, row, side="right"))]

    def episode_bounds(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row and end row (exclusive) of each row's episode, int64 like rows."""
        which = np.searchsorted(self._episode_ends, rows, side="right")
        lengths = np.array([e.length for e in self.episodes], np.int64)
        return self._episode_ends[which] - lengths[which], self._episode_ends[which]

    def task(self, row: int) -> str:
        """The instruction at a row, by the value of its `task_index`."""
        number = int(self.columns["task_index"][row])
        if number not in self.task_table:
            raise DatasetError(
                f"episode {self.episode_of(row).index} has task_index {number}, which the task table of {self.root} "
                "does not list",
                feature="task_index",
                episode=self.episode_of(row).index,
            )
        return self.task_table[number]

    def file_of(self, row: int) -> str:
        """The parquet file (relative to root) that holds a row."""
        starts = self._opened.frames.row_starts
        table_row = self._opened.order[self._table_row[row]]
        return self._opened.frames.files[int(np.searchsorted(starts, table_row, side="right")) - 1]

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that training may read (see `identity`)."""
        return identity(self, self._opened.frames.files, self._opened.stats)

    # -- statistics ---------------------------------------------------------------------------------------

    @cached_property
    def stats(self) -> Stats:
        """Statistics as stored, repaired where missing or impossible (said in `findings`).

        Stored quantiles may be merged ones; `true_stats` has them from all rows.
        """
        stats = {name: dict(by) for name, by in self._opened.stats.items()}
        for name, values in self.columns.items():
            stored = stats.get(name, {})
            lacking = [s for s in (*statistics.BASIC, *statistics.QUANTILES) if s not in stored]
            if lacking and len(values):
                stats[name] = {**statistics.vector_stats(values), **stored}
                if name not in BOOKKEEPING:
                    self._findings.warn(
                        f"statistics of '{name}' lack {', '.join(lacking)}: computed from the rows",
                        feature=name,
                    )
        for camera in self.cameras:
            stored = stats.get(camera, {})
            is_bad = statistics.is_bad_image_std(stored)
            # v2.0 has no counts; nothing normalises by one.
            lacks = [s for s in statistics.BASIC if s not in stored and s != "count"]
            if self.n_frames and (is_bad or lacks):
                why = (
                    "have an impossible std (a defect of LeRobot 0.4.0 to 0.5.1)" if is_bad else "are missing"
                )
                self._findings.warn(
                    f"statistics of '{camera}' {why}: computed from sampled frames", feature=camera
                )
                stats[camera] = self._image_stats(camera)
        return stats

    @cached_property
    def true_stats(self) -> Stats:
        """`stats`, with those of numeric features computed from all opened rows: true quantiles."""
        computed = {
            name: statistics.vector_stats(values) for name, values in self.columns.items() if len(values)
        }
        return {**self.stats, **computed}

    def _image_stats(self, camera: str, at_most: int = 300) -> dict[str, np.ndarray]:
        rows = statistics.sample_rows(self.n_frames)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(at_most, len(rows))).astype(int))]
        counter = statistics.ImageCounter()
        for block in np.array_split(rows, max(1, len(rows) // 16)):
            for _, frame in self._decode(camera, block):
                counter.add(frame)
        return counter.stats()

    # -- frames -------------------------------------------------------------------------------------------

    def frame(self, camera: str, row: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB."""
        return self.frames(camera, [row])[0]

    def frames(self, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3) RGB of these rows, in their order; repeated rows are decoded once.

        Raises:
            DatasetError: a frame that is missing, damaged, or not at its row's time.
        """
        rows = np.asarray(rows, np.int64)
        distinct, back = np.unique(rows, return_inverse=True)
        if len(distinct):
            self.episode_of(int(distinct[0]))
            self.episode_of(int(distinct[-1]))
        out: np.ndarray | None = None
        for position, frame in self._decode(camera, distinct):
            if out is None:
                out = np.empty((len(distinct), *frame.shape), np.uint8)
            if frame.shape != out.shape[1:]:
                raise DatasetError(
                    f"camera '{camera}' changes its size from {out.shape[1:3]} to {frame.shape[:2]} at row "
                    f"{distinct[position]}",
                    feature=camera,
                )
            out[position] = frame
        if out is None:
            return np.empty((0, *self.info.features[camera].hwc), np.uint8)
        return out if len(distinct) == len(rows) and np.array_equal(distinct, rows) else out[back]

    def _decode(self, camera: str, rows: np.ndarray) -> Any:
        """Yields (position in rows, frame) in any order; rows are distinct and rising."""
        feature = self.info.features.get(camera)
        if feature is None or not feature.is_camera:
            raise UsageError(f"'{camera}' is not a camera of {self.root}; cameras: {', '.join(self.cameras)}")
        if feature.dtype == "image":
            yield from enumerate(self._images.read(feature.column, self._opened.order[self._table_row[rows]]))
            return
        for file, positions, numbers in self.locate(camera, rows):
            where: dict[int, list[int]] = {}
            for position, number in zip(positions.tolist(), numbers.tolist(), strict=True):
                where.setdefault(number, []).append(position)
            for number, frame in self._video.read(self.root / file, numbers):
                for position in where[number]:
                    yield position, frame

    def locate(self, camera: str, rows: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Where rows' frames are: (file, positions in rows, frame numbers in the file), checked against their times."""
        which = np.searchsorted(self._episode_ends, rows, side="right")
        found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for e in np.unique(which):
            episode, positions = self.episodes[e], np.flatnonzero(which == e)
            span = episode.videos.get(camera)
            if span is None:
                raise DatasetError(
                    f"episode {episode.index} of {self.root} has no video of camera '{camera}'",
                    feature=camera,
                    episode=episode.index,
                )
            start = span.start - self._offset_error(camera, span.file)
            seconds = start + self.columns["timestamp"][rows[positions]].astype(np.float64)
            numbers = self._numbers(camera, episode, span.file, seconds)
            files = found.setdefault(span.file, ([], []))
            files[0].append(positions)
            files[1].append(numbers)
        return [(f, np.concatenate(p), np.concatenate(n)) for f, (p, n) in found.items()]

    @cached_property
    def _reach(self) -> dict[tuple[str, str], tuple[float, float]]:
        """(camera, file) -> first start and last end, s, that the dataset's episodes claim in it."""
        reach: dict[tuple[str, str], tuple[float, float]] = {}
        for episode in self._opened.episodes:
            for camera, span in episode.videos.items():
                start, end = reach.get((camera, span.file), (np.inf, -np.inf))
                own_end = span.start + episode.length / self.info.fps
                reach[camera, span.file] = min(start, span.start), max(end, own_end)
        return reach

    def _offset_error(self, camera: str, file: str) -> float:
        """Seconds by which all offsets into a file are too large; 0 when they fit.

        LeRobot 0.3.4 to 0.4.2 merged datasets with offsets counted over all files instead of per file.
        """
        if (camera, file) not in self._offset_errors:
            (start, end), index = self._reach[camera, file], self.video_index(file)
            half_frame = 0.5 / self.info.fps
            is_shifted = end > index.duration + half_frame and end - start <= index.duration + half_frame
            self._offset_errors[camera, file] = start if is_shifted else 0.0
            if is_shifted:
                self._findings.warn(
                    f"camera '{camera}': offsets into {file} begin at {start:.3f} s and pass its end "
                    f"({index.duration:.3f} s); they were counted over all files and are taken "
                    "from the file's own beginning",
                    file=file,
                    feature=camera,
                )
        return self._offset_errors[camera, file]

    def _numbers(self, camera: str, episode: Episode, file: str, seconds: np.ndarray) -> np.ndarray:
        index = self._video.index(self.root / file)
        numbers = index.nearest(seconds)
        off = np.abs(index.seconds[numbers] - seconds) if index.n_frames else np.full(len(seconds), np.inf)
        # A stored time is float32: its own rounding is allowed on top of the tolerance.
        allowed = np.maximum(self.tolerance_s, 2 * np.spacing(np.abs(seconds).astype(np.float32)))
        late = ~(off <= allowed)  # a time that is NaN has no frame
        if late.any():
            at = int(late.argmax())
            gap = (
                f"the nearest frame is {off[at]:.4f} s away"
                if np.isfinite(off[at])
                else "the file has no frames"
            )
            raise DatasetError(
                f"episode {episode.index}, camera '{camera}': {file} has no frame at {seconds[at]:.4f} s ({gap}; the "
                f"file has {index.n_frames} frames, {index.duration:.3f} s). Frames were dropped or the file cut short.",
                file=file,
                feature=camera,
                episode=episode.index,
            )
        return numbers

    # -- items --------------------------------------------------------------------------------------------

    def window(self, rows: int | np.ndarray, deltas: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a window around each row, clamped to its episode, and which are padding: int64, bool (..., T)."""
        at = np.asarray(rows, np.int64)[..., None]
        first, last = self.episode_bounds(at)
        wanted = at + np.asarray(deltas, np.int64)
        return np.clip(wanted, first, last - 1), (wanted < first) | (wanted >= last)

    def item(
        self,
        row: int,
        delta_indices: Mapping[str, Sequence[int]] | None = None,
        *,
        cameras: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """One sample: every feature at `row`, and windows where `delta_indices` asks for them.

        A windowed feature has a leading axis T, also for T = 1, and a companion `<feature>_is_pad` bool (T,).
        Cameras are uint8 (H, W, 3) or (T, H, W, 3); `cameras` limits which are decoded. `task` is the instruction.
        """
        deltas = dict(delta_indices or {})
        self.episode_of(row)
        for name in deltas:
            if name not in self.columns and name not in self.cameras:
                raise UsageError(
                    f"'{name}' cannot be windowed: it is not a numeric feature or camera of {self.root}"
                )
        item: dict[str, Any] = {
            name: values[row] for name, values in self.columns.items() if name not in deltas
        }
        item.update({name: values[row] for name, values in self.texts.items()})
        for name, wanted in deltas.items():
            rows, is_pad = self.window(row, wanted)
            item[f"{name}_is_pad"] = is_pad
            if name in self.columns:
                item[name] = self.columns[name][rows]
        for camera in self.cameras if cameras is None else cameras:
            rows = self.window(row, deltas[camera])[0] if camera in deltas else np.array([row])
            frames = self.frames(camera, rows)
            item[camera] = frames if camera in deltas else frames[0]
        item["task"] = self.task(row)
        return item

    def close(self) -> None:
        """Closes open video files; they open again when needed."""
        self._video.close()

    # -- video facts --------------------------------------------------------------------------------------

    def camera_size(self, camera: str) -> tuple[int, int]:
        """(H, W) as really stored: from the first video's header, or the first picture."""
        span = self.episodes[0].videos.get(camera) if self.episodes else None
        if span is not None:
            index = self._video.index(self.root / span.file)
            return index.height, index.width
        if self.info.features[camera].dtype == "image" and self.n_frames:
            return self.frame(camera, 0).shape[:2]
        return self.info.features[camera].hwc[:2]

    def video_index(self, file: str) -> VideoIndex:
        """Frame times of one of the dataset's videos. file: relative to `root`."""
        return self._video.index(self.root / file)


def delta_indices(
    seconds: Mapping[str, Sequence[float]], fps: float, tolerance_s: float = 1e-4
) -> dict[str, list[int]]:
    """LeRobot's `delta_timestamps` as frame offsets.

    Raises:
        UsageError: a time that is not a multiple of 1 / fps.
    """
    result = {}
    for name, times in seconds.items():
        off = [t for t in times if abs(t * fps - round(t * fps)) / fps > tolerance_s]
        if off:
            raise UsageError(f"delta times {off} of '{name}' are not multiples of 1/{fps:g} s")
        result[name] = [round(t * fps) for t in times]
    return result


def _select(
    opened: Opened, wanted: Sequence[int] | None, root: Path
) -> tuple[list[Episode], np.ndarray | None]:
    """Chosen episodes with row ranges over what is kept, and the kept rows (None: all)."""
    episodes = opened.episodes
    if wanted is None:
        return episodes, None
    known = {e.index for e in episodes}
    unknown = sorted(set(wanted) - known - opened.empty)
    if unknown:
        raise UsageError(
            f"{root} has no episode {unknown[0]}; it has {len(known)} episodes, 0 to {max(known, default=0)}"
        )
    chosen = [e for e in episodes if e.index in set(wanted)]
    rows = [np.arange(e.from_index, e.to_index) for e in chosen]
    result, start = [], 0
    for e in chosen:
        result.append(Episode(e.index, e.length, start, start + e.length, e.tasks, e.videos))
        start += e.length
    return result, np.concatenate(rows) if rows else np.zeros(0, np.int64)
