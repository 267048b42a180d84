"""Recording: what is written reads back, in the reference's types, and stands whenever the recording dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import dataset_kit as kit
import numpy as np
import pyarrow.parquet as pq
import pytest

from edgevla.dataset import DatasetWriter, camera_age_key, check_dataset, encode, open_dataset
from edgevla.dataset.encode import CODECS, QUEUE_FRAMES, Codec, EpisodeEncoder, choose_codec
from edgevla.errors import DatasetError, UsageError


def _codes(root: Path) -> list[tuple[int, int]]:
    ds = open_dataset(root)
    return [kit.read_code(f) for f in ds.frames(kit.CAMERA, np.arange(ds.n_frames))]


def _expected(lengths: list[int]) -> list[tuple[int, int]]:
    return [(e, f) for e, n in enumerate(lengths) for f in range(n)]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_recorded_reads_back(tmp_path: Path, codec: str) -> None:
    root = tmp_path / "set"
    kit.record(root, [12, 7, 9], codec=codec)
    ds = open_dataset(root)
    assert [e.length for e in ds.episodes] == [12, 7, 9]
    assert _codes(root) == _expected([12, 7, 9])
    states = [kit.row(e, f)["observation.state"] for e, f in _expected([12, 7, 9])]
    np.testing.assert_array_equal(ds.columns["observation.state"], states)
    np.testing.assert_array_equal(ds.columns["index"], np.arange(28))
    assert [ds.task(r) for r in (0, 12, 19)] == [kit.task_of(e) for e in range(3)]
    assert ds.columns[camera_age_key(kit.CAMERA)][13] == 6
    assert check_dataset(root) == []
    info = json.loads((root / "meta/info.json").read_text())
    assert (
        info["features"][kit.CAMERA]["info"]["video.codec"]
        == ds.video_index(ds.episodes[0].videos[kit.CAMERA].file).codec
    )


def test_episodes_share_files_until_the_limit(tmp_path: Path, recorded: Path) -> None:
    kit.record(tmp_path / "one", [5, 5, 5])
    assert len(list((tmp_path / "one").rglob("*.mp4"))) == 1
    spans = [e.videos[kit.CAMERA] for e in open_dataset(tmp_path / "one").episodes]
    assert [round(s.start * 30) for s in spans] == [0, 5, 10]
    assert len(list(recorded.rglob("*.mp4"))) > 1
    assert check_dataset(recorded) == []


def test_tables_have_the_types_of_the_reference(tmp_path: Path, so101: Path) -> None:
    """Compared with files that LeRobot wrote: its own library must find what it would have written."""
    root = tmp_path / "set"
    kit.record(root, [5, 6])
    ours, theirs = (pq.ParquetFile(r / "data/chunk-000/file-000.parquet") for r in (root, so101))
    assert ours.num_row_groups == 2  # one per episode
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert ours.schema_arrow.field(name).type == theirs.schema_arrow.field(name).type
    assert str(ours.schema_arrow.field("action").type) == "fixed_size_list<element: float>[3]"
    described = json.loads(ours.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert described["action"] == {
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": 3,
        "_type": "List",
    }
    assert described["index"] == {"dtype": "int64", "_type": "Value"}
    ours, theirs = (pq.read_schema(r / "meta/episodes/chunk-000/file-000.parquet") for r in (root, so101))
    for field in theirs:
        if "wrist" not in field.name:
            assert ours.field(field.name).type == field.type, field.name
    ours, theirs = (pq.read_schema(r / "meta/tasks.parquet") for r in (root, so101))
    assert ours.names == theirs.names
    ours_pandas, theirs_pandas = (json.loads(s.metadata[b"pandas"]) for s in (ours, theirs))
    for key in ("index_columns", "column_indexes", "columns"):
        assert ours_pandas[key] == theirs_pandas[key]
    ours, theirs = (json.loads((r / "meta/info.json").read_text()) for r in (root, so101))
    assert list(ours) == list(theirs)
    assert ours["features"][kit.CAMERA]["info"].keys() == theirs["features"][kit.CAMERA]["info"].keys()


def test_videos_have_a_keyframe_every_second_frame_and_exact_times(tmp_path: Path) -> None:
    root = tmp_path / "set"
    kit.record(root, [7, 6])
    with av.open(str(next(root.rglob("*.mp4")))) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        base = container.streams.video[0].time_base
    assert [p.pts * base * 30 for p in packets] == list(range(13))
    assert {0, 2, 4, 6, 7, 9, 11} <= {i for i, p in enumerate(packets) if p.is_keyframe}


def test_statistics_written_are_those_of_the_data(tmp_path: Path) -> None:
    root = tmp_path / "set"
    kit.record(root, [12, 7])
    ds = open_dataset(root)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(ds.stats["action"][name], ds.true_stats["action"][name], rtol=1e-6)
    pixels = np.stack([kit.code_frame(e, f) for e, f in _expected([12, 7])]) / 255
    np.testing.assert_allclose(ds.stats[kit.CAMERA]["mean"].ravel(), pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(ds.stats[kit.CAMERA]["std"].ravel(), pixels.std((0, 1, 2)))
    assert ds.findings == []


@pytest.mark.parametrize("fps", [29.97, 12.5])
def test_fractional_rates(tmp_path: Path, fps: float) -> None:
    root = tmp_path / "set"
    kit.record(root, [8, 5], fps=fps)
    assert open_dataset(root).fps == fps
    assert _codes(root) == _expected([8, 5])
    assert check_dataset(root) == []


def test_resume_appends(tmp_path: Path) -> None:
    root = tmp_path / "set"
    kit.record(root, [6, 5])
    before = {p: p.read_bytes() for p in root.rglob("*.mp4")}
    kit.record(root, [7, 4], resume=True)
    assert _codes(root) == _expected([6, 5, 7, 4])
    assert all(p.read_bytes() == data for p, data in before.items())
    assert check_dataset(root) == []
    assert open_dataset(root).tasks == ["pick the cube", "place the cube"]


def test_resumed_again_and_again_no_episode_s_pictures_are_overwritten(tmp_path: Path) -> None:
    """The 4 of `.mp4` was taken for a file's number: the third resume wrote over the second's video."""
    root = tmp_path / "set"
    lengths = [4, 5, 3, 6, 4]
    kit.record(root, lengths[:1])
    for n in range(1, len(lengths)):
        kit.record(root, lengths[n : n + 1], resume=True)
    assert sorted(p.name for p in root.rglob("*.mp4")) == [f"file-00{n}.mp4" for n in range(5)]
    assert _codes(root) == _expected(lengths)
    assert check_dataset(root) == []


def test_a_second_recording_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    """It would take the open episode of the first for leftovers."""
    root = tmp_path / "set"
    with DatasetWriter(root, fps=30, features=kit.features()) as first:
        first.add_frame(kit.row(0, 0), kit.task_of(0))
        with pytest.raises(DatasetError, match=r"another recording into .*set is running"):
            DatasetWriter(root, fps=30, features=kit.features(), resume=True)
        first.save_episode()
    kit.record(root, [4], resume=True)
    assert open_dataset(root).n_episodes == 2


def test_a_set_recorded_by_lerobot_can_be_resumed(so101_copy: Path) -> None:
    source = open_dataset(so101_copy)
    features = {n: f.raw for n, f in source.info.features.items() if n not in ("timestamp", "index")}
    features = {n: f for n, f in features.items() if not n.endswith("_index")}
    with DatasetWriter(so101_copy, fps=30, features=features, resume=True) as writer:
        for frame in range(4):
            row: dict[str, Any] = {n: source.columns[n][frame] for n in ("action", "observation.state")}
            row.update({c: kit.code_frame(4, frame, source.camera_size(c)) for c in source.cameras})
            writer.add_frame(row, "Put the red ball in the bin.")
        writer.save_episode()
    ds = open_dataset(so101_copy)
    assert (ds.n_episodes, ds.n_frames) == (5, 477)
    assert kit.read_code(ds.frame("observation.images.front", 475)) == (4, 2)
    assert kit.read_code(ds.frame("observation.images.front", 472)) == (3, 109)
    assert [f for f in check_dataset(so101_copy) if f.severity == "error"] == []


def test_a_discarded_episode_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with DatasetWriter(root, fps=30, features=kit.features()) as writer:
        for frame in range(5):
            writer.add_frame(kit.row(9, frame), "x")
        assert writer.n_open_frames == 5
        writer.discard_episode()
        for frame in range(4):
            writer.add_frame(kit.row(0, frame), "y")
        assert writer.save_episode() == 0
    assert _codes(root) == _expected([4])
    assert open_dataset(root).tasks == ["y"]
    assert not (root / ".recording").exists()


def test_a_task_may_change_within_an_episode(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with DatasetWriter(root, fps=30, features=kit.features()) as writer:
        for frame, task in enumerate(["a", "a", "b", "a"]):
            writer.add_frame(kit.row(0, frame), task)
        writer.save_episode()
    ds = open_dataset(root)
    assert [ds.task(r) for r in range(4)] == ["a", "a", "b", "a"]
    assert ds.episodes[0].tasks == ("a", "b")


def test_other_kinds_of_columns(tmp_path: Path) -> None:
    root = tmp_path / "set"
    features = {
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "grid": {"dtype": "float64", "shape": (2, 3), "names": None},
        "done": {"dtype": "bool", "shape": (1,), "names": None},
        "count": {"dtype": "int32", "shape": (1,), "names": None},
        "note": {"dtype": "string", "shape": (1,), "names": None},
        "top": {"dtype": "image", "shape": (12, 16, 3), "names": ["height", "width", "channels"]},
    }
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    with DatasetWriter(root, fps=10, features=features) as writer:
        for i in range(3):
            grid = np.arange(6.0).reshape(2, 3) * i
            row = {
                "action": [i, -i],
                "grid": grid,
                "done": i == 2,
                "count": [i],
                "note": f"n{i}",
                "top": picture + i,
            }
            writer.add_frame({**row, "top": (picture // 2 + i).astype(np.uint8)}, "t")
        writer.save_episode()
    ds = open_dataset(root)
    assert ds.columns["done"].tolist() == [False, False, True]
    assert ds.columns["grid"].shape == (3, 2, 3)
    assert ds.columns["grid"][2, 1, 2] == 10
    assert ds.columns["count"].dtype == np.int32
    assert ds.texts["note"].tolist() == ["n0", "n1", "n2"]
    np.testing.assert_array_equal(ds.frame("top", 1), picture // 2 + 1)
    assert [f for f in check_dataset(root) if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": np.zeros(4)}, r"'action' has shape \(4,\), expected \(3,\)"),
        ({"action": np.array([0, np.nan, 0])}, "'action' is not finite"),
        ({kit.CAMERA: np.zeros((96, 128, 3), np.float32)}, "expected uint8"),
        ({kit.CAMERA: np.zeros((128, 96, 3), np.uint8)}, r"expected uint8 \(96, 128, 3\)"),
        ({"extra": 1}, "unknown feature 'extra'"),
        ({"observation.state": None}, "lacks feature 'observation.state'"),
    ],
)
def test_a_wrong_frame_is_refused_and_nothing_of_it_is_kept(tmp_path: Path, change: dict, words: str) -> None:
    with DatasetWriter(tmp_path / "set", fps=30, features=kit.features()) as writer:
        writer.add_frame(kit.row(0, 0), "t")
        row = {k: v for k, v in {**kit.row(0, 1), **change}.items() if v is not None}
        with pytest.raises(DatasetError, match=words):
            writer.add_frame(row, "t")
        writer.add_frame(kit.row(0, 1), "t")
        writer.save_episode()
    assert _codes(tmp_path / "set") == _expected([2])


def test_wrong_beginnings_are_refused(
    tmp_path: Path, recorded: Path, copy_of: Callable[[Path], Path]
) -> None:
    with pytest.raises(DatasetError, match="already holds a dataset"):
        DatasetWriter(recorded, fps=30, features=kit.features())
    with pytest.raises(DatasetError, match="it has 30 fps, this recording 20"):
        DatasetWriter(copy_of(recorded), fps=20, features=kit.features(), resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(DatasetError, match="not empty"):
        DatasetWriter(tmp_path / "full", fps=30, features=kit.features())
    with pytest.raises(DatasetError, match="must be even"):
        DatasetWriter(tmp_path / "odd", fps=30, features=kit.features((95, 128)))
    with pytest.raises(DatasetError, match="codec 'vp12' is unknown"):
        DatasetWriter(tmp_path / "codec", fps=30, features=kit.features(), codec="vp12")
    with pytest.raises(DatasetError, match="may not contain '/'"):
        DatasetWriter(tmp_path / "name", fps=30, features={"a/b": {"dtype": "float32", "shape": (1,)}})
    writer = DatasetWriter(tmp_path / "empty", fps=30, features=kit.features())
    with pytest.raises(UsageError, match="no open episode"):
        writer.save_episode()


def test_av1_stands_in_where_h264_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_codec("auto", [(96, 128)], 30).name == "h264"
    monkeypatch.setitem(CODECS, "h264", Codec("h264", "no-such-encoder", {}))
    assert choose_codec("auto", [(96, 128)], 30).name == "av1"
    with pytest.raises(DatasetError, match="no-such-encoder"):
        choose_codec("h264", [(96, 128)], 30)


def test_memory_stays_bounded_and_waiting_is_counted(tmp_path: Path) -> None:
    """An episode's frames never pile up: add_frame waits for the encoder instead."""
    encoder = EpisodeEncoder(tmp_path / "x.mp4", CODECS["h264"], (480, 640), 30)
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    for _ in range(3 * QUEUE_FRAMES):
        encoder.add(frame)
        assert encoder._queue.qsize() <= QUEUE_FRAMES
    encoder.finish()
    assert encoder.waits > 0
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].frames == 3 * QUEUE_FRAMES


# -- an encoder that hangs ------------------------------------------------------------------------------------


class Hang:
    """While `is_on`, new encoders take `n_taken` frames and stand still until `wakes`; then they go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_on, self.n_taken, self.wakes = True, 0, threading.Event()
        self.threads: list[threading.Thread] = []
        whole = EpisodeEncoder._encode

        def encode_or_hang(encoder: EpisodeEncoder) -> None:
            if self.is_on:
                self.threads.append(threading.current_thread())
                for _ in range(self.n_taken):
                    encoder._queue.get()
                self.wakes.wait(60)
            whole(encoder)

        monkeypatch.setattr(EpisodeEncoder, "_encode", encode_or_hang)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    monkeypatch.setattr(encode, "POLL_S", 0.1)
    monkeypatch.setattr(encode, "STALL_S", 0.3)
    hang = Hang(monkeypatch)
    hang.is_on = False
    yield hang
    hang.wakes.set()
    for thread in hang.threads:
        thread.join()


@pytest.mark.parametrize(("n_taken", "n_frames"), [(0, 6), (6, 6), (3, QUEUE_FRAMES + 20)])
def test_an_encoder_that_hangs_costs_no_more_than_the_open_episode(
    tmp_path: Path, hang: Hang, n_taken: int, n_frames: int
) -> None:
    """At its first frame, while it finishes, and amidst an episode that is longer than the queue."""
    root = tmp_path / "set"
    with DatasetWriter(root, fps=30, features=kit.features()) as writer:
        for frame in range(5):
            writer.add_frame(kit.row(0, frame), kit.task_of(0))
        writer.save_episode()
        hang.is_on, hang.n_taken = True, n_taken

        def record() -> None:
            for frame in range(n_frames):
                writer.add_frame(kit.row(1, frame), "lost")
            writer.save_episode()

        with pytest.raises(
            DatasetError, match=r"libx264 of observation.images.front has stood still"
        ) as hung:
            record()
        assert "the open episode is lost, saved ones are whole" in str(hung.value)
        assert open_dataset(root).n_episodes == 1
        writer.discard_episode()
        hang.is_on = False
        for frame in range(7):
            writer.add_frame(kit.row(1, frame), kit.task_of(1))
        hang.wakes.set()  # it may wake while the next episode is open
        hang.threads[0].join()
        assert writer.save_episode() == 1
    assert _codes(root) == _expected([5, 7])
    assert check_dataset(root) == []
    assert open_dataset(root).tasks == ["pick the cube", "place the cube"]


def test_an_episode_whose_encoder_hangs_can_be_discarded(tmp_path: Path, hang: Hang) -> None:
    hang.is_on = True
    with DatasetWriter(tmp_path / "set", fps=30, features=kit.features()) as writer:
        for frame in range(QUEUE_FRAMES):
            writer.add_frame(kit.row(0, frame), "lost")
        writer.discard_episode()
        hang.is_on = False
        for frame in range(4):
            writer.add_frame(kit.row(0, frame), "t")
        writer.save_episode()
    assert _codes(tmp_path / "set") == _expected([4])


def test_a_recording_whose_encoder_hangs_ends_with_a_sentence(tmp_path: Path) -> None:
    """As a process: neither the error nor the exit waits for the thread that cannot be ended."""
    code = f"""
import sys, time
from edgevla.dataset import encode
from edgevla.robots.trials.demonstrate import main
encode.POLL_S, encode.STALL_S = 0.1, 0.3
encode.EpisodeEncoder._encode = lambda self: time.sleep(1000)
sys.exit(main(["--task", "follow_cube", "--episodes", "1", "--output", {str(tmp_path / "set")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has stood still for 0.3 s and is given up" in done.stderr
    assert "Traceback" not in done.stderr


# -- a recording that is killed -------------------------------------------------------------------------------

RECORDING = """
import sys
sys.path.insert(0, {folder!r})
import dataset_kit as kit
from edgevla.dataset import DatasetWriter
writer = DatasetWriter({root!r}, fps=30, features=kit.features(), resume=True)
while True:
    episode = writer.n_episodes
    for frame in range(20):
        writer.add_frame(kit.row(episode, frame), kit.task_of(episode))
    print("saving", episode, flush=True)
    writer.save_episode()
    print("saved", episode, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05, 0.11])
def test_a_killed_recording_loses_at_most_the_open_episode(tmp_path: Path, delay: float) -> None:
    root = tmp_path / "set"
    code = RECORDING.format(folder=str(Path(__file__).parent), root=str(root))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("saving 2"):
            break
    time.sleep(delay)  # somewhere within saving episode 2, or within episode 3
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read()
    process.stdout.close()
    process.wait()
    saved = 2 + rest.count("saved")
    ds = open_dataset(root)
    assert saved <= ds.n_episodes <= saved + 1  # killed after the commit, before it could say so
    assert _codes(root) == _expected([20] * ds.n_episodes)
    assert [f for f in check_dataset(root) if f.severity == "error"] == []
    kit.record(root, [20], resume=True)
    assert _codes(root) == _expected([20] * (ds.n_episodes + 1))
    assert check_dataset(root) == []


@pytest.mark.parametrize("step", ["write_tasks", "episode_table", "replace_json"])
def test_a_save_cut_at_any_step_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed between any two files: the reader ignores, and resume removes, what no episode lists."""
    from edgevla.dataset import writer as module

    root = tmp_path / "set"
    kit.record(root, [6])
    writer = DatasetWriter(root, fps=30, features=kit.features(), resume=True)
    for frame in range(5):
        writer.add_frame(kit.row(1, frame), kit.task_of(1))

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, step, die)
        with pytest.raises(Killed):
            writer.save_episode()
    n = 2 if step == "replace_json" else 1  # after the episode's row everything else is a counter
    assert open_dataset(root).n_episodes == n
    assert _codes(root) == _expected([6, 5][:n])
    findings = check_dataset(root)
    assert [f for f in findings if f.severity == "error"] == []
    assert findings
    writer._unlock()  # as the end of its process would
    kit.record(root, [4], resume=True)
    assert _codes(root) == _expected([*[6, 5][:n], 4])
    assert check_dataset(root) == []


def test_a_failed_save_can_be_discarded_and_recording_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevla.dataset import writer as module

    def full_disk(*_: object) -> None:
        raise DatasetError("disk full")

    root = tmp_path / "set"
    with DatasetWriter(root, fps=30, features=kit.features()) as writer:
        for episode in (0, 1):
            for frame in range(5):
                writer.add_frame(kit.row(episode, frame), "t")
            if episode == 1:
                with monkeypatch.context() as patch:
                    patch.setattr(module, "data_table", full_disk)
                    with pytest.raises(DatasetError, match="disk full"):
                        writer.save_episode()
                writer.discard_episode()
                for frame in range(5):
                    writer.add_frame(kit.row(episode, frame), "t")
            writer.save_episode()
    assert _codes(root) == _expected([5, 5])
    assert check_dataset(root) == []


def test_an_encoder_takes_no_priority_from_the_control_loop(tmp_path: Path) -> None:
    """SVT-AV1 puts itself and its caller before everything else where root runs it."""

    def held() -> set[int]:
        policies = set()
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                policies.add(os.sched_getscheduler(int(thread.name)))
        return policies

    before = held()
    encoder = EpisodeEncoder(tmp_path / "x.mp4", CODECS["av1"], (64, 96), 30)
    for _ in range(5):
        encoder.add(np.zeros((64, 96, 3), np.uint8))
    while not encoder._n_moves:
        time.sleep(0.01)
    assert held() == before
    encoder.finish()
    assert held() == before
    assert choose_codec("av1", [(64, 96)], 30).name == "av1"
    assert held() == before
