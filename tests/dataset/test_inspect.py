"""`edgevla inspect DATASET` as a person and as a program run it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import cv2
import dataset_kit as kit
import pytest

from edgevla.cli import main


def test_a_sound_dataset(so101: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", str(so101), "--contact-sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    for words in (
        "v3.0",
        "so101_follower",
        "30 fps",
        "episodes 4, frames 473",
        "Put the red ball in the bin.",
        "camera, 640x480, av1",
        "shoulder_pan.pos",
        "warning: statistics of 'observation.images.front'",
        "sound; 3 warnings",
    ):
        assert words in out
    picture = cv2.imread(str(sheet))
    assert picture.shape[0] > 8 * 96  # 4 episodes of 2 cameras
    assert picture.std() > 30


def test_a_damaged_dataset(so101_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit.set_cell(so101_copy / "data/chunk-000/file-000.parquet", "action", 200, float("nan"), 2)
    assert main(["inspect", str(so101_copy)]) == 1
    out = capsys.readouterr().out
    assert "ERROR: episode 1, feature 'action' element 2 ('elbow_flex.pos') is nan" in out
    assert "NOT SOUND: 1 error" in out


def test_a_recording_without_an_episode_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ended before the first episode was kept: by q, and by a kill in its first save."""
    root = tmp_path / "empty"
    kit.record(root, [])
    words = f"ERROR: the recording {root} holds no episode: it was ended before one was kept. Record some"
    for _ in range(2):
        assert main(["inspect", str(root)]) == 1
        out = capsys.readouterr().out
        assert words in out
        assert "NOT SOUND: 1 error, 0 warnings" in out
        assert "restore" not in out.lower()
        assert "{" not in out, "no raw template"
        (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        (root / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    assert main(["replay", str(root), "--robot=so101", "--sim"]) == 1
    assert words.removeprefix("ERROR: ") in capsys.readouterr().err


def test_training_on_a_recording_without_an_episode_is_refused_in_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    kit.record(tmp_path / "empty", [])
    assert (
        main(["train", "--policy=act", f"--dataset={tmp_path / 'empty'}", f"--output={tmp_path / 'run'}"])
        == 1
    )
    assert "holds no episode: it was ended before one was kept" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_for_programs(so101_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (so101_copy / "videos/observation.images.wrist/chunk-000/file-000.mp4").unlink()
    assert main(["inspect", str(so101_copy), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["sound"] is False
    assert data["n_frames"] == 473
    assert data["cameras"]["observation.images.front"]["codec"] == "av1"
    (error,) = [f for f in data["findings"] if f["severity"] == "error"]
    assert error["feature"] == "observation.images.wrist"
    assert error["file"].endswith("file-000.mp4")


def test_for_programs_infinity_is_null(so101_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit.set_cell(so101_copy / "data/chunk-000/file-000.parquet", "action", 200, float("inf"), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["inspect", str(so101_copy), "--json"]) == 1
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["stats"]["action"]["max"][2] is None
    assert data["stats"]["action"]["max"][1] is not None


def test_v21(so101_v21: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(so101_v21)]) == 0
    assert "LeRobot dataset v2.1" in capsys.readouterr().out


def test_what_is_nothing_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "neither a dataset" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none")]) == 1
    assert "no dataset folder" in capsys.readouterr().err


def test_a_dataset_too_damaged_to_open(so101_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (so101_copy / "meta/info.json").write_text("{")
    assert main(["inspect", str(so101_copy)]) == 1
    assert "cannot be read as JSON" in capsys.readouterr().out
    (so101_copy / "meta/info.json").unlink()
    assert main(["inspect", str(so101_copy)]) == 1
