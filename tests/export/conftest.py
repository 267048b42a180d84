"""A small ACT on the SO101 sample dataset, as our trainer leaves it; and robots to compare bundles with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot

SHARED = Path(__file__).parents[1] / "fixtures"
SO101 = SHARED / "datasets" / "so101_v30"
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/reach` with one checkpoint whose `edgevla.json` says degrees. Random weights, sizes as small as they go."""
    import logging
    from dataclasses import replace

    from edgevla.dataset import facts_of, open_dataset
    from edgevla.train.checkpoint import new_policy, save_policy
    from edgevla.train.processors import Stats
    from edgevla.types import CameraAge

    logging.disable(logging.WARNING)  # the sample's image statistics are known to be wrong
    try:
        dataset = open_dataset(SO101)
        ages = {
            "observation.images.front": CameraAge(12.0, 30.0, 41.0)
        }  # as our recorder would have told them
        facts = replace(facts_of(dataset, "degrees"), camera_ages=ages)
        stats: Stats = dict(dataset.true_stats)
    finally:
        logging.disable(logging.NOTSET)
    torch.manual_seed(0)
    features = {n: f for n, f in _info(SO101)["features"].items() if n.startswith(("observation.", "action"))}
    sizes = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 1, "use_vae": False}
    policy = new_policy(
        "act",
        features,
        stats,
        {**sizes, "chunk_size": 8, "n_action_steps": 8, "pretrained_backbone_weights": None},
        trunk_width=4,
        say=lambda _: None,
    ).eval()
    run = tmp_path_factory.mktemp("runs") / "reach"
    checkpoint = run / "checkpoints" / "000010"
    (checkpoint / "training_state").mkdir(parents=True)
    (checkpoint / "training_state" / "training_step.json").write_text('{"step": 10}')
    save_policy(policy, checkpoint / "pretrained_model", facts)
    (run / "checkpoints" / "last").symlink_to("000010")
    return run


def _info(root: Path) -> dict[str, Any]:
    import json

    return json.loads((root / "meta" / "info.json").read_text())


@pytest.fixture
def robot() -> Callable[..., AboutRobot]:
    """`robot(unit, half) -> describe` of an SO101 with the sample's cameras and this half range in degrees."""

    def make(unit: str = "deg", half: float = 90.0) -> AboutRobot:
        joints = [
            AboutJoint(f"{j}.pos", unit, -half, half, 90.0, False, (-half, half), "mid_range") for j in JOINTS
        ]
        joints[-1] = AboutJoint("gripper.pos", "percent", 0.0, 100.0, 200.0, True, None, None)
        front = AboutCamera("front", "0", 480, 640, 30.0, False, "exact")
        wrist = AboutCamera("wrist", "1", 240, 320, 30.0, False, "exact")
        return AboutRobot("robot", "so101", tuple(joints), (front, wrist), 100.0, (), ())

    return make
