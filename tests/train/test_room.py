"""Disks that are full, memory that is less than the machine's, and one cache for several processes."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevla.checkpoints import find_checkpoint
from edgevla.dataset import open_dataset
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.train import cache as cache_module
from edgevla.train import loop
from edgevla.train.cache import FrameCache, make_cache
from edgevla.train.loop import train
from edgevla.train.machine import Machine
from edgevla.train.memory import available_ram
from edgevla.train.room import free_bytes, is_out_of_room, reserve

GIB = 1 << 30


@pytest.fixture
def small_files() -> Iterator[Any]:
    """`small_files(n)`: no file may grow beyond n bytes, as on a disk that is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- memory ---------------------------------------------------------------------------------------------------


def machine(root: Path, cgroup: str, available_gib: int = 16, **files: str) -> Path:
    """A root with /proc and control groups. files: path under /sys/fs/cgroup with `__` for `/` -> content."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available_gib << 20} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V2 = {"memory_max": f"{4 * GIB}\n", "memory_current": f"{GIB}\n", "memory_stat": "inactive_file 0\n"}
V1 = {
    "memory_limit_in_bytes": f"{4 * GIB}\n",
    "memory_usage_in_bytes": f"{GIB}\n",
    "memory_stat": "total_inactive_file 0\n",
}


def under(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}__{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("cgroup", "files", "gib"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", V2, 3),
        ("0::/job\n", under("job", V2), 3),
        ("0::/job/step\n", under("job", V2) | under("job__step", {**V2, "memory_max": "max\n"}), 3),
        ("0::/job\n", under("job", {**V2, "memory_stat": f"anon 1\ninactive_file {GIB // 2}\n"}), 3.5),
        ("0::/job\n", under("job", {**V2, "memory_max": f"{64 * GIB}\n"}), 16),
        ("0::/job\n", under("job", {**V2, "memory_current": f"{5 * GIB}\n"}), 0),
        ("4:cpu,memory:/docker/abc\n0::/\n", under("memory", V1), 3),
        ("4:memory:/slurm/job\n", under("memory__slurm__job", V1), 3),
        ("4:memory:/\n", under("memory", {**V1, "memory_limit_in_bytes": "9223372036854771712\n"}), 16),
    ],
    ids=[
        "no limit", "container v2", "group v2", "an outer group", "cached files", "beyond the machine", "used up",
        "container v1", "group v1", "no limit v1",
    ],
)  # fmt: skip
def test_the_smallest_limit_counts(tmp_path: Path, cgroup: str, files: dict[str, str], gib: float) -> None:
    assert available_ram(machine(tmp_path, cgroup, **files)) == gib * GIB


def test_this_machine_has_some() -> None:
    assert 0 < available_ram() < 1 << 50


# -- a disk that is full ------------------------------------------------------------------------------------------


def test_a_file_has_its_room_before_it_is_used(tmp_path: Path, small_files: Any) -> None:
    reserve(tmp_path / "a", 1 << 20)
    assert (tmp_path / "a").stat().st_blocks * 512 >= 1 << 20, "no holes"
    (tmp_path / "a").write_bytes(b"x" * 10)
    reserve(tmp_path / "a", 1 << 20)
    assert (tmp_path / "a").read_bytes()[:11] == b"x" * 10 + b"\0", "what it holds stays"
    small_files(1 << 16)
    with pytest.raises(OSError, match="too large"):
        reserve(tmp_path / "b", 1 << 20)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("I/O error: (os error 2)"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number(error: Exception, is_full: bool) -> None:
    assert is_out_of_room(error) is is_full


def test_a_checkpoint_without_room_is_one_sentence_and_the_last_one_stays(
    toy: Any, tmp_path: Path, small_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit lets the log through, and no weights."""
    run = tmp_path / "run"
    job = toy.job(run)
    save = loop.save

    def save_and_fill(job: Any, step: int) -> None:
        save(job, step)
        small_files(3000)

    monkeypatch.setattr(loop, "save", save_and_fill)
    with pytest.raises(EdgeVLAError) as caught:
        train(job)
    words = str(caught.value)
    assert "there is no room for the checkpoint of step 20: it takes about" in words
    assert f"Step 10 is safe ({run}/checkpoints/last): make room" in words
    assert f"edgevla train --resume {run}" in words
    assert "\n" not in words
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000010", "last"]
    assert find_checkpoint(run).name == "000010"


def test_the_first_checkpoint_without_room_says_that_nothing_is_saved(
    toy: Any, tmp_path: Path, small_files: Any
) -> None:
    job = toy.job(tmp_path)
    small_files(3000)
    with pytest.raises(EdgeVLAError, match="No step of the run is saved yet"):
        train(job)


def test_a_log_without_room_ends_no_run(toy: Any, tmp_path: Path) -> None:
    job = toy.job(tmp_path, toy.config(save_freq=0))
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    said: list[str] = []
    job.log.say = said.append
    assert train(job).step == 20
    assert [text for text in said if "no room for" in text] == [
        f"no room for {tmp_path / 'metrics.jsonl'}: lines are missing from here on"
    ]
    assert job.log.last["step"] == 20


# -- the cache of frames ------------------------------------------------------------------------------------------


def test_a_disk_cache_without_room_is_none_and_training_goes_on(
    recorded: str, tmp_path: Path, small_files: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(recorded)
    small_files(1 << 16)
    with caplog.at_level(logging.WARNING):
        assert make_cache(dataset, dataset.cameras, "disk", folder=tmp_path) is None
    assert "no frame cache in" in caplog.text
    assert "decoding every time" in caplog.text


def test_replaced_pictures_are_not_found_in_the_cache(recorded: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(recorded, tmp_path / "set"))
    camera = "observation.images.front"
    before = open_dataset(root)
    cache = make_cache(before, [camera], "disk", folder=tmp_path)
    assert cache is not None
    old = cache.frames(camera, [0])
    (table,) = root.glob("data/*/*.parquet")
    _exchange_first_pictures(table, camera)
    after = open_dataset(root)
    again = make_cache(after, [camera], "disk", folder=tmp_path)
    assert again is not None
    assert again.n_cached == 0
    assert (again.frames(camera, [0]) != old).any()
    np.testing.assert_array_equal(again.frames(camera, [0]), after.frames(camera, [0]))


def _exchange_first_pictures(table: Path, camera: str) -> None:
    """The first two pictures change places; everything else, and the file's times, stay."""
    import pyarrow.parquet as pq

    times = table.stat()
    content = pq.read_table(table)
    column = content.column(camera).combine_chunks().take(np.r_[1, 0, 2 : len(content)])
    pq.write_table(content.set_column(content.column_names.index(camera), camera, column), table)
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))


class Crowd(Machine):
    """The second of two processes here; `said` is what the first one found."""

    is_first_here, n_here = False, 2

    def __init__(self, said: Any) -> None:
        self.said = said

    def share(self, make: Any) -> Any:
        return self.said


class First(Machine):
    n_here = 2

    def share(self, make: Any) -> Any:
        self.said = make()
        return self.said


def _fill_as_second(recorded: str, said: Any, asked: Any) -> None:
    dataset = open_dataset(recorded)
    cache = make_cache(dataset, dataset.cameras, "ram", machine=Crowd(said))
    assert cache is not None
    cache.fill_in_background()
    assert cache._thread is None, "the first one fills it"
    cache.frames(dataset.cameras[0], [7])
    asked.put(cache.n_cached)


def test_several_processes_share_one_cache_in_memory(recorded: str) -> None:
    dataset = open_dataset(recorded)
    first = First()
    cache = make_cache(dataset, dataset.cameras, "ram", machine=first)
    assert cache is not None
    context = multiprocessing.get_context("spawn")
    asked = context.Queue()
    other = context.Process(target=_fill_as_second, args=(recorded, first.said, asked))
    other.start()
    assert asked.get(timeout=120) == 1
    other.join()
    assert cache.n_cached == 1, "what the other one decoded is here"
    np.testing.assert_array_equal(
        cache.frames(dataset.cameras[0], [7]), dataset.frames(dataset.cameras[0], [7])
    )
    handles = list(cache._held)
    cache.close()
    assert not any(Path(f"/proc/self/fd/{handle}").exists() for handle in handles)


def test_a_cache_out_of_reach_costs_time_and_no_run(recorded: str, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(recorded)
    place = cache_module.Place("ram", {c: ("/proc/0/fd/1", "/proc/0/fd/2") for c in dataset.cameras})
    assert make_cache(dataset, dataset.cameras, "ram", machine=Crowd(place)) is None
    assert "cannot be reached" in caplog.text


def test_a_cache_that_was_demanded_and_cannot_fit_is_refused(
    recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(recorded)
    with pytest.raises(UsageError, match="the ram cache may take"):
        make_cache(dataset, dataset.cameras, "ram", ram_budget=1000)
    monkeypatch.setattr(cache_module, "free_bytes", lambda _: 1000)
    with pytest.raises(UsageError, match="the disk cache may take"):
        make_cache(dataset, dataset.cameras, "disk", folder=tmp_path)
    assert free_bytes(tmp_path / "not" / "there") > 0
    assert FrameCache(dataset, {}, None).folder is None
