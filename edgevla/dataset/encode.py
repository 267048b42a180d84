"""Frames into mp4 while they arrive, and mp4 files joined without decoding (PyAV).

An episode is encoded alone, so it begins with a keyframe, and is then appended to the camera's current file by
copying packets. No B-frames: presentation order is decoding order, frame k of a file is shown at exactly k / fps.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from edgevla.errors import DatasetError

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings for every episode otherwise

TICKS = 512
"""Time base units per frame, as LeRobot's files have."""
QUEUE_FRAMES = 64
POLL_S = 0.5
STALL_S = 30.0
"""An encoder that has neither taken a frame nor finished for so long is given up: SVT-AV1 4.1 can wait for itself
for ever. The slowest single act of a working one is to empty itself, some twenty frames."""


@dataclass(frozen=True)
class Codec:
    """An encoder and its settings: keyframe every second frame (random access), as LeRobot records."""

    name: str
    encoder: str
    options: dict[str, str]


CODECS = {
    "av1": Codec("av1", "libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
    "h264": Codec("h264", "libx264", {"g": "2", "crf": "23", "preset": "veryfast", "bf": "0"}),
    "hevc": Codec(
        "hevc",
        "libx265",
        {"g": "2", "crf": "28", "preset": "veryfast", "x265-params": "bframes=0:open-gop=0:log-level=none"},
    ),
}


def rate_of(fps: float) -> Fraction:
    """The exact rational behind a frame rate: 30 -> 30, 29.97 -> 2997/100."""
    return Fraction(fps).limit_denominator(1001)


def choose_codec(wanted: str, sizes: Sequence[tuple[int, int]], fps: float) -> Codec:
    """The first encoder that this PyAV has and that takes these (H, W) sizes; `auto` means h264, then AV1.

    Not AV1 first, as LeRobot has it: SVT-AV1 takes dozens of threads, and has hung while recording live.

    Raises:
        DatasetError: none of them works, or a size that video cannot have.
    """
    for height, width in sizes:
        if height % 2 or width % 2:
            raise DatasetError(
                f"a camera of {width}x{height} pixels cannot be recorded as video: both must be even"
            )
    names = ("h264", "av1") if wanted == "auto" else (wanted,)
    reasons = []
    for name in names:
        codec = CODECS.get(name)
        if codec is None:
            raise DatasetError(f"video codec '{name}' is unknown; known: auto, {', '.join(CODECS)}")
        try:
            for height, width in sizes:
                _probe(codec, height, width, fps)
            return codec
        except (av.FFmpegError, ValueError, OSError) as error:
            reasons.append(f"{codec.encoder}: {error}")
    raise DatasetError(f"no video encoder works here ({'; '.join(reasons)}). Reinstall PyAV: pip install av")


def _probe(codec: Codec, height: int, width: int, fps: float) -> None:
    context: Any = av.CodecContext.create(codec.encoder, "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base = rate_of(fps), 1 / rate_of(fps)
    context.options = codec.options
    with priorities_kept():
        context.open()


@contextlib.contextmanager
def priorities_kept() -> Iterator[None]:
    """Gives back what SVT-AV1 takes where root runs it: real-time priority 99 for its threads and its caller, above the
    control loop's, which would then come after the video.
    """
    before = _schedules()
    try:
        yield
    finally:
        for thread, (policy, _) in _schedules().items():
            wanted, priority = before.get(thread, (os.SCHED_OTHER, 0))
            if policy != wanted:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, wanted, os.sched_param(priority))


def _schedules() -> dict[int, tuple[int, int]]:
    """Scheduling policy and priority of each thread of this process; empty where the kernel is not Linux."""
    found = {}
    for path in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            thread = int(path.name)
            found[thread] = os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    return found


class EpisodeEncoder:
    """Encodes one camera's frames of one episode in a thread of its own, into a file of its own.

    `add` waits while `QUEUE_FRAMES` frames are pending (memory stays bounded); `waits` counts that. Nothing waits for
    an encoder that hangs: after `STALL_S` without progress it is given up, and its thread left to itself.
    """

    def __init__(self, path: Path, codec: Codec, size: tuple[int, int], fps: float) -> None:
        self.path, self.codec, self.size, self.fps = path, codec, size, fps
        self.n_frames = 0
        self.waits = 0
        self._error: str | None = None
        self._is_aborted = self._is_stuck = False
        self._n_moves = 0
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(QUEUE_FRAMES)
        self._thread = threading.Thread(target=self._run, name=f"encode {path.stem}", daemon=True)
        self._thread.start()

    def add(self, frame: np.ndarray) -> None:
        """frame: uint8 (H, W, 3) RGB; it is not copied, so it must not change afterwards.

        Raises:
            DatasetError: encoding failed, or hangs.
        """
        self._check()
        self.waits += self._queue.full()
        self._put(frame)
        self.n_frames += 1

    def finish(self) -> None:
        """Waits until the file is complete.

        Raises:
            DatasetError: encoding failed, or hangs.
        """
        self._put(None)
        self._wait(self._has_ended)
        self._check()

    def abort(self) -> None:
        """Stops and deletes the file."""
        self._is_aborted = True
        if not self._is_stuck:
            with contextlib.suppress(DatasetError):
                self._put(None)
                self._wait(self._has_ended)
        self.path.unlink(missing_ok=True)

    def _put(self, frame: np.ndarray | None) -> None:
        def has_room() -> bool:
            try:
                self._queue.put(frame, timeout=POLL_S)
            except queue.Full:
                return False
            return True

        self._wait(has_room)

    def _has_ended(self) -> bool:
        self._thread.join(POLL_S)
        return not self._thread.is_alive()

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Asks `is_done`, which takes `POLL_S` to say no, until it says yes or the thread has stood still too long."""
        n_moves, quiet_s = self._n_moves, 0.0
        while not is_done():
            self._check()
            quiet_s = quiet_s + POLL_S if self._n_moves == n_moves else 0.0
            n_moves = self._n_moves
            if quiet_s >= STALL_S:
                self._give_up()

    def _give_up(self) -> None:
        """A thread cannot be ended from outside; should this one ever wake, it finds that there is nothing to do."""
        self._is_stuck = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put_nowait(None)
        cure = " with codec h264" if self.codec.name != "h264" else ""
        self._error = (
            f"the video encoder {self.codec.encoder} of {self.path.stem} has stood still for {STALL_S:g} s and is "
            f"given up: the open episode is lost, saved ones are whole. Record it again{cure}"
        )
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise DatasetError(self._error, file=str(self.path))

    def _run(self) -> None:
        try:
            self._encode()
        except Exception as error:  # the thread's edge: handed to the recording thread by `_check`
            self._error = f"encoding {self.path.name} failed: {error}"
            while self._queue.get() is not None:
                pass

    def _encode(self) -> None:
        rate = rate_of(self.fps)
        with av.open(str(self.path), "w", format="mp4") as container:
            stream: Any = container.add_stream(
                self.codec.encoder, rate=rate, options=dict(self.codec.options)
            )
            stream.height, stream.width = self.size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = 1 / rate
            with priorities_kept():
                stream.codec_context.open()
            number = 0
            while (pixels := self._queue.get()) is not None:
                self._n_moves += 1
                if self._is_aborted or self._is_stuck:
                    continue
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, 1 / rate
                number += 1
                container.mux(stream.encode(frame))
            if not self._is_aborted:  # emptying the encoder takes as long as some twenty frames
                container.mux(stream.encode(None))


def join_videos(sources: Sequence[Path], target: Path, fps: float) -> int:
    """Copies the packets of files made by `EpisodeEncoder` one after the other; returns the number of frames.

    The result has its index in front (faststart) and frame k at exactly k / fps. `target` must not be a source.

    Raises:
        DatasetError: a source cannot be read.
    """
    rate = rate_of(fps)
    base = 1 / (rate * TICKS)
    count = 0
    try:
        with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as output:
            out: Any = None
            for source in sources:
                with av.open(str(source)) as container:
                    stream = container.streams.video[0]
                    if out is None:
                        out = output.add_stream_from_template(stream, opaque=True)
                        out.time_base = base
                    for packet in container.demux(stream):
                        if packet.size == 0:
                            continue
                        packet.stream, packet.time_base = out, base
                        packet.pts = packet.dts = count * TICKS
                        packet.duration = TICKS
                        output.mux(packet)
                        count += 1
    except (av.FFmpegError, OSError) as error:
        raise DatasetError(
            f"{target} could not be written: {error.strerror or error}", file=str(target)
        ) from error
    return count
