"""Recorded episodes of six joints whose actions can be worked out by hand, and the verb as a person calls it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
NAMES = [f"{j}.pos" for j in JOINTS]
CAMERA = "observation.images.front"


def line(frame: int) -> np.ndarray:
    """Every joint goes its own way at its own speed; the last one stands."""
    return np.array([0, 1, 2, 3, 4, 0], np.float32) * frame + np.array([5, 0, 0, 0, 0, 50], np.float32)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """`recorded(lengths) -> folder`: the state at frame k is `line(k)`, the action is `action(k)`, black pictures."""

    def make(
        lengths: Sequence[int] = (30, 20),
        *,
        name: str = "arm",
        names: Sequence[str] = NAMES,
        camera: str = CAMERA,
        size: tuple[int, int] = (24, 32),
        units: str | None = "degrees",
        fps: float = 30,
        action: Callable[[int], np.ndarray] = line,
    ) -> Path:
        from edgevla.dataset.writer import DatasetWriter

        vector = {"dtype": "float32", "shape": (len(names),), "names": list(names)}
        pictures = {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
        features: dict[str, Any] = {"action": vector, "observation.state": vector, camera: pictures}
        root = tmp_path / name
        with DatasetWriter(root, fps=fps, features=features, robot_type="so101") as writer:
            for length in lengths:
                for frame in range(length):
                    row = {
                        "action": action(frame)[: len(names)],
                        "observation.state": line(frame)[: len(names)],
                        camera: np.zeros((*size, 3), np.uint8),
                    }
                    writer.add_frame(row, "reach")
                writer.save_episode()
        if units is not None:
            (root / "meta/edgevla.json").write_text(json.dumps({"joint_units": units}))
        return root

    return make


@pytest.fixture
def edgevla_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`edgevla_eval(*words) -> (exit code, stdout, stderr)`; written to `tmp_path / "eval"`, no pictures."""
    from edgevla.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        given = [str(w) for w in words]
        given += [] if "-o" in given else ["-o", str(tmp_path / "eval")]
        given += [] if "--pages" in given else ["--pages", "0"]
        capsys.readouterr()
        code = main(["eval", *given])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
