"""A dataset is known by everything that training may read of it, and by nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from edgevla.dataset import DatasetWriter, open_dataset
from edgevla.digests import REMEMBERED, digests

Change = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("pictures") / "set", "image")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("videos") / "set", "video")


def record(root: Path, dtype: str) -> Path:
    """Two equal episodes."""
    vector = {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]}
    camera = {"dtype": dtype, "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.front": camera}
    with DatasetWriter(root, fps=10, features=features, joint_units="degrees") as writer:
        for _ in range(2):
            for i in range(5):
                picture = np.full((48, 64, 3), 40 * i, np.uint8)
                row = np.float32([i, -i])
                frame = {"observation.state": row, "action": row, "observation.images.front": picture}
                writer.add_frame(frame, task="wave")
            writer.save_episode()
    return root


def sha(root: Path, episodes: list[int] | None = None) -> str:
    return open_dataset(root, episodes).sha256


def keeping_times(path: Path, content: bytes) -> None:
    """As a copying tool replaces a file: equal size, equal times."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    keeping_times(path, bytes(content))


def flip_picture(root: Path) -> None:
    (table,) = root.glob("data/*/*.parquet")
    content = table.read_bytes()
    flip(table, content.index(b"IDAT") + 12)


def flip_video(root: Path) -> None:
    (video,) = root.glob("videos/*/*/*.mp4")
    flip(video, video.stat().st_size // 2)


def change_json(file: str, *keys: str, to: Any) -> Change:
    def change(root: Path) -> None:
        data = json.loads((root / file).read_text())
        inner = data
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (root / file).write_text(json.dumps(data))

    return change


def other_task(root: Path) -> None:
    import pyarrow as pa

    table = pq.read_table(root / "meta/tasks.parquet")
    column = next(n for n in table.column_names if pa.types.is_string(table.schema.field(n).type))
    changed = table.set_column(table.column_names.index(column), column, pa.array(["dance"]))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), root / "meta/tasks.parquet")


STATS = ("meta/stats.json", "observation.images.front", "mean")
CHANGES: dict[str, Change] = {
    "statistics of a camera": change_json(*STATS, to=[[[0.1]], [[0.2]], [[0.3]]]),
    "a name of a joint": change_json("meta/info.json", "features", "action", "names", to=["a.pos", "c.pos"]),
    "the rate": change_json("meta/info.json", "fps", to=11),
    "joint units": change_json("meta/edgevla.json", "joint_units", to="range100"),
    "the task": other_task,
}


@pytest.mark.parametrize(("kind", "change"), [("pictures", flip_picture), ("videos", flip_video)])
def test_pictures_of_equal_size_and_times_are_other_pictures(
    kind: str, change: Change, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "set"))
    before = sha(root)
    assert sha(root) == before
    change(root)
    assert sha(root) != before


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_training_reads_counts(what: str, pictures: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pictures, tmp_path / "set"))
    before = sha(root)
    CHANGES[what](root)
    assert sha(root) != before


def test_episodes_are_told_apart_even_where_they_hold_the_same(pictures: Path) -> None:
    assert len({sha(pictures), sha(pictures, [0]), sha(pictures, [1])}) == 3


def test_a_copy_elsewhere_is_the_same_dataset(pictures: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pictures, tmp_path / "set", copy_function=shutil.copyfile))
    assert sha(copy) == sha(pictures)


def test_a_file_is_read_once_and_again_when_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, memory = tmp_path / "a.mp4", tmp_path / "cache" / REMEMBERED
    file.write_bytes(b"x" * 100)
    fresh = digests(tmp_path, ["a.mp4"])
    assert not memory.exists(), "it changed a moment ago, and may change again within one tick of the clock"
    monkeypatch.setattr("edgevla.digests.SETTLED_NS", -1)
    assert digests(tmp_path, ["a.mp4"]) == fresh
    lines = memory.read_text().splitlines()
    memory.write_text(lines[0].replace(fresh[0][1], "remembered") + "\n" + lines[0][:10])
    assert digests(tmp_path, ["a.mp4", "a.mp4"]) == [("a.mp4", "remembered")], "it was not read again"
    keeping_times(file, b"y" * 100)
    assert digests(tmp_path, ["a.mp4"])[0][1] not in (fresh[0][1], "remembered")
    assert digests(tmp_path, ["b.mp4"]) == [("b.mp4", "-")]


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr("edgevla.digests.SETTLED_NS", -1)
    monkeypatch.setenv("EDGEVLA_CACHE", str(tmp_path / "a" / "not a folder"))
    assert digests(tmp_path, ["a"]) == digests(tmp_path, ["a"])
