"""Episodes taken out, datasets joined, divided and relabelled: rows, numbers, statistics and pictures stay right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import dataset_kit as kit
import numpy as np
import pyarrow.parquet as pq
import pytest
import small_sets

from edgevla.cli import main
from edgevla.dataset import check_dataset, open_dataset
from edgevla.dataset.edit import delete, merge, parse_split, retask
from edgevla.dataset.stated import read_stated
from edgevla.dataset.video import index_video
from edgevla.dataset.writer import DatasetWriter
from edgevla.errors import DatasetError, UsageError

LENGTHS = [7, 5, 9, 6]
"""Of the fixture `recorded`, whose files hold one or two episodes each."""


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is synced when is nothing that a test can see; a busy disk takes a second for each file."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def assert_made_of(root: Path, sources: list[tuple[int, int]], tasks: list[str] | None = None) -> None:
    """Episode i of `root` is the recorded episode `sources[i][0]` of `sources[i][1]` rows, to the last picture."""
    dataset = open_dataset(root)
    assert [e.length for e in dataset.episodes] == [length for _, length in sources]
    for episode, (source, length) in zip(dataset.episodes, sources, strict=True):
        rows = np.arange(episode.from_index, episode.to_index)
        expected = np.stack([kit.row(source, f)["observation.state"] for f in range(length)])
        np.testing.assert_array_equal(dataset.columns["observation.state"][rows], expected)
        shown = [kit.read_code(picture) for picture in dataset.frames(kit.CAMERA, rows)]
        assert shown == [(source, f) for f in range(length)]
        task = dataset.task_table[int(dataset.columns["task_index"][rows[0]])]
        assert task == (kit.task_of(source) if tasks is None else tasks[episode.index])
        assert episode.tasks == (task,)
    assert_sound(root)
    assert_counted(root)


def assert_sound(root: Path) -> None:
    assert [f.text for f in check_dataset(root) if "never moves" not in f.text] == []  # one episode's gripper


def assert_counted(root: Path) -> None:
    """What a reader that trusts file numbers and indices finds: each episode where its row says."""
    info = json.loads((root / "meta/info.json").read_text())
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    start = 0
    for number, row in enumerate(rows):
        path = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        table = pq.read_table(root / path).to_pylist()
        mine = [r for r in table if r["episode_index"] == number]
        assert [r["index"] for r in mine] == list(range(start, start + row["length"]))
        assert [r["frame_index"] for r in mine] == list(range(row["length"]))
        assert (row["episode_index"], row["dataset_from_index"]) == (number, start)
        assert row["stats/index/min"] == [start]
        start = row["dataset_to_index"]
    assert (info["total_episodes"], info["total_frames"]) == (len(rows), start)
    assert info["splits"] == {"train": f"0:{len(rows)}"}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# -- delete -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gone", "left"), [("0", [1, 2, 3]), ("1,2", [0, 3]), ("3", [0, 1, 2])])
def test_an_episode_that_is_deleted_is_gone_and_the_others_are_what_they_were(recorded, copy_of, gone, left):
    root = copy_of(recorded)
    delete(root, gone, None, quiet)
    assert_made_of(root, [(e, LENGTHS[e]) for e in left])
    rows = sum(LENGTHS[e] for e in left)
    assert sum(index_video(p).n_frames for p in root.rglob("*.mp4")) == rows  # gone from the videos, too
    assert not [p for p in root.parent.iterdir() if p.name.startswith(".")]


def test_episodes_of_one_video_are_cut_out_of_it_without_encoding(tmp_path):
    root = tmp_path / "one"
    kit.record(root, LENGTHS)  # one file holds all of them
    before = open_dataset(root).frames(kit.CAMERA, np.arange(12, 21))
    delete(root, "1,3", None, quiet)
    assert_made_of(root, [(0, 7), (2, 9)])
    np.testing.assert_array_equal(open_dataset(root).frames(kit.CAMERA, np.arange(7, 16)), before)


def test_a_video_without_keyframes_at_the_borders_stays_whole_and_that_is_said(tmp_path):
    root = tmp_path / "long"
    kit.record(root, [6, 5])
    path = root / f"videos/{kit.CAMERA}/chunk-000/file-000.mp4"
    frames = [kit.code_frame(e, f) for e, n in ((0, 6), (1, 5)) for f in range(n)]
    kit.encode(path, frames, "libx264", {"g": "250", "bf": "0", "crf": "10"})
    said: list[str] = []
    delete(root, "0", None, said.append)
    assert_made_of(root, [(1, 5)])
    assert "is kept whole, with the pictures of 6 rows that are gone" in said[0]


def test_what_a_recording_says_of_itself_follows_its_episodes(recorded, copy_of):
    root = copy_of(recorded)
    path = root / "meta/edgevla.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "success": [True, False, None, True]}))
    (root / "README.md").write_text("my cubes")
    delete(root, "0", None, quiet)
    stated = read_stated(root)
    assert stated.success == (False, None, True)
    assert len(stated.repeated_pictures[kit.CAMERA]) == 3
    assert (root / "README.md").read_text() == "my cubes"


def test_a_damaged_episode_can_be_deleted_and_the_others_saved(recorded, copy_of):
    root = copy_of(recorded)
    rows = pq.read_table(root / "meta/episodes").sort_by("episode_index").to_pylist()
    number = rows[3][f"videos/{kit.CAMERA}/chunk_index"], rows[3][f"videos/{kit.CAMERA}/file_index"]
    (root / "videos" / kit.CAMERA / f"chunk-{number[0]:03d}" / f"file-{number[1]:03d}.mp4").unlink()
    with pytest.raises(DatasetError, match="is missing"):
        delete(root, "0", None, quiet)
    delete(root, "3", None, quiet)
    assert_made_of(root, [(0, 7), (1, 5), (2, 9)])


def test_recording_goes_on_behind_what_is_left(recorded, copy_of):
    root = copy_of(recorded)
    delete(root, "3", None, quiet)
    kit.record(root, [4], resume=True)
    dataset = open_dataset(root)
    assert [e.length for e in dataset.episodes] == [7, 5, 9, 4]
    assert kit.read_code(dataset.frame(kit.CAMERA, 21)) == (3, 0)
    assert_sound(root)


# -- merge, split, retask -----------------------------------------------------------------------------------


def test_merged_datasets_stand_one_behind_the_other_with_one_table_of_tasks(recorded, copy_of, tmp_path):
    other = copy_of(recorded)
    retask(other, "place the cube", "0", None, quiet)
    retask(other, "a new one", "2", None, quiet)
    merge(recorded, [other], tmp_path / "all", quiet)
    known = [kit.task_of(e) for e in range(4)]
    tasks = [*known, "place the cube", known[1], "a new one", known[3]]
    assert_made_of(tmp_path / "all", [(e, LENGTHS[e]) for e in (0, 1, 2, 3) * 2], tasks)
    assert set(open_dataset(tmp_path / "all").task_table.values()) == {*known, "a new one"}


def test_datasets_that_differ_are_not_merged_and_every_difference_is_named(recorded, tmp_path, capsys):
    other = tmp_path / "other"
    named = kit.features()
    named["action"] = {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]}
    with DatasetWriter(other, fps=25, features=named, robot_type="koch") as writer:
        writer.add_frame({**kit.row(0, 0), "action": np.zeros(2, np.float32)}, "wave")
        writer.save_episode()
    assert main(["dataset", str(recorded), "merge", str(other), "-o", str(tmp_path / "all")]) == 1
    said = capsys.readouterr().err
    for words in (
        "its robot is so101_follower, that of",
        "koch",
        "it has 30 fps",
        "25",
        "its 'action'",
        "[2]",
    ):
        assert words in said
    assert not (tmp_path / "all").exists()


def test_a_split_makes_whole_datasets_and_says_what_is_in_none(recorded, tmp_path, capsys):
    out = tmp_path / "parts"
    assert main(["dataset", str(recorded), "split", "train=0:2", "val=3", "-o", str(out)]) == 0
    assert "episodes 2 are in none" in capsys.readouterr().out
    assert_made_of(out / "train", [(0, 7), (1, 5)])
    assert_made_of(out / "val", [(3, 6)])


def test_shares_of_a_split_are_whole_episodes_one_after_the_other():
    assert parse_split(["a=80%", "b=20%"], 10) == {"a": list(range(8)), "b": [8, 9]}
    for specs, words in (
        (["a=80%", "b=30%"], "add up to 110 %"),
        (["a=0:3", "b=2:4"], "episodes 2 are in another part"),
        (["a=1", "a=2"], "names 'a' twice"),
        (["a=1%"], "no whole episode"),
        (["../a=1"], "not of the form"),
        (["a=11"], "outside 0 ... 9"),
    ):
        with pytest.raises(UsageError, match=words.replace("+", r"\+")):
            parse_split(specs, 10)


def test_another_instruction_reaches_rows_table_and_episodes(recorded, copy_of):
    root = copy_of(recorded)
    videos = {k: v for k, v in contents(root).items() if k.startswith("videos")}
    retask(root, "stack the cubes", "1-2", None, quiet)
    tasks = [kit.task_of(0), "stack the cubes", "stack the cubes", kit.task_of(3)]
    assert_made_of(root, [(e, LENGTHS[e]) for e in range(4)], tasks)
    assert sorted(v for k, v in contents(root).items() if k.startswith("videos")) == sorted(videos.values())


def test_what_lerobot_wrote_is_edited_too_and_columns_nobody_knows_survive(pusht_copy):
    path = pusht_copy / small_sets.DATA
    table = pq.read_table(path)
    small_sets.add_feature(pusht_copy, "note", "string")
    small_sets.set_column(pusht_copy, "note", table.column("index").cast("string"))
    n = len(open_dataset(pusht_copy).episodes)
    delete(pusht_copy, f"0:{n - 1}", None, quiet)
    left = pq.read_table(path)
    first = table.column("episode_index").to_pylist().index(n - 1)
    assert left.column("note").to_pylist()[0] == str(first)
    assert left.column("action").to_pylist() == table.column("action").to_pylist()[first:]
    assert_sound(pusht_copy)


def test_pictures_in_the_table_go_with_their_rows(tmp_path):
    root = small_sets.make(tmp_path / "set", lengths=(4, 3, 5))
    pictures = open_dataset(root).frames(small_sets.TOP, np.arange(7, 12))
    delete(root, "0,1", None, quiet)
    np.testing.assert_array_equal(open_dataset(root).frames(small_sets.TOP, np.arange(5)), pictures)


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["delete", "4"], 2, "outside 0 ... 3"),
        (["delete", "x"], 2, "not of the form"),
        (["delete", "0:4"], 2, "leaves no episode"),
        (["retask", " "], 2, "the instruction is empty"),
        (["retask", "put it\nthere"], 2, "the instruction holds a control character"),
        (["retask", "on and " * 1000], 2, "at most 1000 are taken"),
        (["delete", "0", "-o", "HERE"], 1, "exists already"),
        (["merge", "nowhere", "-o", "out"], 1, "nowhere"),
        (["merge", "HERE", "-o", "HERE/all"], 2, "name a folder outside of it"),
        (["split", "my part=50%", "-o", "out"], 2, "NAME of letters, digits, _ . and -"),
        (["delete", "3-1"], 2, "'3-1' names no episodes: 3-1 ends before"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(recorded, copy_of, capsys, words, code, said):
    root = copy_of(recorded)
    before = contents(root)
    assert main(["dataset", str(root), *[w.replace("HERE", str(root)) for w in words]]) == code
    assert said in capsys.readouterr().err
    assert contents(root) == before


def test_who_stands_in_a_dataset_that_is_replaced_hears_how_to_go_on(recorded, copy_of, capsys, monkeypatch):
    root = copy_of(recorded)
    monkeypatch.chdir(root / "meta")
    assert main(["dataset", str(root), "delete", "0"]) == 0
    assert 'cd "$PWD"' in capsys.readouterr().err
    monkeypatch.chdir(root)
    assert main(["dataset", ".", "check"]) == 0
    assert main(["dataset", ".", "delete", "0"]) == 0
    assert 'cd "$PWD"' in capsys.readouterr().err


def test_check_says_what_inspect_says(recorded, capsys):
    assert main(["inspect", str(recorded)]) == 0
    expected = capsys.readouterr().out
    assert main(["dataset", str(recorded), "check"]) == 0
    assert capsys.readouterr().out == expected
    assert main(["dataset", str(recorded), "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "dataset"


def test_an_older_version_is_refused_with_the_way_to_convert_it(so101_v21):
    with pytest.raises(DatasetError, match=r"v2\.1; only v3\.0 is edited.*convert_dataset_v21_to_v30"):
        delete(so101_v21, "0", None, quiet)


def test_a_dataset_that_is_being_recorded_is_left_alone(recorded, copy_of, tmp_path):
    root = copy_of(recorded)
    with DatasetWriter(root, fps=30, features=kit.features(), robot_type="so101_follower", resume=True):
        for act in (
            lambda: delete(root, "0", None, quiet),
            lambda: merge(recorded, [root], tmp_path / "all", quiet),
        ):
            with pytest.raises(DatasetError, match="is being recorded into, or edited, right now"):
                act()
    delete(root, "0", None, quiet)


def test_a_full_disk_is_said_before_anything_is_written(recorded, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DatasetError, match="0 MB of room, and up to"):
        delete(recorded, "0", tmp_path / "out", quiet)
    assert list(tmp_path.iterdir()) == []


# -- killed -------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_the_dataset_is_the_old_or_the_new_one(recorded, tmp_path):
    """Moments over the whole edit and beyond, counted in files that it has opened, not in time."""
    old, new = contents(recorded), tmp_path / "new"
    delete(recorded, "1", new, quiet)
    wanted = contents(new)
    seen = set()
    for n_opened in (6, 18, 30, 45, 60, 1000):
        root = tmp_path / f"killed-{n_opened}"
        shutil.copytree(recorded, root)
        killed = os.fork()
        if killed == 0:
            _die_after(n_opened)
            delete(root, "1", None, quiet)
            os._exit(0)
        os.waitpid(killed, 0)
        found = contents(root)
        assert found in (old, wanted), f"killed at {n_opened}: neither the old dataset nor the new one"
        seen.add(found == wanted)
        if found == old:
            delete(root, "1", None, quiet)  # what was left beside it is no hindrance
            assert contents(root) == wanted
    assert seen == {True, False}


def _die_after(n_opened: int) -> None:
    count = 0

    def hook(event: str, _: object) -> None:
        nonlocal count
        if event in (
            "open",
            "os.rename",
            "os.link",
            "os.mkdir",
            "os.remove",
            "shutil.rmtree",
            "ctypes.dlsym",
        ):
            count += 1
            if count >= n_opened:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
