"""Datasets as people have them: other names, odd columns, depth, mixed sizes, lost files, still joints, subtasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset_kit as kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_sets as small

from edgevla.cli import main
from edgevla.dataset import check_dataset, facts_of, open_dataset
from edgevla.dataset.facts import DatasetFacts
from edgevla.dataset.layout import Finding
from edgevla.dataset.reader import Dataset
from edgevla.dataset.reading import DatasetReading
from edgevla.dataset.still import still_values
from edgevla.errors import DatasetError, UsageError

NAN = float("nan")


def texts(root: Path, severity: str) -> list[str]:
    return [f.text for f in check_dataset(root) if f.severity == severity]


def found(root: Path, words: str) -> Finding:
    return next(f for f in check_dataset(root) if words in f.text)


# -- columns that no policy uses -------------------------------------------------------------------------------


def test_statistics_over_the_last_axis_only_are_sound(tmp_path: Path) -> None:
    """LeRobot keeps four for a feature of shape [2, 4]."""
    grid = {"tactile": {"dtype": "float32", "shape": (2, 4), "names": None}}
    small.make(
        tmp_path / "set",
        features=grid,
        row=lambda e, f: {"tactile": np.arange(8, dtype=np.float32).reshape(2, 4) + f},
    )

    def over_last(stats: dict[str, Any]) -> None:
        for name, value in stats["tactile"].items():
            if name != "count":
                stats["tactile"][name] = np.mean(value, axis=0).tolist()

    values = open_dataset(tmp_path / "set").columns["tactile"].reshape(-1, 4)
    path = tmp_path / "set/meta/stats.json"
    kit.edit_json(path, over_last)
    kit.edit_json(path, lambda s: s["tactile"].update(std=values.std(0).tolist(), min=values.min(0).tolist()))
    kit.edit_json(path, lambda s: s["tactile"].update(max=values.max(0).tolist()))
    assert not [
        t for t in texts(tmp_path / "set", "error") + texts(tmp_path / "set", "warning") if "tactile" in t
    ]


def test_nan_where_no_policy_looks_is_a_warning(tmp_path: Path) -> None:
    load = {"observation.effort": {"dtype": "float32", "shape": (2,), "names": None}}
    small.make(
        tmp_path / "set", features=load, row=lambda e, f: {"observation.effort": np.ones(2, np.float32)}
    )
    kit.set_cell(tmp_path / "set" / small.DATA, "observation.effort", 3, NAN, 1)
    assert texts(tmp_path / "set", "error") == []
    assert found(tmp_path / "set", "'observation.effort' element 1 is nan in frame 3").severity == "warning"


def test_a_column_that_no_policy_uses_may_be_damaged(tmp_path: Path) -> None:
    more = {"next.reward": {"dtype": "float32", "shape": (2,), "names": None}}
    small.make(tmp_path / "set", features=more, row=lambda e, f: {"next.reward": np.ones(2, np.float32)})
    small.set_column(tmp_path / "set", "next.reward", pa.array([[1.0]] * 11))  # one number where two belong
    assert texts(tmp_path / "set", "error") == []
    assert "it is left out" in found(tmp_path / "set", "'next.reward' holds 11 numbers").text
    assert "next.reward" not in open_dataset(tmp_path / "set").columns


@pytest.mark.parametrize("dtype", ["audio", "pointcloud", "object"])
def test_an_observation_of_a_kind_that_is_not_known_is_a_warning(tmp_path: Path, dtype: str) -> None:
    small.add_feature(small.make(tmp_path / "set"), "observation.audio.mic", dtype, [2])
    assert texts(tmp_path / "set", "error") == []
    assert f"'observation.audio.mic' has the dtype '{dtype}', which is not known" in " ".join(
        texts(tmp_path / "set", "warning")
    )
    small.change_info(tmp_path / "set", lambda i: i["features"]["observation.state"].update(dtype=dtype))
    assert f"'observation.state' has the dtype '{dtype}'" in " ".join(texts(tmp_path / "set", "error"))


def test_what_info_json_says_and_nobody_knows_is_named(tmp_path: Path) -> None:
    def say(info: dict[str, Any]) -> None:
        info.update(gripper_inverted=True, splits={"train": "0:1", "val": "1:2"}, tools=[])
        info["features"]["action"].update(scale=0.5)
        info["features"]["observation.state"].update(fps=30)

    small.change_info(small.make(tmp_path / "set"), say)
    said = " ".join(texts(tmp_path / "set", "warning"))
    for words in (
        "'gripper_inverted', which EdgeVLA does not know",
        "feature 'action' says 'scale'",
        "feature 'observation.state' says 30 fps",
        "(train 0:1, val 1:2); training takes all of them unless told otherwise: --episodes 0:1",
    ):
        assert words in said
    assert "tools" not in said


# -- pictures ---------------------------------------------------------------------------------------------------


def mixed_sizes(root: Path) -> Path:
    """Two recordings of 64x64 and 48x80 in one table."""
    small.make(root, lengths=(4, 3, 3), size=(64, 64))
    other = open_dataset(small.make(root.parent / "other", lengths=(4, 3, 3), size=(48, 80)))
    cells = pq.read_table(root / small.DATA).column(small.TOP).to_pylist()
    wide = pq.read_table(other.root / small.DATA).column(small.TOP).to_pylist()
    small.set_pictures(root, small.TOP, [c["bytes"] for c in cells[:4] + wide[4:7] + cells[7:]])
    return root


def test_episodes_of_different_picture_sizes_are_named(tmp_path: Path) -> None:
    error = found(mixed_sizes(tmp_path / "set"), "the pictures of camera 'top'")
    assert error.severity == "error"
    assert "64x64 in episodes 0, 2, 80x48 in episode 1" in error.text
    assert "--episodes 0,2" in error.text


def test_videos_of_different_sizes_are_named(tmp_path: Path) -> None:
    """One file per recording, and both in one file, as joining them by stream copy leaves it."""
    root = small.make(tmp_path / "set", lengths=(5, 5), dtype="video", size=(64, 64))
    video = root / f"videos/{small.TOP}/chunk-000/file-000.mp4"
    wide = [np.full((48, 80, 3), 20 * i, np.uint8) for i in range(5)]
    kit.encode(root / f"videos/{small.TOP}/chunk-000/file-001.mp4", wide, "libsvtav1", {"g": "2"}, fps=10)

    def second_file(columns: dict[str, Any]) -> None:
        columns[f"videos/{small.TOP}/file_index"][1] = 1
        columns[f"videos/{small.TOP}/from_timestamp"][1] = 0.0
        columns[f"videos/{small.TOP}/to_timestamp"][1] = 0.5

    kit.edit_parquet(root / "meta/episodes/chunk-000/file-000.parquet", second_file)
    assert video.is_file()
    error = found(root, "the pictures of camera 'top'")
    assert error.severity == "error"
    assert "64x64 in episode 0, 80x48 in episode 1" in error.text


def test_sixteen_bit_pictures_of_one_channel_are_no_camera(tmp_path: Path) -> None:
    """500 to 13100 mm would be 1 to 51 of 255."""
    root = small.make(tmp_path / "set", cameras=(small.TOP, "observation.images.depth"))
    far = [small.png16(np.full((32, 32), 500 + 1200 * i, np.uint16)) for i in range(11)]
    small.set_pictures(root, "observation.images.depth", far)
    assert open_dataset(root).cameras == [small.TOP]
    warning = found(
        root, "'observation.images.depth' holds pictures of one channel with more than 8 bits (16-bit gray)"
    )
    assert "it is left out" in warning.text
    assert texts(root, "error") == []


@pytest.mark.parametrize("pix_fmt", ["gray10le", "gray12le", "gray16le"])
def test_deep_gray_videos_are_no_camera(tmp_path: Path, pix_fmt: str) -> None:
    root = small.make(tmp_path / "set", lengths=(5,))
    small.add_feature(
        root, "observation.images.depth", "video", [32, 32, 3], names=["height", "width", "channels"]
    )
    small.gray_video(root / "videos/observation.images.depth/chunk-000/file-000.mp4", 5, pix_fmt)

    def spans(columns: dict[str, Any]) -> None:
        at = "videos/observation.images.depth"
        columns |= {f"{at}/chunk_index": [0], f"{at}/file_index": [0]}

    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = "videos/observation.images.depth"
    for name, value in (
        ("chunk_index", 0),
        ("file_index", 0),
        ("from_timestamp", 0.0),
        ("to_timestamp", 0.5),
    ):
        table = table.append_column(f"{at}/{name}", pa.array([value]))
    pq.write_table(table, path)
    assert open_dataset(root).cameras == [small.TOP]
    assert f"({pix_fmt})" in found(root, "observation.images.depth").text


@pytest.mark.parametrize("where", ["info", "video_info", None])
@pytest.mark.parametrize("key", ["is_depth_map", "video.is_depth_map"])
def test_depth_features_are_read_past(tmp_path: Path, key: str, where: str | None) -> None:
    """Of any shape, with a unit or without, wherever the mark stands."""
    said = {key: True, "depth_unit": "mm", "video.depth_min": 0.1}
    spec = {where: said} if where else said
    small.add_feature(small.make(tmp_path / "set"), "observation.images.depth", "video", [32, 32], **spec)
    assert open_dataset(tmp_path / "set").cameras == [small.TOP]
    assert texts(tmp_path / "set", "error") == []
    assert "is a depth map: it is left out" in found(tmp_path / "set", "observation.images.depth").text


# -- names ------------------------------------------------------------------------------------------------------

OPENPI = {"observation.state": "state", "action": "actions", small.TOP: "image"}


def openpi(root: Path, **more: Any) -> Path:
    return small.make(root, state="state", action="actions", cameras=("image", "wrist_image"), **more)


def test_features_are_read_under_the_names_of_policies(tmp_path: Path) -> None:
    root, plain = openpi(tmp_path / "openpi"), small.make(tmp_path / "plain")
    data: Dataset = open_dataset(root, reading=DatasetReading(OPENPI))
    assert data.cameras == [small.TOP, "wrist_image"]
    np.testing.assert_array_equal(data.columns["action"], open_dataset(plain).columns["action"])
    assert data.frame(small.TOP, 3).shape == (32, 32, 3)
    assert set(data.stats) >= {"observation.state", "action", small.TOP}
    facts = facts_of(data)
    assert facts.features["action"].names == tuple(small.JOINTS)
    assert facts.reading.names == OPENPI
    again = DatasetFacts.from_json(json.loads(json.dumps(facts.to_json())))
    assert again == facts
    assert open_dataset(root, remembered=again.reading).sha256 == data.sha256


def test_a_remembered_reading_leaves_alone_what_it_does_not_fit(tmp_path: Path) -> None:
    """A policy of an openpi export goes on with data that has the usual names, and no subtasks."""
    plain = open_dataset(small.make(tmp_path / "plain"))
    old = DatasetReading(OPENPI, ("observation.effort",), "subtask")
    assert open_dataset(tmp_path / "plain", remembered=old).sha256 == plain.sha256


def test_inspect_lists_what_there_is_and_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(openpi(tmp_path / "openpi"))
    assert main(["inspect", root]) == 0
    out = capsys.readouterr().out
    assert "no feature is named 'action'" in out
    assert "--feature action=actions" in out
    assert "--feature observation.state=state" in out
    words = [f"{name}={source}" for name, source in OPENPI.items()]
    assert main(["inspect", root, "--feature", *words, "--without", "wrist_image"]) == 0
    out = capsys.readouterr().out
    assert "observation.state: float32 [3]" in out
    assert "(the dataset's 'state')" in out
    assert "wrist_image" not in out
    assert "no feature is named" not in out


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (DatasetReading({"action": "act"}), "; did you mean 'actions'"),
        (DatasetReading({"state": "observation.state"}), "the dataset has no feature 'observation.state'"),
        (DatasetReading({"actions": "action"}), "the dataset has no feature 'action'"),
        (
            DatasetReading({"action": "state", "observation.state": "state"}),
            "gives 'state' to action and to observation.state",
        ),
        (
            DatasetReading({"observation.state": "image"}),
            "'image' is image [32, 32, 3], not a row of numbers",
        ),
        (DatasetReading({small.TOP: "state"}), "'state' is float32 [3], not a camera"),
        (DatasetReading({"observation.stat": "state"}), "no policy uses 'observation.stat'"),
        (DatasetReading({}, ("effort",)), "--without effort: the dataset has no such feature"),
        (DatasetReading({"action": "actions"}, ("actions",)), "nothing can be learnt without it"),
        (DatasetReading({}, (), "subtask"), "has no subtasks"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(tmp_path: Path, reading: DatasetReading, words: str) -> None:
    with pytest.raises(UsageError) as error:
        open_dataset(openpi(tmp_path / "set"), reading=reading)
    assert words in str(error.value)


def test_a_mistyped_name_is_not_taken_for_an_exchanged_pair(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set")
    with pytest.raises(UsageError, match=r"no feature 'actoin'; .*; did you mean 'action'"):
        open_dataset(root, reading=DatasetReading({"action": "actoin"}))


def test_what_is_left_out_may_be_damaged(tmp_path: Path) -> None:
    environment = {"observation.environment_state": {"dtype": "float32", "shape": (2,), "names": None}}
    root = small.make(
        tmp_path / "set",
        features=environment,
        row=lambda e, f: {"observation.environment_state": np.ones(2, np.float32)},
    )
    kit.set_cell(root / small.DATA, "observation.environment_state", 2, NAN, 0)
    assert "'observation.environment_state' element 0 is nan" in " ".join(texts(root, "error"))
    data = open_dataset(root, reading=DatasetReading({}, ("observation.environment_state",)))
    assert "observation.environment_state" not in {
        *data.columns,
        *data.info.features,
        *facts_of(data).features,
    }


# -- episodes ---------------------------------------------------------------------------------------------------


def test_other_episodes_open_when_one_is_lost(so101_v21: Path, copy_of: Any) -> None:
    root = copy_of(so101_v21)
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    assert open_dataset(root, [0, 2]).n_frames == 118 + 120
    with pytest.raises(DatasetError, match=r"episode_000001.parquet is missing .*--episodes"):
        open_dataset(root)


@pytest.mark.parametrize("has_file", [True, False])
def test_an_episode_of_no_frames_is_a_warning(so101_v21: Path, copy_of: Any, has_file: bool) -> None:
    root = copy_of(so101_v21)
    file = root / "data/chunk-000/episode_000001.parquet"
    if has_file:
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    else:
        file.unlink()

    def empty(line: dict[str, Any]) -> dict[str, Any]:
        return {**line, "length": 0} if line["episode_index"] == 1 else line

    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    kit.write_jsonl(root / "meta/episodes.jsonl", [empty(line) for line in lines])
    small.change_info(root, lambda info: info.update(total_frames=473 - 125))
    assert texts(root, "error") == []
    assert "episode 1 of" in found(root, "is empty: it has no frames").text
    assert [e.index for e in open_dataset(root, [0, 1, 2]).episodes] == [0, 2]


# -- still joints -------------------------------------------------------------------------------------------------


def test_a_joint_that_never_moves_is_named(tmp_path: Path) -> None:
    def stiff(episode: int, frame: int) -> np.ndarray:
        return np.array([10 * np.sin(frame), 0.0878 * (frame % 2) - 30, 12.5], np.float32)

    warning = found(small.make(tmp_path / "set", move=stiff), "never move in the training data")
    assert warning.severity == "warning"
    assert "gripper.pos (12.5 percent)" in warning.text
    assert "elbow.pos (-29.9" in warning.text, "one step of its encoder is no motion"
    assert "shoulder.pos" not in warning.text


def test_what_is_still_is_told_by_whichever_statistics_there_are() -> None:
    rows = np.array([[1, 5, 0], [1, 6, 0.04]], np.float64)
    stats = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    assert still_values(stats) == [1.0, None, None]
    assert still_values({k: stats[k] for k in ("mean", "std")}) == [1.0, None, None]
    assert still_values(stats, ("deg", "deg", "deg"))[2] == pytest.approx(0.02)
    assert still_values(stats, ("m", "m", "m")) == [1.0, None, None], "four centimetres are a motion"
    assert still_values({"count": np.ones(1)}) == []


# -- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["mean", "std", "max"])
def test_statistics_of_other_data_are_said(tmp_path: Path, statistic: str) -> None:
    root = small.make(tmp_path / "set")
    path = root / "meta/stats.json"
    kit.edit_json(
        path, lambda s: s["action"].update({statistic: [v * 3 + 5 for v in s["action"][statistic]]})
    )
    kit.edit_json(path, lambda s: s[small.TOP].update(mean=[[[0.1]], [[0.1]], [[0.1]]]))
    assert f"statistics of 'action' in meta/stats.json are not those of the rows ({statistic}" in " ".join(
        texts(root, "warning")
    )
    assert found(root, "statistics of camera 'top' in meta/stats.json are not those of its pictures")


def test_quantiles_that_were_merged_as_means_are_said(so101: Path, tmp_path: Path) -> None:
    text = found(so101, "quantiles in meta/stats.json are means of the episodes'").text
    assert "q01 of 'action' element 4 is -37.63, of the rows -39.87" in text
    assert not [t for t in texts(small.make(tmp_path / "ours"), "warning") if "quantiles" in t]


# -- subtasks -----------------------------------------------------------------------------------------------------


def by_number(root: Path) -> None:
    numbers = [0, 0, 0, 1, 1, 1, 0, 0, -1, -1, -1]
    small.add_feature(root, "subtask_index", "int64")
    small.set_column(root, "subtask_index", pa.array(numbers, pa.int64()))
    table = pa.table({"subtask_index": [1, 0], "__index_level_0__": ["grasp", "reach"]})
    pq.write_table(table, root / "meta/subtasks.parquet")


def by_text(root: Path) -> None:
    small.add_feature(root, "subtask", "string")
    small.set_column(
        root, "subtask", pa.array(["reach"] * 3 + ["grasp"] * 3 + ["reach"] * 2 + ["", " ", None])
    )


def by_language(root: Path, *, is_repeated: bool = True) -> None:
    """Frames are 0.1 s apart; the second episode's last subtask is never told, but its first ends nowhere."""
    first = [("plan", "1. reach 2. grasp", 0.0), ("subtask", "reach", 0.0), ("subtask", "grasp", 0.3)]
    second = [("subtask", "reach", 0.2)]
    rows = [first if is_repeated or i == 0 else [] for i in range(6)]
    rows += [second if is_repeated or i == 2 else [] for i in range(5)]
    small.add_feature(root, "language_persistent", "language")
    small.add_feature(root, "language_events", "language")
    small.set_column(root, "language_persistent", small.language(rows))
    small.set_column(root, "language_events", small.language([[]] * 11))


def by_language_once(root: Path) -> None:
    by_language(root, is_repeated=False)


SPOKEN = ["reach"] * 3 + ["grasp"] * 3


@pytest.mark.parametrize(
    ("write", "second"),
    [
        (by_number, ["reach", "reach", "task 1", "task 1", "task 1"]),
        (by_text, ["reach", "reach", "task 1", "task 1", "task 1"]),
        (by_language, ["task 1", "task 1", "reach", "reach", "reach"]),
        (by_language_once, ["task 1", "task 1", "reach", "reach", "reach"]),
    ],
)
def test_the_subtask_can_be_the_instruction(tmp_path: Path, write: Any, second: list[str]) -> None:
    root = small.make(tmp_path / "set")
    write(root)
    assert [f.text for f in check_dataset(root) if f.severity == "error"] == []
    usual = open_dataset(root)
    assert [usual.task(row) for row in range(11)] == ["task 0"] * 6 + ["task 1"] * 5
    data = open_dataset(root, reading=DatasetReading(task_from="subtask"))
    assert [data.task(row) for row in range(11)] == SPOKEN + second
    n = second.count("task 1")
    assert f"{n} of 11 frames have no subtask: their task is taken instead" in " ".join(
        f.text for f in data.findings
    )
    assert set(facts_of(data).tasks) == {"reach", "grasp", "task 1"}
    assert facts_of(data).reading.task_from == "subtask"
    assert data.sha256 != usual.sha256
    first = open_dataset(root, [0], reading=DatasetReading(task_from="subtask"))
    assert facts_of(first).tasks == ["reach", "grasp"]
    assert not [f for f in first.findings if "no subtask" in f.text]


def test_language_columns_are_read_past(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set")
    by_language(root)
    small.change_info(
        root, lambda info: info.update(tools=[{"type": "function", "function": {"name": "say"}}])
    )
    assert [f.text for f in check_dataset(root)] == []


def test_annotations_of_another_form_are_refused_in_words(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set")
    small.add_feature(root, "language_persistent", "language")
    small.set_column(root, "language_persistent", pa.array(["reach"] * 11))
    open_dataset(root)
    with pytest.raises(DatasetError, match="is not a list of annotations with style, content and timestamp"):
        open_dataset(root, reading=DatasetReading(task_from="subtask"))
