"""`edgevla train` on datasets as people have them, and what resume, export and eval remember of how they were read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dataset"))

import small_sets as small

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.dataset.facts import read_facts
from edgevla.dataset.reading import DatasetReading
from edgevla.train.checkpoint import load_policy

TINY = (
    "chunk_size=4 n_action_steps=4 dim_model=16 n_heads=2 dim_feedforward=16 n_encoder_layers=1 latent_dim=4 "
    "n_vae_encoder_layers=1 pretrained_backbone_weights=none"
)
NAMES = ["observation.state=state", "action=actions", "observation.images.top=image"]
ENVIRONMENT = "observation.environment_state"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def train(root: Path, run: Path, *more: str, steps: int = 1) -> int:
    settings = [word for setting in TINY.split() for word in ("--set", setting)]
    words = [
        "--policy",
        "act",
        "--dataset",
        str(root),
        "--output",
        str(run),
        *settings,
        "--steps",
        str(steps),
    ]
    words += [
        "--batch-size",
        "2",
        "--cache",
        "none",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--trunk-width",
        "8",
        "--no-tensorboard",
    ]
    return main(["train", *words, *more])


def pretrained(run: Path) -> Path:
    return run / "checkpoints/last/pretrained_model"


def openpi(root: Path) -> Path:
    return small.make(root, state="state", action="actions", cameras=("image", "wrist_image"))


def test_other_names_are_said_once_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resume, fine-tuning, export and eval need not be told again; LeRobot's rename step tells it to LeRobot."""
    root, run, bundle = openpi(tmp_path / "set"), tmp_path / "run", tmp_path / "bundle"
    assert train(root, run) == 1
    err = capsys.readouterr().err
    assert "policies learn 'action'" in err
    assert "actions (float32 [3]), image (camera [32, 32, 3])" in err
    assert "--feature action=actions" in err
    assert train(root, run, "--feature", *NAMES, "--without", "wrist_image") == 0
    assert "state as observation.state, actions as action" in capsys.readouterr().out
    facts = read_facts(pretrained(run))
    assert facts is not None
    assert facts.reading.names["action"] == "actions"
    assert set(facts.features) == {"observation.state", "action", small.TOP}
    policy = load_policy(run)
    assert policy.processors.rename_map == {"state": "observation.state", "image": small.TOP}
    assert set(policy.config.input_features) == {"observation.state", small.TOP}
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    assert main(["export", str(run), "-o", str(bundle), "--dataset", str(root), "--samples", "2"]) == 0
    manifest = load_bundle(bundle).manifest
    assert [manifest.features[c].camera_name for c in manifest.cameras] == ["top"]
    assert manifest.provenance.dataset is not None
    assert manifest.provenance.dataset.reading == facts.reading
    evaluated = ["eval", str(bundle), "--dataset", str(root), "--frames", "2", "-o", str(tmp_path / "eval")]
    assert main([*evaluated, "--pages", "0"]) == 0
    tuned = [
        "--from",
        str(run),
        "--policy",
        "act",
        "--dataset",
        str(root),
        "--output",
        str(tmp_path / "tuned"),
    ]
    capsys.readouterr()
    assert main(["train", *tuned, "--steps", "1", "--batch-size", "2", "--device", "cpu"]) == 0
    assert "state as observation.state" in capsys.readouterr().out


def test_a_state_of_another_name_is_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small.make(tmp_path / "set", state="qpos")
    assert train(root, tmp_path / "run") == 1
    assert "'qpos' looks like it: say --feature observation.state=qpos" in capsys.readouterr().err
    assert train(root, tmp_path / "run", "--without", "qpos") == 0


def test_what_no_robot_measures_is_said_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {ENVIRONMENT: {"dtype": "float32", "shape": (2,), "names": None}}
    root = small.make(
        tmp_path / "set", features=spec, row=lambda e, f: {ENVIRONMENT: np.array([e, f], np.float32)}
    )
    assert train(root, tmp_path / "with") == 0
    assert (
        f"no robot here can measure: edgevla deploy will refuse it. To do without: --without {ENVIRONMENT}"
        in (capsys.readouterr().out)
    )
    assert train(root, tmp_path / "run", "--without", ENVIRONMENT) == 0
    out = capsys.readouterr().out
    assert f"Left out: {ENVIRONMENT}." in out
    assert "can measure" not in out
    assert ENVIRONMENT not in load_policy(tmp_path / "run").config.input_features
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "2"]) == 0
    more = ["--from", str(tmp_path / "with"), "--policy", "act", "--dataset", str(root), "--steps", "1"]
    more += ["--output", str(tmp_path / "tuned"), "--without", ENVIRONMENT, "--device", "cpu"]
    assert main(["train", *more]) == 2
    assert "the policy was trained with it" in capsys.readouterr().err


def test_odd_columns_do_not_stop_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound, a text, NaN where nobody looks, depth: said, and left alone."""
    load = {"observation.effort": {"dtype": "float32", "shape": (2,), "names": None}}
    load["observation.note"] = {"dtype": "string", "shape": (1,), "names": None}
    root = small.make(
        tmp_path / "set",
        cameras=(small.TOP, "observation.images.far"),
        features=load,
        row=lambda e, f: {"observation.effort": np.ones(2, np.float32), "observation.note": "dull"},
    )
    small.add_feature(root, "observation.audio.mic", "audio", [2])
    far = [small.png16(np.full((32, 32), 500 + 1200 * i, np.uint16)) for i in range(11)]
    small.set_pictures(root, "observation.images.far", far)
    effort = pq.read_table(root / small.DATA).column("observation.effort").to_pylist()
    effort[3][0] = float("nan")
    small.set_column(root, "observation.effort", small.pa.array(effort))
    assert train(root, tmp_path / "run") == 0
    said = capsys.readouterr()
    assert set(load_policy(tmp_path / "run").config.image_features) == {small.TOP}
    assert "Not used by the policy" in said.out
    for name in ("observation.effort", "observation.note", "observation.audio.mic", "observation.images.far"):
        assert name in said.out
    assert train(root, tmp_path / "named", "--camera", "far=none") == 2
    assert "more than 8 bits (16-bit gray)" in capsys.readouterr().err
    assert (
        train(root, tmp_path / "named", "--feature", "observation.images.wrist=observation.images.far") == 2
    )
    assert "no policy here takes" in capsys.readouterr().err


def test_pictures_of_two_sizes_are_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small.make(tmp_path / "set", lengths=(4, 4, 4), size=(64, 64))
    small.make(tmp_path / "other", lengths=(4, 4, 4), size=(48, 80))
    cells = [pq.read_table(r / small.DATA).column(small.TOP).to_pylist() for r in (root, tmp_path / "other")]
    small.set_pictures(root, small.TOP, [c["bytes"] for c in cells[0][:8] + cells[1][8:]])
    assert train(root, tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "64x64 in episodes 0 to 1, 80x48 in episode 2" in err
    assert "--episodes 0:2" in err
    assert train(root, tmp_path / "run", "--eval-episodes", "1") == 1
    assert "in those to evaluate on" in capsys.readouterr().err.replace("\n", " ")
    assert train(root, tmp_path / "run", "--episodes", "0:2") == 0


def test_a_lost_file_of_another_episode_does_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small.make(tmp_path / "set", lengths=(5, 5, 5))
    table = pq.read_table(root / small.DATA)
    for episode in (0, 2):
        rows = table.slice(5 * episode, 5)
        pq.write_table(rows, root / f"data/chunk-000/file-00{episode}.parquet")

    def files(columns: dict[str, Any]) -> None:
        columns["data/file_index"] = [0, 1, 2]

    import dataset_kit as kit

    kit.edit_parquet(root / "meta/episodes/chunk-000/file-000.parquet", files)
    assert train(root, tmp_path / "run") == 1
    assert "file-001.parquet is missing" in capsys.readouterr().err
    assert train(root, tmp_path / "run", "--episodes", "0,2") == 0
    assert "2 episodes, 10 frames" in capsys.readouterr().out
    assert train(root, tmp_path / "held", "--episodes", "0,2", "--eval-episodes", "1") == 0


def test_a_joint_that_never_moves_is_named_and_told_its_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stiff(episode: int, frame: int) -> np.ndarray:
        return np.array([10 * np.sin(frame), 5 * np.cos(frame), 12.5], np.float32)

    root, run, bundle = small.make(tmp_path / "set", move=stiff), tmp_path / "run", tmp_path / "bundle"
    assert train(root, run) == 0
    words = "gripper.pos (12.5 percent) of the state never moves in the training data"
    assert words in capsys.readouterr().out
    assert main(["inspect", str(run)]) == 0
    assert words in capsys.readouterr().out
    assert main(["export", str(run), "-o", str(bundle), "--samples", "2"]) == 0
    assert words in capsys.readouterr().out
    manifest = load_bundle(bundle).manifest
    assert manifest.trained_still == {"observation.state": (None, None, 12.5)}
    assert manifest.still_joints == "trained"
    assert main(["inspect", str(bundle)]) == 0
    assert "never moved   gripper.pos 12.5 in training; the policy is told so" in capsys.readouterr().out
    live = ["export", str(run), "-o", str(bundle), "--samples", "2", "--still-joints", "live"]
    assert main(live) == 0
    assert load_bundle(bundle).manifest.still_joints == "live"


def test_subtasks_are_the_text_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small.make(tmp_path / "set")
    assert train(root, tmp_path / "none", "--task-from", "subtask") == 2
    assert "has no subtasks" in capsys.readouterr().err
    small.add_feature(root, "subtask", "string")
    small.set_column(root, "subtask", small.pa.array(["reach"] * 6 + ["grasp"] * 4 + [None]))
    assert train(root, tmp_path / "run", "--task-from", "subtask") == 0
    said = capsys.readouterr()
    assert "The instruction of a frame is its subtask" in said.out
    facts = read_facts(pretrained(tmp_path / "run"))
    assert facts is not None
    assert facts.tasks == ["reach", "grasp", "task 1"]
    assert facts.reading == DatasetReading(task_from="subtask")
    data = json.loads((pretrained(tmp_path / "run") / "edgevla.json").read_text())
    assert data["reading"] == {"task_from": "subtask"}
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "2"]) == 0
