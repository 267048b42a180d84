"""Episodes of another kind never join a dataset: what it says once for all of them must stay true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset_kit as kit
import pytest

from edgevla.dataset import DatasetWriter, facts_of, open_dataset
from edgevla.dataset.check import check_dataset
from edgevla.errors import DatasetError


@pytest.fixture
def degrees(tmp_path: Path) -> Path:
    """One episode of a so101, in degrees."""
    kit.record(tmp_path / "mine", [5], joint_units="degrees")
    return tmp_path / "mine"


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def vectors(names: list[str]) -> dict[str, Any]:
    named = {"dtype": "float32", "shape": (len(names),), "names": names}
    return {**kit.features(), "action": named, "observation.state": named}


def without(name: str) -> dict[str, Any]:
    return {n: f for n, f in kit.features().items() if n != name}


WRIST = {"observation.images.wrist": kit.features()[kit.CAMERA]}
AS_PICTURES = {kit.CAMERA: {**kit.features()[kit.CAMERA], "dtype": "image"}}

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"joint_units": "range100"}, "its joints are in degrees, those of this recording in range100"),
    (
        {"joint_units": None},
        "its joints are in degrees, those of this recording in units that nothing states",
    ),
    ({"robot_type": "koch"}, "its robot is so101_follower, that of this recording is koch"),
    ({"fps": 25}, "it has 30 fps, this recording 25"),
    (
        {"features": vectors(kit.JOINTS[1:] + kit.JOINTS[:1])},
        "its 'action' is shoulder_pan.pos, shoulder_lift.pos, gripper.pos, that of this recording is shoulder_lift.pos",
    ),
    (
        {"features": vectors(kit.JOINTS[:2])},
        r"its 'action' has the shape \[3\], that of this recording \[2\]",
    ),
    ({"features": {**kit.features(), **WRIST}}, "it lacks the camera 'wrist', which this recording has"),
    ({"features": without(kit.CAMERA)}, "it has the camera 'front', which this recording lacks"),
    (
        {"features": kit.features(age=False)},
        "it has the column 'camera_age_ms.front', which this recording lacks",
    ),
    ({"features": kit.features((48, 64))}, "its 'front' has 128x96 px, that of this recording 64x48"),
    (
        {"features": {**kit.features(), **AS_PICTURES}},
        "its 'front' is stored as video, that of this recording as image",
    ),
]


@pytest.mark.parametrize(("change", "words"), OTHERS, ids=[words[:40] for _, words in OTHERS])
def test_what_differs_is_refused_and_both_sides_are_named(
    degrees: Path, change: dict[str, Any], words: str
) -> None:
    before = snapshot(degrees)
    kind = {"fps": 30, "features": kit.features(), "robot_type": "so101_follower", "joint_units": "degrees"}
    with pytest.raises(DatasetError, match=words) as caught:
        DatasetWriter(degrees, resume=True, **{**kind, **change})
    assert "Record into another folder" in str(caught.value)
    assert snapshot(degrees) == before, "nothing of what is there has changed"


def test_all_differences_are_named_at_once(degrees: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"its joints are in degrees.*; its robot is so101_follower.*; it has 30 fps"
    ):
        DatasetWriter(
            degrees, resume=True, fps=50, features=kit.features(), robot_type="koch", joint_units="range100"
        )


def test_the_same_robot_under_lerobot_s_name_may_join(degrees: Path) -> None:
    kind = {"fps": 30, "features": kit.features(), "robot_type": "so101", "joint_units": "degrees"}
    with DatasetWriter(degrees, resume=True, also_called=("so_follower", "so101_follower"), **kind) as writer:
        for frame in range(4):
            writer.add_frame(kit.row(1, frame), "t")
        writer.save_episode()
    dataset = open_dataset(degrees)
    assert (dataset.n_episodes, dataset.info.robot_type) == (2, "so101_follower")
    assert facts_of(dataset).joint_units == "degrees"


def test_units_that_nobody_stated_are_not_claimed_afterwards(tmp_path: Path) -> None:
    """LeRobot's recordings do not say theirs; what is appended would say it for all of them."""
    root = tmp_path / "lerobot"
    kit.record(root, [5])
    (root / "meta/edgevla.json").unlink()
    with pytest.raises(DatasetError, match="its joints are in units that nothing states") as caught:
        kit.record(root, [5], resume=True, joint_units="degrees")
    assert 'write {"joint_units": "degrees"} into' in str(caught.value)
    (root / "meta/edgevla.json").write_text('{"joint_units": "degrees", "from_the_future": 1}')
    kit.record(root, [5], resume=True, joint_units="degrees")
    stated = json.loads((root / "meta/edgevla.json").read_text())
    assert (stated["joint_units"], stated["from_the_future"]) == ("degrees", 1)


def test_a_recording_without_an_episode_binds_nobody(tmp_path: Path) -> None:
    """Ended before the first was kept; then the profile was corrected."""
    root = tmp_path / "mine"
    kit.record(root, [], joint_units="degrees")
    with DatasetWriter(
        root, fps=25, features=kit.features((48, 64)), robot_type="koch", resume=True
    ) as writer:
        writer.add_frame(kit.row(0, 0, (48, 64)), "t")
        writer.save_episode()
    dataset = open_dataset(root)
    assert (dataset.info.robot_type, dataset.fps) == ("koch", 25)
    assert facts_of(dataset).joint_units is None
    assert [f for f in check_dataset(root) if f.severity == "error"] == []
