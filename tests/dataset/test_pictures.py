"""What is wrong with a dataset's pictures is a warning that names camera and episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dataset_kit as kit
import numpy as np
import pytest

from edgevla.cli import main
from edgevla.dataset import DatasetWriter
from edgevla.dataset.check import check_dataset

SIZE = (48, 64)
CAMERAS = ("observation.images.front", "observation.images.wrist")


def features(cameras: Sequence[str] = CAMERAS) -> dict[str, Any]:
    vectors = {n: f for n, f in kit.features(age=False).items() if n != kit.CAMERA}
    shape = {"dtype": "video", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    return {**vectors, **dict.fromkeys(cameras, shape)}


def front(i: int) -> np.ndarray:
    """A table in perspective, a red thing that lies elsewhere each time, a sensor's noise."""
    random = np.random.default_rng(i)
    image = np.full((*SIZE, 3), 190, np.uint8)
    image[24:] = (120, 90, 60)
    x = int(random.integers(4, 50))
    image[30:38, x : x + 10] = (220, 30, 30)
    return np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def wrist(i: int) -> np.ndarray:
    """Dark fingers left and right of a bright spot."""
    random = np.random.default_rng(1000 + i)
    image = np.full((*SIZE, 3), 150, np.uint8)
    image[:, :18] = image[:, 46:] = (30, 30, 34)
    image[10:20, 24 + i % 8 : 34 + i % 8] = (230, 220, 90)
    return np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def record(root: Path, episodes: Sequence[Callable[[int], tuple[np.ndarray, ...]]], n: int = 6) -> Path:
    with DatasetWriter(root, fps=30, features=features(), resume=True) as writer:
        for number, show in enumerate(episodes):
            for frame in range(n):
                pictures = dict(zip(CAMERAS, show(10 * number + frame), strict=True))
                vector = {key: kit.row(number, frame)[key] for key in ("action", "observation.state")}
                writer.add_frame({**vector, **pictures}, "t")
            writer.save_episode()
    return root


def good(i: int) -> tuple[np.ndarray, ...]:
    return front(i), wrist(i)


def exchanged(i: int) -> tuple[np.ndarray, ...]:
    return wrist(i), front(i)


def covered(i: int) -> tuple[np.ndarray, ...]:
    return front(i), np.random.default_rng(i).integers(0, 4, (*SIZE, 3), dtype=np.uint8)


def test_good_pictures_are_not_remarked_upon(tmp_path: Path) -> None:
    assert check_dataset(record(tmp_path / "set", [good] * 7)) == []


def test_episodes_with_exchanged_cameras_are_named(tmp_path: Path) -> None:
    (found,) = check_dataset(record(tmp_path / "set", [good, good, exchanged, good, exchanged, good, good]))
    assert found.severity == "warning"
    assert (
        "the cameras front and wrist are exchanged in episodes 2, 4, against the other episodes" in found.text
    )


def test_a_covered_camera_is_named(tmp_path: Path) -> None:
    (found,) = check_dataset(record(tmp_path / "set", [good, good, covered, good]))
    assert "camera 'wrist' shows nothing at the beginning of episode 2" in found.text
    assert (found.feature, found.episode) == (CAMERAS[1], 2)


def test_a_camera_that_froze_is_told_from_one_that_repeats_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def froze(i: int) -> tuple[np.ndarray, ...]:
        return front(i), wrist(11 if 11 < i < 60 else i)  # episode 1: from its second row on

    root = record(tmp_path / "set", [good, froze], n=40)
    noted = json.loads((root / "meta/edgevla.json").read_text())["repeated_pictures"]
    assert noted == {
        CAMERAS[0]: [{"n": 0, "longest": 0}] * 2,
        CAMERAS[1]: [{"n": 0, "longest": 0}, {"n": 38, "longest": 38}],
    }
    (found,) = check_dataset(root)
    assert (
        "camera 'wrist' shows one picture, equal to the last bit, for 1 s or more in episode 1" in found.text
    )
    assert "longest 1.3 s" in found.text
    assert main(["inspect", str(root)]) == 0
    out = capsys.readouterr().out
    assert (
        "observation.images.wrist: camera, 64x48, h264, yuv420p, 30 fps, 1 file, 38 pictures repeat the one"
        in out
    )
    assert main(["inspect", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repeated_pictures"][CAMERAS[1]][1] == {"n": 38, "longest": 38}


def test_what_was_counted_survives_appending_by_others_and_by_us(tmp_path: Path) -> None:
    root = record(tmp_path / "set", [good, lambda i: (front(i // 2), wrist(i))])
    note = root / "meta/edgevla.json"
    assert json.loads(note.read_text())["repeated_pictures"][CAMERAS[0]] == [
        {"n": 0, "longest": 0},
        {"n": 3, "longest": 1},
    ]
    note.unlink()  # as if LeRobot had recorded both
    record(root, [good])
    assert json.loads(note.read_text())["repeated_pictures"][CAMERAS[0]] == [
        None,
        None,
        {"n": 0, "longest": 0},
    ]
    assert check_dataset(root) == []


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{", '{"joint_units": "furlongs"}', '{"repeated_pictures": {"a": [3]}}']
)
def test_a_damaged_note_is_an_error_and_no_traceback(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = record(tmp_path / "set", [good])
    (root / "meta/edgevla.json").write_text(text)
    assert main(["inspect", str(root)]) == 1
    said = capsys.readouterr()
    assert "edgevla.json" in said.out + said.err
    assert "Traceback" not in said.err
