"""What a policy must know of its data: names, units, ranges, speeds, ages."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dataset_kit as kit
import numpy as np
import pytest

from edgevla.dataset import DatasetFacts, facts_of, infer_joint_units, open_dataset
from edgevla.dataset.facts import FACTS, camera_looks, read_facts
from edgevla.errors import DatasetError, UsageError

NAMES = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]


def _stats(low: list[float], high: list[float]) -> dict:
    return {"action": {"min": np.array(low), "max": np.array(high)}}


@pytest.mark.parametrize(
    ("low", "high", "units", "words"),
    [
        ([-110, -90, 0], [95, 90, 100], "degrees", "beyond -100..100"),
        ([-100, -97, 0], [100, 100, 100], "range100", "exactly at 100"),
        ([-60, -50, 0], [60, 99, 100], None, "both degrees and -100..100 allow"),
        ([-60, -50, 0], [60, 100, 100], None, "both degrees"),  # one joint at 100 may be chance
        ([-60, -50, 0], [60, 70, 150], None, "both degrees"),  # grippers say nothing
        ([-1.5, -2, 0], [1.5, 2, 1], None, "radians"),
        ([0, 0, 0], [4095, 4095, 4095], None, "neither"),
    ],
)
def test_units_are_inferred_only_where_the_data_decide(
    low: list[float], high: list[float], units: str | None, words: str
) -> None:
    found, reason = infer_joint_units(_stats(low, high), NAMES)
    assert found == units
    assert words in reason


def test_no_joints_no_guess() -> None:
    assert infer_joint_units({}, NAMES)[0] is None


def test_facts_of_so101(so101: Path) -> None:
    ds = open_dataset(so101)
    facts = facts_of(ds)
    assert facts.fps == 30
    assert facts.cameras == {"observation.images.front": (480, 640), "observation.images.wrist": (240, 320)}
    assert facts.joint_units is None  # nobody said, and the data do not decide
    assert facts.units_guess is None
    assert facts.features["action"].units == ()
    assert facts.features["action"].names[0] == "shoulder_pan.pos"
    state = ds.columns["observation.state"].astype(float)
    assert facts.trained_range["observation.state"].q01 == pytest.approx(
        np.quantile(state, 0.01, axis=0).tolist()
    )
    assert facts.trained_range["observation.state"].q99 == pytest.approx(
        np.quantile(state, 0.99, axis=0).tolist()
    )


def test_what_the_user_says_gives_units_and_zero(so101: Path) -> None:
    facts = facts_of(open_dataset(so101), "range100")
    assert facts.features["action"].units == (*["range100"] * 5, "percent")
    assert facts.features["observation.state"].zero == "mid_range"
    with pytest.raises(UsageError, match="radians"):
        facts_of(open_dataset(so101), "radians")


def test_speeds_do_not_cross_episodes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    kit.record(root, [30, 30])  # joint 0 rises by 1 per frame at 30 fps and jumps back between episodes
    facts = facts_of(open_dataset(root))
    assert facts.trained_speed_p999["action"] == pytest.approx([30, 30, 0])


def test_what_the_recording_states_is_read_back(tmp_path: Path) -> None:
    root = tmp_path / "set"
    kit.record(root, [12], joint_units="degrees")
    facts = facts_of(open_dataset(root))
    assert facts.joint_units == "degrees"
    assert facts.features["action"].units == ("deg", "deg", "percent")
    assert facts_of(open_dataset(root), "range100").joint_units == "range100"  # the user has the last word
    assert facts.camera_ages[kit.CAMERA].p50 == pytest.approx(10.5)
    assert facts.camera_ages[kit.CAMERA].max == 16
    (root / "meta/edgevla.json").write_text('{"joint_units": "furlongs"}')
    with pytest.raises(DatasetError, match="furlongs"):
        facts_of(open_dataset(root))


@pytest.mark.parametrize("name", ["so101", "pusht"])
def test_facts_survive_json(name: str, request: pytest.FixtureRequest) -> None:
    facts = facts_of(open_dataset(request.getfixturevalue(name)), "degrees")
    assert DatasetFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_damaged_facts_are_an_error() -> None:
    with pytest.raises(DatasetError, match=r"runs/x/edgevla.json is not"):
        DatasetFacts.from_json({"fps": 30}, "runs/x/edgevla.json")


def test_facts_beside_a_checkpoint(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None
    (tmp_path / FACTS).write_text("{")
    with pytest.raises(DatasetError, match="is damaged"):
        read_facts(tmp_path)


def test_facts_are_read_without_pyarrow_and_pyav() -> None:
    """The exporter's reader of edgevla.json must not need what only recording needs."""
    code = "import sys; sys.modules['pyarrow'] = sys.modules['av'] = None; from edgevla.dataset import DatasetFacts"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_promised_name_can_be_imported() -> None:
    import edgevla.dataset

    for name in edgevla.dataset.__all__:
        assert getattr(edgevla.dataset, name) is not None
    with pytest.raises(AttributeError):
        edgevla.dataset.nothing  # noqa: B018


def test_how_cameras_look_is_part_of_what_a_checkpoint_remembers(so101: Path) -> None:
    dataset = open_dataset(so101)
    looks = camera_looks(dataset, 12)
    assert set(looks) == {"observation.images.front", "observation.images.wrist"}
    front = looks["observation.images.front"]
    assert 12 <= front.n_pictures <= 16
    assert 0 < front.brightness[0] <= front.brightness[1] < 255
    facts = replace(facts_of(dataset, "degrees"), camera_looks=looks)
    data = json.loads(json.dumps(facts.to_json()))
    assert DatasetFacts.from_json(data) == facts
    del data["camera_looks"]  # as an older EdgeVLA left it
    assert DatasetFacts.from_json(data).camera_looks == {}


def test_a_camera_whose_pictures_are_damaged_has_no_look(so101_copy: Path) -> None:
    """Training may not need it; where it does, checking the dataset says what is wrong."""
    (so101_copy / "videos/observation.images.wrist/chunk-000/file-000.mp4").write_bytes(b"")
    assert set(camera_looks(open_dataset(so101_copy), 4)) == {"observation.images.front"}


def test_only_instructions_of_the_rows_are_facts(so101: Path) -> None:
    tasks = open_dataset(so101).tasks
    assert facts_of(open_dataset(so101), "degrees").tasks == tasks
    assert facts_of(open_dataset(so101, [0, 2]), "degrees").tasks == tasks[:1]
