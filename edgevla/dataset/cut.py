"""Episodes taken out of an mp4 file by copying packets: nothing is decoded, every kept picture stays what it was.

LeRobot and we encode each episode alone, so it begins with a keyframe. A file in which that is not so, or whose pictures
are stored in another order than they are shown, is not cut: it stays whole, and keeps pictures that nobody refers to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from edgevla.dataset.encode import TICKS, rate_of
from edgevla.dataset.video import VideoIndex
from edgevla.errors import DatasetError

Stretch = tuple[int, int]
"""Pictures of a file: first, and the one after the last."""
OFF_GRID = 0.1
"""Of a picture's duration: a file whose pictures are further from k / fps is not timed anew."""


def stretch_of(index: VideoIndex, start_s: float, length: int) -> Stretch:
    """The pictures of an episode that begins at `start_s` of the file."""
    first = int(index.nearest(np.array([start_s]))[0])
    return first, first + length


def cut_video(source: Path, target: Path, index: VideoIndex, kept: Sequence[Stretch], fps: float) -> bool:
    """Writes the kept stretches one after the other, picture k at exactly k / fps; False: it cannot be cut so.

    kept: rising, not overlapping. index: of `source`.

    Raises:
        DatasetError: `source` cannot be read.
    """
    if not _is_on_grid(index, kept, fps):
        return False
    rate = rate_of(fps)
    base = 1 / (rate * TICKS)
    try:
        with av.open(str(source)) as reading:
            stream = reading.streams.video[0]
            packets = [packet for packet in reading.demux(stream) if packet.size]
            if not _is_cuttable(packets, index, kept):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as writing:
                out: Any = writing.add_stream_from_template(stream, opaque=True)
                out.time_base = base
                numbers = [n for first, end in kept for n in range(first, end)]
                for count, number in enumerate(numbers):
                    packet = packets[number]
                    packet.stream, packet.time_base = out, base
                    packet.pts = packet.dts = count * TICKS
                    packet.duration = TICKS
                    writing.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise DatasetError(f"cutting {source} failed: {error}", file=str(source)) from error
    return True


def _is_on_grid(index: VideoIndex, kept: Sequence[Stretch], fps: float) -> bool:
    for first, end in kept:
        seconds = index.seconds[first:end]
        if len(seconds) < end - first:
            return False
        off = np.abs(seconds - seconds[0] - np.arange(end - first) / fps)
        if (off > OFF_GRID / fps).any():
            return False
    return True


def _is_cuttable(packets: Sequence[Any], index: VideoIndex, kept: Sequence[Stretch]) -> bool:
    """Shown in the order in which they are stored, all of them, and a keyframe wherever a kept stretch begins."""
    if any(packet.pts is None or packet.is_discard or packet.is_corrupt for packet in packets):
        return False
    if not np.array_equal([packet.pts for packet in packets], index.pts):
        return False
    return all(packets[first].is_keyframe for first, _ in kept)
