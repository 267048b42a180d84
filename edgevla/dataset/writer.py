"""`DatasetWriter`: records episodes as a LeRobotDataset v3.0 that is complete on disk after every saved episode.

    add_frame     numbers into lists, frames into one encoder thread per camera (.recording/, memory stays bounded)
    save_episode  videos joined -> data rows -> tasks -> episode row (the commit) -> stats.json -> info.json

Each file is written beside its name, synced and renamed, so a reader never meets half a file. A recording that is
killed, or whose video encoder hangs, loses the open episode; killed inside `save_episode` it leaves rows that no
episode lists, which the reader ignores and `resume` removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.dataset import stats as statistics
from edgevla.dataset.append import DatasetKind, check_joining
from edgevla.dataset.cells import checked_value, feature_infos, png, with_bookkeeping
from edgevla.dataset.encode import EpisodeEncoder, choose_codec, join_videos
from edgevla.dataset.layout import (
    BOOKKEEPING,
    INFO,
    SCRATCH,
    STATED,
    V3_DATA,
    V3_EPISODES,
    V3_VIDEO,
    log,
)
from edgevla.dataset.stated import RepeatCounter, Repeated, Stated, read_stated
from edgevla.dataset.store import (
    FileSeries,
    clean_after_crash,
    data_table,
    episode_table,
    replace_json,
    write_tasks,
)
from edgevla.errors import DatasetError, UsageError


class DatasetWriter:
    """Records into `root`. One episode is open from the first `add_frame` until `save_episode` or `discard_episode`.

    Args:
        features: as in LeRobot: name -> {"dtype", "shape", "names"}; cameras have dtype `video` (or `image`, PNG in
            the table) and shape (H, W, 3). `timestamp` and the other bookkeeping columns are added here. Extra
            columns are welcome, e.g. `camera_age_key(camera)`: {"dtype": "float32", "shape": (1,), "names": None}.
        codec: `auto` (h264, else AV1), `av1`, `h264` or `hevc`.
        resume: append to the dataset in `root` if there is one; without it an existing dataset is refused.
        joint_units: `degrees` or `range100`, kept in meta/edgevla.json, where `facts_of` finds it.
        also_called: other names of the robot, by which the dataset that is resumed may know it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float,
        features: Mapping[str, Mapping[str, Any]],
        robot_type: str | None = None,
        codec: str = "auto",
        resume: bool = False,
        joint_units: str | None = None,
        also_called: Sequence[str] = (),
        chunks_size: int = 1000,
        data_mb: float = 16,
        video_mb: float = 100,
    ) -> None:
        self.root, self.fps = Path(root), fps
        raw = with_bookkeeping(features)
        self.features = feature_infos(raw, self.root / INFO)
        self._check_features()
        videos = [f for f in self.features.values() if f.dtype == "video"]
        self.codec = choose_codec(codec, [f.hwc[:2] for f in videos], fps) if videos else None
        self._info = self._new_info(raw, robot_type, chunks_size, data_mb, video_mb)
        self.n_episodes, self.n_frames = 0, 0
        self._n_takes = 0
        self.tasks: dict[str, int] = {}
        self._stats: statistics.Stats = {}
        self._stated = Stated(joint_units)
        self.root.mkdir(parents=True, exist_ok=True)
        self._unlock = _locked(self, self.root)
        try:
            self._claim(resume, DatasetKind(fps, self.features, robot_type, joint_units, also_called))
        except BaseException:
            self._unlock()  # who is refused keeps nobody out
            raise
        self._data = FileSeries(self.root, V3_DATA, chunks_size, data_mb)
        self._episodes = FileSeries(self.root, V3_EPISODES, chunks_size, data_mb)
        self._videos = {
            f.name: FileSeries(self.root, V3_VIDEO.replace("{video_key}", f.name), chunks_size, video_mb)
            for f in videos
        }
        self._video_frames = dict.fromkeys(self._videos, 0)
        self._scratch = self.root / SCRATCH
        self._scratch.mkdir(exist_ok=True)
        if (
            joint_units is not None or (self.root / STATED).exists()
        ):  # what nothing was recorded with is forgotten
            replace_json(self.root / STATED, self._stated.to_json())
        self._write_info()
        self._clear_episode()

    # -- recording ----------------------------------------------------------------------------------------

    @property
    def n_open_frames(self) -> int:
        """Frames of the open episode."""
        return self._length

    @property
    def repeated(self) -> dict[str, Repeated]:
        """Per camera: pictures of the open episode that are equal to the one before."""
        return {camera: counter.found() for camera, counter in self._repeats.items()}

    def add_frame(self, frame: Mapping[str, Any], task: str) -> None:
        """Adds one row. Cameras: uint8 (H, W, 3) RGB, not changed by the caller afterwards.

        Raises:
            DatasetError: a feature is missing, unknown, of another shape, or not finite; nothing is added then. Or
                encoding failed or hangs; the episode can only be discarded then.
        """
        values = self._checked(frame)
        for name, value in values.items():
            feature = self.features[name]
            if feature.is_camera:
                self._counters.setdefault(name, statistics.ImageCounter()).add(value)
                self._repeats.setdefault(name, RepeatCounter()).see(value)
            if feature.dtype == "video":
                if name not in self._encoders:
                    assert self.codec is not None
                    path = self._take / f"{name}.mp4"
                    path.parent.mkdir(exist_ok=True)
                    self._encoders[name] = EpisodeEncoder(path, self.codec, feature.hwc[:2], self.fps)
                self._encoders[name].add(value)
            else:
                self._rows.setdefault(name, []).append(png(value) if feature.dtype == "image" else value)
        self._task_names.append(task)
        self._length += 1

    def save_episode(self, is_cut_off: bool = False) -> int:
        """Completes the open episode on disk and returns its number.

        is_cut_off: noted with it, for one that nobody meant to end here.

        Raises:
            UsageError: no frames. DatasetError: encoding or writing failed, or the encoder hangs; the dataset is as
                it was before, and the episode can only be discarded.
        """
        if not self._length:
            raise UsageError("there is no open episode to save: add frames first")
        for encoder in self._encoders.values():
            encoder.finish()
        row: dict[str, Any] = {
            "episode_index": self.n_episodes,
            "tasks": list(dict.fromkeys(self._task_names)),
            "length": self._length,
        }
        spans = {camera: self._append_video(camera) for camera in self._videos}
        tasks = dict(self.tasks)
        for name in row["tasks"]:
            tasks.setdefault(name, len(tasks))
        columns = self._columns(tasks)
        chunk, file = self._data.append(data_table(columns, self.features))
        row.update({"data/chunk_index": chunk, "data/file_index": file})
        row.update({"dataset_from_index": self.n_frames, "dataset_to_index": self.n_frames + self._length})
        for span in spans.values():
            row.update(span)
        stats = self._episode_stats(columns)
        if tasks != self.tasks:
            write_tasks(self.root, tasks)
        self._commit(row, stats, tasks, is_cut_off)
        return self.n_episodes - 1

    def discard_episode(self) -> None:
        """Forgets the open episode."""
        for encoder in self._encoders.values():
            encoder.abort()
        self._clear_episode()

    def close(self) -> None:
        """Discards an open episode (said in the log) and removes the scratch folder."""
        if self._length:
            log.warning("the open episode of %d frames was not saved and is discarded", self._length)
        self.discard_episode()
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._unlock()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one episode --------------------------------------------------------------------------------------

    def _clear_episode(self) -> None:
        self._n_takes += 1
        # A folder for each: an encoder that hung and was given up may wake and write its file after all.
        self._take = self._scratch / f"take-{self._n_takes}"
        self._length = 0
        self._rows: dict[str, list[Any]] = {}
        self._task_names: list[str] = []
        self._encoders: dict[str, EpisodeEncoder] = {}
        self._counters: dict[str, statistics.ImageCounter] = {}
        self._repeats: dict[str, RepeatCounter] = {}

    def _checked(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        wanted = [n for n in self.features if n not in BOOKKEEPING]
        unknown, missing = sorted(set(frame) - set(wanted)), [n for n in wanted if n not in frame]
        if unknown or missing:
            what = f"has the unknown feature '{unknown[0]}'" if unknown else f"lacks feature '{missing[0]}'"
            raise DatasetError(f"frame {self._length} {what}; expected: {', '.join(wanted)}")
        return {name: checked_value(self.features[name], frame[name], self._length) for name in wanted}

    def _columns(self, tasks: Mapping[str, int]) -> dict[str, Any]:
        n = self._length
        made: dict[str, Any] = {
            "timestamp": (np.arange(n) / self.fps).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, self.n_episodes),
            "index": np.arange(self.n_frames, self.n_frames + n),
            "task_index": np.array([tasks[t] for t in self._task_names], np.int64),
        }
        columns: dict[str, Any] = {}
        for name, feature in self.features.items():
            if feature.dtype == "video":
                continue
            if name in made:
                columns[name] = made[name]
            else:
                rows = self._rows[name]
                columns[name] = np.stack(rows) if feature.is_numeric else rows
        return columns

    def _episode_stats(self, columns: Mapping[str, Any]) -> statistics.Stats:
        stats = {
            name: statistics.vector_stats(columns[name])
            for name, feature in self.features.items()
            if feature.is_numeric
        }
        stats.update({camera: counter.stats() for camera, counter in self._counters.items()})
        return stats

    def _append_video(self, camera: str) -> dict[str, Any]:
        """Joins the episode's video to the camera's current file, or begins the next; the episode row's columns."""
        series, new = self._videos[camera], self._encoders[camera]
        current = series.current_for(new.path.stat().st_size)
        if current is None:
            self._video_frames[camera] = 0
        start = self._video_frames[camera]
        target = current or series.next_path()
        scratch = target.with_name(target.name + ".tmp")
        scratch.parent.mkdir(parents=True, exist_ok=True)
        total = join_videos([p for p in (current, new.path) if p is not None], scratch, self.fps)
        if total < start + self._length:
            raise DatasetError(
                f"{scratch} holds {total} frames, expected {start + self._length}", feature=camera
            )
        # A save that failed later may have left frames behind; the episode's are the last ones.
        start = total - self._length
        chunk, file = series.commit(scratch, target)
        self._video_frames[camera] = total
        new.path.unlink(missing_ok=True)
        return {
            f"videos/{camera}/chunk_index": chunk,
            f"videos/{camera}/file_index": file,
            f"videos/{camera}/from_timestamp": start / self.fps,
            f"videos/{camera}/to_timestamp": (start + self._length) / self.fps,
        }

    def _commit(
        self, row: dict[str, Any], stats: statistics.Stats, tasks: dict[str, int], is_cut_off: bool
    ) -> None:
        self._episodes.append(episode_table(row, stats, self.features), self._episodes_place)
        self._stats = statistics.merge([s for s in (self._stats, stats) if s])
        self.tasks = tasks
        self.n_episodes += 1
        self.n_frames += self._length
        if self._repeats or is_cut_off:
            self._stated = self._stated.with_episode(self.n_episodes - 1, self.repeated, is_cut_off)
            replace_json(self.root / STATED, self._stated.to_json())
        replace_json(self.root / "meta/stats.json", statistics.to_json(self._stats))
        self._write_info()
        self._clear_episode()

    @staticmethod
    def _episodes_place(table: Any, chunk: int, file: int) -> Any:
        """The episode table notes in which of its own files a row lives."""
        import pyarrow as pa

        for name, value in (("chunk_index", chunk), ("file_index", file)):
            table = table.append_column(f"meta/episodes/{name}", pa.array([value], pa.int64()))
        return table

    # -- the dataset --------------------------------------------------------------------------------------

    def _check_features(self) -> None:
        for name, feature in self.features.items():
            if "/" in name:
                raise DatasetError(f"feature name '{name}' may not contain '/'", feature=name)
            if feature.dtype in ("image", "video") and feature.shape[2] != 3:
                raise DatasetError(
                    f"camera '{name}' has shape {list(feature.shape)}; expected (height, width, 3)",
                    feature=name,
                )
        if len(self.features) == len(BOOKKEEPING):
            raise DatasetError("a dataset needs at least one feature beside the bookkeeping ones")

    def _new_info(
        self, raw: dict[str, Any], robot_type: str | None, chunks_size: int, data_mb: float, video_mb: float
    ) -> dict[str, Any]:
        for name, feature in self.features.items():
            if feature.dtype == "video" and self.codec is not None:
                height, width, channels = feature.hwc
                raw[name]["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": self.codec.name,
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": int(self.fps),
                    "video.channels": channels,
                    "has_audio": False,
                }
        return {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": chunks_size,
            "data_files_size_in_mb": data_mb,
            "video_files_size_in_mb": video_mb,
            "fps": int(self.fps) if float(self.fps).is_integer() else self.fps,
            "splits": {"train": "0:0"},
            "data_path": V3_DATA,
            "video_path": V3_VIDEO if self.codec is not None else None,
            "features": raw,
        }

    def _write_info(self) -> None:
        self._info.update(
            total_episodes=self.n_episodes,
            total_frames=self.n_frames,
            total_tasks=len(self.tasks),
            splits={"train": f"0:{self.n_episodes}"},
        )
        replace_json(self.root / INFO, self._info)

    def _claim(self, resume: bool, kind: DatasetKind) -> None:
        """
        Raises:
            DatasetError: what is in `root` is no dataset, or one that episodes of this kind must not join.
        """
        if (self.root / INFO).exists():
            if not resume:
                raise DatasetError(
                    f"{self.root} already holds a dataset; record elsewhere, or resume it", file=INFO
                )
            check_joining(self.root, kind)
            self._resume()
        elif any(self.root.iterdir()):
            raise DatasetError(f"{self.root} is not empty and not a dataset; record into a new folder")

    def _resume(self) -> None:
        """Takes over what is in `root`, without the leftovers of a killed recording."""
        found = clean_after_crash(self.root)
        if not found.n_episodes:
            return
        self._stated = read_stated(self.root)
        self._info = {**found.info.raw}
        self.n_episodes, self.n_frames = found.n_episodes, found.n_frames
        self.tasks, self._stats = found.tasks, found.stats


def _locked(writer: DatasetWriter, root: Path) -> Callable[[], object]:
    """Keeps a second recording out of `root`, as long as this one lives; what is returned ends that.

    Raises:
        DatasetError: another one records there; it would lose its open episode.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(folder)
        if isinstance(error, BlockingIOError):
            raise DatasetError(
                f"another recording into {root} is running, or an edit of it; end it, or record elsewhere"
            ) from None
        return lambda: None  # some network file systems know no locks
    return weakref.finalize(writer, os.close, folder)
