"""Frame i of a file is frame i: every codec, any group length, B-frames, open groups, odd clocks, threads, forks."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import dataset_kit as kit
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevla.dataset.encode import join_videos
from edgevla.dataset.video import VideoPool, index_video
from edgevla.errors import DatasetError

N = 60
FRAMES = [kit.code_frame(3, i) for i in range(N)]
X265 = "log-level=none:pools=1:"
ENCODINGS = {
    "av1-g2": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}, "mp4"),
    "av1-g30": ("libsvtav1", {"g": "30", "crf": "10", "preset": "12"}, "mp4"),
    "h264-g2": ("libx264", {"g": "2", "bf": "0"}, "mp4"),
    "h264-bframes": ("libx264", {"g": "12", "bf": "3", "preset": "veryfast"}, "mp4"),
    "h264-open-gop": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=2"}, "mp4"),
    "h264-long": ("libx264", {"g": "250", "bf": "2", "preset": "veryfast"}, "mp4"),
    "hevc-g2-open": (
        "libx265",
        {"g": "2", "preset": "ultrafast", "x265-params": X265 + "open-gop=1:bframes=4"},
        "mp4",
    ),
    "hevc-g10-open": (
        "libx265",
        {"g": "10", "preset": "fast", "x265-params": X265 + "keyint=10:min-keyint=10:open-gop=1:bframes=4"},
        "mp4",
    ),
    "hevc-closed": ("libx265", {"g": "8", "preset": "ultrafast", "x265-params": X265 + "open-gop=0"}, "mp4"),
    "mpeg4": ("mpeg4", {"g": "12", "bf": "2", "q:v": "3"}, "mp4"),
    "mjpeg": ("mjpeg", {"q:v": "3"}, "mp4"),
    "h264-mkv": ("libx264", {"g": "12", "bf": "3", "preset": "veryfast"}, "mkv"),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    made = {}
    for name, (encoder, options, suffix) in ENCODINGS.items():
        made[name] = folder / f"{name}.{suffix}"
        kit.encode(made[name], FRAMES, encoder, options)
    return made


def _read(pool: VideoPool, path: Path, numbers: list[int]) -> dict[int, int]:
    """Frame number -> number its picture carries."""
    return {n: kit.read_code(frame)[1] for n, frame in pool.read(path, np.array(numbers))}


@pytest.mark.parametrize("name", ENCODINGS)
def test_each_frame_in_random_order(videos: dict[str, Path], name: str) -> None:
    pool = VideoPool()
    assert pool.index(videos[name]).n_frames == N
    for number in np.random.default_rng(1).permutation(N).tolist():
        assert _read(pool, videos[name], [number]) == {number: number}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_fresh_decoder_reaches_any_frame(videos: dict[str, Path], name: str) -> None:
    for number in (0, 1, 11, 13, 31, N - 2, N - 1):
        assert _read(VideoPool(), videos[name], [number]) == {number: number}


@pytest.mark.parametrize("name", ["hevc-g2-open", "h264-bframes"])
def test_the_encodings_have_the_traps_they_are_here_for(videos: dict[str, Path], name: str) -> None:
    with av.open(str(videos[name])) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert any(p.pts != p.dts for p in packets)
    if name == "hevc-g2-open":
        keys = [p.pts for p in packets if p.is_keyframe]
        after, leading = 0, 0
        for p in packets:
            after = p.pts if p.is_keyframe else after
            leading += p.pts < after
        assert len(keys) > 10
        assert leading > 10  # frames shown before the keyframe they follow


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queries=st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=8), min_size=1, max_size=6))
def test_any_sequence_of_queries(videos: dict[str, Path], queries: list[list[int]]) -> None:
    pool = VideoPool()
    for numbers in queries:
        for name in ("h264-bframes", "hevc-g2-open"):
            assert _read(pool, videos[name], numbers) == {n: n for n in numbers}


def test_a_file_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "late.mp4"
    kit.encode(path, FRAMES[:20], "libx264", {"bf": "0"}, pts=[i + 15 for i in range(20)])
    with av.open(str(path)) as container:
        first = next(p.pts * p.time_base for p in container.demux(video=0))
    index = index_video(path)
    assert index.seconds[0] == pytest.approx(
        float(first)
    )  # pts as the container shows them, nothing subtracted
    seconds = index.seconds[0] + np.arange(20) / 30
    assert index.nearest(seconds).tolist() == list(range(20))
    assert _read(VideoPool(), path, [0, 7, 19]) == {0: 0, 7: 7, 19: 19}


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    path = tmp_path / "variable.mp4"
    times = np.cumsum([0, *([33, 20, 80, 33, 40] * 4)])[:20]
    kit.encode(
        path, FRAMES[:20], "libx264", {"bf": "2", "g": "5"}, pts=times.tolist(), time_base=Fraction(1, 1000)
    )
    index = index_video(path)
    np.testing.assert_allclose(index.seconds, times / 1000, atol=1e-3)
    assert index.nearest(times / 1000 + 0.004).tolist() == list(range(20))
    assert _read(VideoPool(), path, list(range(20))) == {n: n for n in range(20)}


def test_the_nearest_frame_is_found_in_double_precision() -> None:
    """Deep in a long file float32 cannot tell neighbouring times apart; hours at 60 fps must still be exact."""
    from edgevla.dataset.video import VideoIndex

    n = 60 * 3600 * 2
    pts = np.arange(n) * 256
    index = VideoIndex(pts, pts / 15360, pts, pts, n, 2, 2, "h264", "yuv420p", 60.0)
    numbers = np.array([0, 1, 59, n // 2, n - 2, n - 1])
    for jitter in (-0.4 / 60, -1e-6, 0, 1e-6, 0.4 / 60):
        assert index.nearest(numbers / 60 + jitter).tolist() == numbers.tolist()


def test_threads_share_a_pool(videos: dict[str, Path]) -> None:
    pool = VideoPool(max_open=3)
    start = threading.Barrier(4)

    def work(seed: int) -> int:
        start.wait()
        rng = np.random.default_rng(seed)
        for _ in range(30):
            name = ("av1-g2", "h264-bframes", "hevc-g2-open", "mjpeg")[rng.integers(4)]
            numbers = rng.integers(0, N, 3).tolist()
            assert _read(pool, videos[name], numbers) == {n: n for n in numbers}
        return seed

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [0, 1, 2, 3]
    assert sum(map(len, pool._idle.values())) <= 3


def _in_child(pool: VideoPool, path: Path, queue: multiprocessing.Queue) -> None:
    queue.put(_read(pool, path, [5, 40]))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_decoder_opened_before_a_fork_is_not_used_after_it(videos: dict[str, Path]) -> None:
    pool, path = VideoPool(), videos["h264-bframes"]
    _read(pool, path, [3])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(pool, path, queue))
    child.start()
    assert queue.get(timeout=30) == {5: 5, 40: 40}
    child.join(10)
    assert _read(pool, path, [4]) == {4: 4}  # the parent's own decoder still stands


def test_a_truncated_file_gives_what_is_there(videos: dict[str, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    join_videos([videos["av1-g2"]], whole, 30)  # its index stands in front
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    index = index_video(cut)
    assert 0 < index.n_frames < index.declared == N
    last = index.n_frames - 1
    assert _read(VideoPool(), cut, [0, last]) == {0: 0, last: last}


@pytest.mark.parametrize("content", [b"", b"not a video at all", None])
def test_what_is_no_video_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"x.mp4 (is missing|cannot be opened)"):
        index_video(path)


def test_damage_in_the_middle_is_an_error_not_a_wrong_frame(videos: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(videos["mjpeg"].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path = tmp_path / "hole.mp4"
    path.write_bytes(data)
    pool = VideoPool()
    seen = 0
    for number in range(N):
        try:
            got = _read(pool, path, [number])[number]
        except DatasetError:
            seen += 1
        else:
            seen += got != number
    assert 0 < seen < 6  # only what the hole touches
