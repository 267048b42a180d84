"""Frames of a video file by number, exactly: PyAV decoders kept open, presentation times indexed once per file.

    file -> demux once: pts, dts, keyframes (no decoding)
    row  -> time -> nearest pts -> frame number -> keyframe before it -> decode up to it

Frame numbers count in presentation order. Seeking traps this handles: the mp4 seek table holds *decoding* times,
so we seek by the keyframe's dts; and frames shown before a keyframe but stored after it (open GOP, HEVC) need
the group before, so where a file has such frames we start one keyframe earlier.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from edgevla.errors import DatasetError

MAX_OPEN = 48
"""Decoders kept open per process: 3-5 MB and one file handle each."""
_ORPHANS: list[object] = []
"""Decoders of the process that forked this one; see `VideoPool._after_fork`."""
READ_ON = 4
"""Frames further on that are cheaper to decode through than to seek to."""


@dataclass(frozen=True)
class VideoIndex:
    """One pass over a file's packets. All arrays are in presentation order.

    seconds: float64 (n,) presentation times. start: for each frame, the number of the frame to seek to.
    seek_dts: for each frame, what to pass to seek. declared: frames that the file's header claims; 0: none said.
    rate: frames per second, 0 when the file does not tell.
    """

    pts: np.ndarray
    seconds: np.ndarray
    start: np.ndarray
    seek_dts: np.ndarray
    declared: int
    width: int
    height: int
    codec: str
    pix_fmt: str
    rate: float

    @property
    def n_frames(self) -> int:
        """Frames in the file, whatever its header claims."""
        return len(self.pts)

    @property
    def duration(self) -> float:
        """Seconds until the end of the last frame, from the start of the file's clock."""
        if not self.n_frames:
            return 0.0
        return float(self.seconds[-1]) + 1 / self.rate if self.rate else float(self.seconds[-1])

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """Number of the frame whose presentation time is nearest, int64; float64 throughout."""
        if not self.n_frames:
            return np.zeros(len(seconds), np.int64)
        right = np.clip(np.searchsorted(self.seconds, seconds), 1, max(1, self.n_frames - 1))
        right = np.minimum(right, self.n_frames - 1)
        left = np.maximum(right - 1, 0)
        is_left = np.abs(seconds - self.seconds[left]) <= np.abs(seconds - self.seconds[right])
        return np.where(is_left, left, right)


def _open(path: Path) -> Any:
    try:
        container = av.open(str(path))
    except FileNotFoundError:
        raise DatasetError(f"video file {path} is missing", file=str(path)) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DatasetError(
            f"video file {path} cannot be opened: {_words(error)}; it is damaged or was cut short",
            file=str(path),
        ) from error
    if not container.streams.video:
        container.close()
        raise DatasetError(f"video file {path} holds no video stream", file=str(path))
    return container


def _words(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split(";")[0].strip() or type(error).__name__


def index_video(path: Path) -> VideoIndex:
    """Demuxes the whole file once (no decoding; a few ms per thousand frames).

    Raises:
        DatasetError: missing, not a video, or cut so short that not even its index is there.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        packets = list(_packets(container, stream))
        pts = np.array([p[0] for p in packets], np.int64)
        dts = np.array([p[1] for p in packets], np.int64)
        is_key = np.array([p[2] for p in packets], bool)
        shown = np.array([p[3] for p in packets], bool)
        if len(is_key):
            is_key[0] = True  # decoding can only begin at the first packet, whatever its flag says
        codec = stream.codec_context
        return VideoIndex(
            **_order(pts, dts, is_key, shown, float(stream.time_base)),
            declared=int(stream.frames),
            width=codec.width,
            height=codec.height,
            codec={"libdav1d": "av1", "libaom-av1": "av1"}.get(codec.name, codec.name),
            pix_fmt=codec.pix_fmt or "",
            rate=float(stream.average_rate or stream.guessed_rate or 0),
        )


def _packets(container: Any, stream: Any) -> Iterator[tuple[int, int, bool, bool]]:
    """(pts, dts, is keyframe, is shown) in decoding order; stops where a truncated file stops."""
    size = Path(container.name).stat().st_size
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or (packet.pts is None and packet.dts is None):
                continue
            if packet.is_corrupt or (packet.pos is not None and packet.pos + packet.size > size):
                return
            pts = packet.pts if packet.pts is not None else packet.dts
            dts = packet.dts if packet.dts is not None else packet.pts
            yield pts, dts, packet.is_keyframe, not packet.is_discard
    except (av.FFmpegError, OSError):
        return


def _order(
    pts: np.ndarray, dts: np.ndarray, is_key: np.ndarray, shown: np.ndarray, time_base: float
) -> dict[str, np.ndarray]:
    """Presentation order, and for each frame the keyframe that decoding must begin at."""
    keys = np.flatnonzero(is_key)  # in decoding order
    group = np.searchsorted(keys, np.arange(len(pts)), side="right") - 1
    is_leading = pts < pts[keys[group]] if len(keys) else np.zeros(len(pts), bool)
    # A leading frame depends on the group before its own; with such frames about, a group may reach back one more.
    back = np.where(is_leading, 1, 0) + (1 if is_leading[is_key.cumsum() > 1].any() else 0)
    start_packet = keys[np.maximum(group - back, 0)] if len(keys) else np.zeros(0, np.int64)
    order = np.argsort(pts, kind="stable")
    order = order[shown[order]]
    start_pts = pts[start_packet][order]
    return {
        "pts": pts[order],
        "seconds": pts[order] * time_base,
        "start": np.searchsorted(pts[order], start_pts),
        "seek_dts": dts[start_packet][order],
    }


class VideoDecoder:
    """One open file. Not for several threads at once: `VideoPool` lends it to one at a time."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self.path, self.index = path, index
        self._container = _open(path)
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # several decoders run side by side; one thread each
        self._reformatter = VideoReformatter()
        self._frames: Iterator[Any] | None = None
        self._position = -1
        """Number of the frame decoded last; -1: nowhere."""

    def close(self) -> None:
        self._frames = None
        self._container.close()

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(number, uint8 (H, W, 3) RGB) for strictly rising frame numbers.

        Raises:
            DatasetError: a frame is not there or cannot be decoded.
        """
        for number in numbers:
            try:
                frame = self._seek(number)
            except (av.FFmpegError, OSError) as error:
                self._frames = None
                raise DatasetError(
                    f"frame {number} of {self.path} cannot be decoded: {_words(error)}; the file is damaged",
                    file=str(self.path),
                    frame=number,
                ) from error
            yield number, self._rgb(frame)

    def _seek(self, number: int) -> Any:
        target = int(self.index.pts[number])
        start = int(self.index.start[number])
        ahead = number - self._position
        if self._frames is None or ahead <= 0 or (start > self._position + 1 and ahead > READ_ON):
            self._restart(int(self.index.seek_dts[number]))
        frame = self._forward(target)
        if frame is None:  # seek landed past the frame, or decoding ended before it: read from the beginning
            self._restart(None)
            frame = self._forward(target)
        if frame is None:
            raise DatasetError(
                f"frame {number} of {self.path} is not there when decoding; the file is damaged",
                file=str(self.path),
                frame=number,
            )
        self._position = number
        return frame

    def _restart(self, dts: int | None) -> None:
        if dts is None:
            self._container.close()
            self._container = _open(self.path)
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1
        else:
            self._container.seek(dts, stream=self._stream, backward=True, any_frame=False)
        self._frames = self._container.decode(self._stream)

    def _forward(self, target: int) -> Any:
        """Decodes until the frame with this pts; None if the first frame is already beyond it, or none came."""
        assert self._frames is not None
        for frame in self._frames:
            pts = frame.pts if frame.pts is not None else frame.dts
            if pts == target:
                return frame
            if pts is not None and pts > target:
                return None
        return None

    def _rgb(self, frame: Any) -> np.ndarray:
        return self._reformatter.reformat(frame, format="rgb24").to_ndarray()


class VideoPool:
    """Open decoders of one process: bounded, shared by threads, forgotten in a forked child."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self.max_open = max_open
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["max_open"])  # type: ignore[misc]

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: OrderedDict[Path, list[VideoDecoder]] = OrderedDict()
        self._indices: dict[Path, VideoIndex] = {}

    def index(self, path: Path) -> VideoIndex:
        """The presentation times of a file, read once."""
        self._after_fork()
        found = self._indices.get(path)
        if found is None:
            found = self._indices[path] = index_video(path)
        return found

    def read(self, path: Path, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number, RGB frame) for each distinct number, rising."""
        decoder = self._take(path)
        try:
            yield from decoder.read(np.unique(numbers).tolist())
        finally:
            self._give_back(path, decoder)

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            # A decoder opened before a fork must not be used after it; nor freed, for that waits for its threads,
            # which the child does not have.
            _ORPHANS.append(self._idle)
            self._reset()

    def _take(self, path: Path) -> VideoDecoder:
        index = self.index(path)
        with self._lock:
            idle = self._idle.get(path)
            if idle:
                return idle.pop()
        return VideoDecoder(path, index)

    def _give_back(self, path: Path, decoder: VideoDecoder) -> None:
        closing: list[VideoDecoder] = []
        with self._lock:
            self._idle.setdefault(path, []).append(decoder)
            self._idle.move_to_end(path)
            while sum(map(len, self._idle.values())) > self.max_open:
                _, oldest = self._idle.popitem(last=False)
                closing += oldest
        for old in closing:
            old.close()

    def close(self) -> None:
        for decoders in self._idle.values():
            for decoder in decoders:
                decoder.close()
        self._reset()
