"""Damaged datasets: each defect is one sentence that names file, feature and episode; never a traceback."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_kit as kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgevla.dataset import Finding, check_dataset, open_dataset
from edgevla.errors import DatasetError

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FRONT = "observation.images.front"
MP4 = f"videos/{FRONT}/chunk-000/file-000.mp4"


def _errors(root: Path) -> list[Finding]:
    return [f for f in check_dataset(root) if f.severity == "error"]


def _warnings(root: Path) -> list[Finding]:
    return [f for f in check_dataset(root) if f.severity == "warning"]


def _unlink(file: str) -> Callable[[Path], Any]:
    return lambda root: (root / file).unlink()


def _cut(file: str, share: float) -> Callable[[Path], Any]:
    def damage(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: int(len(data) * share)])

    return damage


def _cell(column: str, row: int, value: Any, element: int | None = None) -> Callable[[Path], Any]:
    return lambda root: kit.set_cell(root / DATA, column, row, value, element)


def _episode_cell(column: str, episode: int, value: Any) -> Callable[[Path], Any]:
    return lambda root: kit.set_cell(root / EPISODES, column, episode, value)


def _info(**changes: Any) -> Callable[[Path], Any]:
    return lambda root: kit.edit_json(root / "meta/info.json", lambda info: info.update(changes))


def _drop_rows(first: int, last: int) -> Callable[[Path], Any]:
    def damage(root: Path) -> None:
        table = pq.read_table(root / DATA)
        keep = np.r_[0:first, last : table.num_rows]
        pq.write_table(table.take(keep), root / DATA)

    return damage


def _clock_times(root: Path) -> None:
    def change(columns: dict[str, Any]) -> None:
        for row in range(118, 243):  # episode 1
            columns["timestamp"][row] = columns["timestamp"][row] * 1.013 + 0.002

    kit.edit_parquet(root / DATA, change)


def _picture_camera(root: Path) -> None:
    """A camera of pictures that the data files do not hold."""
    top = {"dtype": "image", "shape": [4, 6, 3], "names": ["height", "width", "channels"]}
    kit.edit_json(
        root / "meta/info.json", lambda info: info["features"].update({"observation.images.top": top})
    )


def _nan_file_numbers(root: Path) -> None:
    """As pandas leaves an interrupted batch encoding: whole numbers become fractions, nothing becomes NaN."""
    table = pq.read_table(root / EPISODES)
    for name in (f"videos/{FRONT}/chunk_index", f"videos/{FRONT}/file_index", "data/chunk_index"):
        values = np.array(table.column(name), np.float64)
        values[1] = np.nan
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, root / EPISODES)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str | None, str | None, int | None]] = {
    # what is done, words of the sentence, file, feature, episode
    "missing video": (_unlink(MP4), "is missing", MP4, FRONT, 0),
    "truncated video": (_cut(MP4, 0.6), "cut short: [0-9]+ of 473 frames", MP4, FRONT, 0),
    "empty video": (_cut(MP4, 0), "cannot be opened", MP4, FRONT, 0),
    "missing data": (_unlink(DATA), "is missing", DATA, None, 0),
    "data without footer": (_cut(DATA, 0.9), "not a complete parquet file", DATA, None, None),
    "episodes without footer": (_cut(EPISODES, 0.9), "not a complete parquet file", EPISODES, None, None),
    "missing episode table": (_unlink(EPISODES), "no episode table", "meta/episodes", None, None),
    "missing tasks": (
        _unlink("meta/tasks.parquet"),
        "tasks.parquet is missing",
        "meta/tasks.parquet",
        None,
        None,
    ),
    "NaN": (
        _cell("action", 200, float("nan"), 2),
        r"'action' element 2 \('elbow_flex.pos'\) is nan in frame 82",
        DATA,
        "action",
        1,
    ),
    "infinity": (
        _cell("observation.state", 3, float("inf"), 0),
        "is inf in frame 3",
        DATA,
        "observation.state",
        0,
    ),
    "time off the grid": (_cell("timestamp", 250, 0.25), "off the 30 fps grid", DATA, "timestamp", 2),
    "clock times": (_clock_times, "the clock's time was recorded", DATA, "timestamp", 1),
    "NaN time": (_cell("timestamp", 250, float("nan")), "'timestamp' element 0 is nan", DATA, "timestamp", 2),
    "unknown task": (
        _cell("task_index", 400, 7),
        "task_index 7, which the task table does not list",
        DATA,
        "task_index",
        3,
    ),
    "wrong length": (
        _episode_cell("length", 2, 100),
        "has 120 rows in the data files; the episode table says 100",
        "meta/episodes",
        None,
        2,
    ),
    "lost rows": (
        _drop_rows(130, 140),
        "has 115 rows in the data files; the episode table says 125",
        "meta/episodes",
        None,
        1,
    ),
    "lost episode": (_drop_rows(118, 243), "episode 1 of .* has no rows", "data", None, 1),
    "frame numbers": (_cell("frame_index", 5, 50), "frame_index does not count", None, "frame_index", 0),
    "video offset": (
        _episode_cell(f"videos/{FRONT}/from_timestamp", 3, 63.1),
        "has no frame at .* the file has 473 frames",
        MP4,
        FRONT,
        3,
    ),
    "episode without video": (
        _episode_cell(f"videos/{FRONT}/file_index", 1, None),
        "episode 1 has no video of camera",
        "meta/episodes",
        FRONT,
        1,
    ),
    "episode with NaN numbers": (
        _nan_file_numbers,
        "episode 1 has no video of camera",
        "meta/episodes",
        FRONT,
        1,
    ),
    "half the frame rate": (_info(fps=15), "off the 15 fps grid", DATA, "timestamp", 0),
    "newer version": (
        _info(codebase_version="v4.0"),
        "newer than what this EdgeVLA reads",
        "meta/info.json",
        None,
        None,
    ),
    "no feature column": (
        _info(
            features={"action": {"dtype": "float32", "shape": [6]}, "tip": {"dtype": "float32", "shape": [3]}}
        ),
        "feature 'tip' of meta/info.json is not a column",
        DATA,
        "tip",
        None,
    ),
    "no picture column": (
        _picture_camera,
        "feature 'observation.images.top' of meta/info.json is not a column",
        DATA,
        "observation.images.top",
        None,
    ),
    "another shape": (
        _info(features={"action": {"dtype": "float32", "shape": [7]}}),
        r"'action' holds 2838 numbers in 473 rows; its shape \[7\]",
        DATA,
        "action",
        None,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(so101_copy: Path, name: str) -> None:
    damage, words, file, feature, episode = DAMAGE[name]
    damage(so101_copy)
    errors = _errors(so101_copy)
    found = [f for f in errors if re.search(words, f.text)]
    assert found, [f.text for f in errors]
    first = found[0]
    assert (first.file, first.feature, first.episode) == (file, feature, episode)
    assert "\n" not in first.text


BEFORE_OPENING = ["missing data", "data without footer", "wrong length", "missing tasks", "no feature column"]


@pytest.mark.parametrize("name", BEFORE_OPENING)
def test_what_cannot_be_opened_says_so_at_once(so101_copy: Path, name: str) -> None:
    damage, words, _, _, episode = DAMAGE[name]
    damage(so101_copy)
    with pytest.raises(DatasetError, match=words) as error:
        open_dataset(so101_copy)
    assert error.value.fields["episode"] == episode


def test_sound_datasets_have_no_errors(so101: Path, pusht: Path, so101_v21: Path) -> None:
    for root in (so101, pusht, so101_v21):
        assert _errors(root) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("tasks", '"task_index": 0', '"task_index": null', "task_index None"),
        ("tasks", '"task": ', '"text": ', None),
        ("tasks", '"task_index": 1', '"task_index": 0', "gives number 0 to '.*' and to '.*'"),
        ("episodes", '"episode_index": 0', '"episode": 0', "episode_index = None"),
        ("episodes", '"length": 118', '"length": "many"', "length = 'many'"),
        ("episodes_stats", '"stats"', '"statistics"', "not readable"),
        ("episodes_stats", '"count": [118]', '"count": []', "not readable"),
    ],
)
def test_metadata_of_another_form_is_a_sentence(
    so101_v21: Path, copy_of: Callable[[Path], Path], file: str, old: str, new: str, words: str | None
) -> None:
    root = copy_of(so101_v21)
    path = root / f"meta/{file}.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    found = check_dataset(root)
    assert any(re.search(words or "empty instruction", f.text) for f in found), [f.text for f in found]


def test_a_video_shorter_than_the_table(so101_v21: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(so101_v21)
    file = f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    shutil.copy(root / file, root / "long.mp4")
    kit.cut_video(root / "long.mp4", root / file, 0, 100)
    (error,) = _errors(root)
    assert (error.file, error.feature, error.episode) == (file, FRONT, 1)
    assert "no frame at 3.3333 s" in error.text
    assert "has 100 frames" in error.text


def test_missing_files_of_v21_are_named_by_episode(so101_v21: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(so101_v21)
    (root / "data/chunk-000/episode_000002.parquet").unlink()
    assert next((e.file, e.episode) for e in _errors(root)) == ("data/chunk-000/episode_000002.parquet", 2)
    assert open_dataset(root, [0, 1, 3]).n_frames == 473 - 120  # the others can be used
    with pytest.raises(DatasetError, match="episode_000002"):
        open_dataset(root, [1, 2])


def test_damaged_jsonl(so101_v21: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(so101_v21)
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DatasetError, match=r"episodes.jsonl line 5 is not a JSON object"):
        open_dataset(root)


def test_every_bad_episode_is_listed(so101_copy: Path) -> None:
    for row in (5, 130, 131):
        kit.set_cell(so101_copy / DATA, "action", row, float("nan"), 0)
    errors = _errors(so101_copy)
    assert [e.episode for e in errors] == [0, 1]
    assert "2 such rows" in errors[1].text


# -- repaired in memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"total_frames": 999}, {"total_episodes": 9}, {"total_frames": 3}])
def test_wrong_totals_are_repaired_with_a_warning(
    so101_copy: Path, change: dict, caplog: pytest.LogCaptureFixture
) -> None:
    _info(**change)(so101_copy)
    ds = open_dataset(so101_copy)
    assert (ds.n_frames, ds.n_episodes) == (473, 4)
    assert ds.frame(FRONT, 472).shape == (480, 640, 3)
    key = next(iter(change))
    assert key in caplog.text
    assert any(key in f.text for f in _warnings(so101_copy))
    assert _errors(so101_copy) == []


def test_rows_of_an_unlisted_episode_are_ignored(so101_copy: Path) -> None:
    """What a recording killed between table and episode list leaves."""
    path = so101_copy / EPISODES
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    ds = open_dataset(so101_copy)
    assert (ds.n_episodes, ds.n_frames) == (3, 363)
    assert any("episode 3" in f.text and "110 rows ignored" in f.text for f in ds.findings)


def test_the_known_defect_of_the_samples_is_a_warning(so101: Path) -> None:
    warnings = _warnings(so101)
    assert [w.feature for w in warnings] == [FRONT, "observation.images.wrist", None]
    assert all("impossible std" in w.text for w in warnings[:2])
    assert "are means of the episodes'" in warnings[2].text


def test_a_dataset_without_episodes_is_refused(so101_copy: Path) -> None:
    for file in (DATA, EPISODES):
        pq.write_table(pq.read_table(so101_copy / file).slice(0, 0), so101_copy / file)
    assert any("holds no complete episode" in f.text for f in _errors(so101_copy))
    with pytest.raises(DatasetError, match="holds no complete episode; record some first"):
        open_dataset(so101_copy)


def test_data_that_cannot_be_read_hide_what_else_there_is(so101_copy: Path) -> None:
    _cut(DATA, 0.9)(so101_copy)
    first, second = _errors(so101_copy)
    assert "not a complete parquet file" in first.text
    assert second.text == "no data file can be read, so nothing else was checked"


def test_a_frame_that_cannot_be_decoded_is_a_finding_beside_the_others(so101_copy: Path) -> None:
    data = bytearray((so101_copy / MP4).read_bytes())
    for i in range(len(data) // 3, len(data) // 3 + 400):
        data[i] ^= 0x5A
    (so101_copy / MP4).write_bytes(data)
    (error,) = _errors(so101_copy)
    assert "cannot be decoded" in error.text
    assert "Restore it" in error.text


def test_rows_with_another_task_than_the_episode_is_listed_with_are_a_warning(so101_copy: Path) -> None:
    """Folders merged by hand: the texts were numbered anew, and the data files kept their numbers."""
    kit.edit_parquet(so101_copy / DATA, lambda c: c.update(task_index=[0] * len(c["task_index"])))
    (warning,) = [f for f in _warnings(so101_copy) if f.feature == "task_index"]
    assert re.search(
        r"episode \d is listed with the task '.*', and its rows have '.*', which is taken", warning.text
    )
    assert not [f for f in _errors(so101_copy)]


def test_a_lost_column_is_told_once_and_no_other_is_offered_for_it(so101_copy: Path) -> None:
    kit.edit_parquet(so101_copy / DATA, lambda c: c.pop("action"))
    found = [f.text for f in check_dataset(so101_copy) if f.feature == "action"]
    assert len(found) == 1
    assert "is not a column of the data files" in found[0]


def test_statistics_that_cannot_be_read_are_not_called_missing(so101_copy: Path) -> None:
    (so101_copy / "meta/stats.json").write_text("")
    texts = [f.text for f in _warnings(so101_copy) if f.file == "meta/stats.json"]
    assert any("not readable" in text for text in texts)
    assert not any("is missing" in text for text in texts)


def test_statistics_of_other_data_are_a_warning(so101_copy: Path) -> None:
    kit.edit_json(so101_copy / "meta/stats.json", lambda s: s["action"].update(mean=[50.0] * 6))
    assert any(w.feature == "action" and "not those of the rows" in w.text for w in _warnings(so101_copy))


def test_a_declared_size_that_is_wrong_is_a_warning(so101_copy: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        info["features"][FRONT]["shape"] = [240, 320, 3]

    kit.edit_json(so101_copy / "meta/info.json", change)
    assert any("640x480" in w.text and "320x240" in w.text for w in _warnings(so101_copy))
    assert open_dataset(so101_copy).camera_size(FRONT) == (480, 640)


def test_offsets_off_by_float_noise_are_sound(so101_copy: Path) -> None:
    """Offsets are sums of floats; after thousands of episodes they are off by 1e-6."""
    kit.set_cell(so101_copy / EPISODES, f"videos/{FRONT}/from_timestamp", 3, 363 / 30 + 3e-6)
    assert _errors(so101_copy) == []


def test_a_wider_tolerance_takes_the_nearest_frame(so101_copy: Path) -> None:
    kit.set_cell(so101_copy / DATA, "timestamp", 250, 7 / 30 + 0.01)
    with pytest.raises(DatasetError, match=r"has no frame at 8.34"):
        open_dataset(so101_copy).frame(FRONT, 250)
    assert kit.read_code(open_dataset(so101_copy, tolerance_s=0.015).frame(FRONT, 250)) == (2, 7)


def test_offsets_added_up_over_files_are_repaired(recorded: Path, copy_of: Callable[[Path], Path]) -> None:
    """LeRobot 0.3.4 to 0.4.2 merged sets with offsets counted over all files instead of per file."""
    root = copy_of(recorded)
    key = f"videos/{kit.CAMERA}/from_timestamp"
    for episode, file in enumerate(sorted((root / "meta/episodes").rglob("*.parquet"))):
        start = sum([7, 5, 9, 6][:episode]) / 30
        kit.edit_parquet(file, lambda c, start=start: c.update({key: [start]}))
    ds = open_dataset(root)
    codes = [kit.read_code(f) for f in ds.frames(kit.CAMERA, np.arange(ds.n_frames))]
    assert codes == [(e, f) for e, n in enumerate([7, 5, 9, 6]) for f in range(n)]
    assert any("offset" in f.text for f in ds.findings)
    assert _errors(root) == []
