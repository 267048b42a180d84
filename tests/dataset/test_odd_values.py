"""Values, statistics and videos that can be read and do not mean what is written beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataset_kit as kit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_sets as small

from edgevla.dataset import check_dataset, open_dataset
from edgevla.errors import DatasetError

EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def texts(root: Path, severity: str) -> str:
    return " | ".join(f.text for f in check_dataset(root) if f.severity == severity)


def declare(root: Path, name: str, **changes: Any) -> None:
    small.change_info(root, lambda info: info["features"][name].update(changes))


def test_a_number_beyond_float32_is_damage(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set")
    rows = pq.read_table(root / small.DATA)["action"].to_pylist()
    rows[2][1] = 1e300
    small.set_column(root, "action", pa.array(rows, pa.list_(pa.float64())))
    declare(root, "action", dtype="float64")
    assert "'action' element 1 ('elbow.pos') is 1e+300 in frame 2" in texts(root, "error")


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("int64", 1.5, "holds 1.5, which is no int64"),
        ("uint8", 300, "holds 300, which is no uint8"),
        ("int8", -200, "holds -200, which is no int8"),
        ("bool", 7, "holds 7, which is no bool"),
    ],
)
def test_a_value_that_its_dtype_cannot_hold_is_not_cut_to_fit(
    tmp_path: Path, dtype: str, value: float, said: str
) -> None:
    root = small.make(tmp_path / "set")
    n = pq.read_table(root / small.DATA).num_rows
    small.set_column(root, "observation.state", pa.array([[1, 0, 1]] * (n - 1) + [[1, 0, value]]))
    declare(root, "observation.state", dtype=dtype)
    with pytest.raises(DatasetError, match=said):
        open_dataset(root)


@pytest.mark.parametrize(
    "change",
    [
        {"std": [float("nan")] * 3},
        {"q99": [1.0, float("inf"), 1.0], "max": [float("nan")] * 3},
        {"mean": 0.0},
        {"mean": [1.0, 2.0]},
    ],
    ids=["nan", "of one only", "one for all", "too few"],
)
def test_stored_statistics_that_are_none_are_said_and_those_of_the_rows_taken(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    root = small.make(tmp_path / "set")
    kit.edit_json(root / "meta/stats.json", lambda stats: stats["action"].update(change))
    assert texts(root, "error") == ""
    assert "statistics of 'action' in meta/stats.json are not those of the rows" in texts(root, "warning")


def test_two_episodes_do_not_show_the_same_frames(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set", dtype="video", size=(64, 64))
    start = f"videos/{small.TOP}/from_timestamp"
    kit.edit_parquet(root / EPISODES, lambda c: c.update({start: [0.0, 0.3]}))
    said = f"episodes 0 and 1, camera '{small.TOP}': both have frame 3 of videos/"
    assert said in texts(root, "error")
    assert open_dataset(root, episodes=[1]).n_frames == 5  # the cure that is named


def test_joints_of_one_name_are_said_before_a_training_is_spent_on_them(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set")
    declare(root, "action", names=["shoulder.pos", "shoulder.pos", "gripper.pos"])
    assert "feature 'action' names shoulder.pos more than once" in texts(root, "warning")


def test_an_action_of_several_axes_trains_no_policy(tmp_path: Path) -> None:
    root = small.make(tmp_path / "set")
    declare(root, "action", shape=[3, 1])
    assert "'action' has shape [3, 1]; policies take one row of numbers" in texts(root, "warning")
