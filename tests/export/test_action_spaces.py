"""Whose actions are end-effector poses, `inspect` and `export` refuse: by what the action space says of itself.

The spaces here are a user's own, in a package of their own, as the command line finds them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

XVLA = Path(__file__).parents[1] / "fixtures" / "goldens" / "xvla" / "checkpoint"
SPACES = """
from edgevla.train.policies.xvla_actions import ActionSpace, Term

def hand(config):
    return ActionSpace("hand", 10, 6, {"loss": (Term(1.0, "mse", tuple(range(6))),)}, is_joint=False)

def fingers(config):
    parts = {"loss": (Term(1.0, "mse", tuple(range(6))),)}
    return ActionSpace("fingers", 10, 6, parts, is_joint=True, zeroed=(5,), squashed=(5,))
"""
ENTRY_POINTS = """[edgevla.action_spaces]
hand = my_spaces:hand
fingers = my_spaces:fingers
broken = my_spaces:gone
"""
EXPORT = ("--fps", "30", "--samples", "2")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where a package `my-spaces` is installed."""
    site = tmp_path / "site"
    (site / "my_spaces-1.0.dist-info").mkdir(parents=True)
    (site / "my_spaces.py").write_text(SPACES)
    (site / "my_spaces-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-spaces\nVersion: 1.0\n"
    )
    (site / "my_spaces-1.0.dist-info/entry_points.txt").write_text(ENTRY_POINTS)
    return {**os.environ, "PYTHONPATH": str(site)}


def checkpoint(folder: Path, mode: str) -> Path:
    """The recorded checkpoint with another action space."""
    shutil.copytree(XVLA, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "action_mode": mode}))
    return folder


def edgevla(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgevla", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_users_own_poses_are_refused(environment: dict[str, str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", "hand")
    seen = edgevla(environment, "inspect", folder)
    assert seen.returncode == 1
    assert "refused: the actions are end-effector poses ('hand')" in seen.stdout
    data = json.loads(edgevla(environment, "inspect", folder, "--json").stdout)
    assert data["problem"] is None  # as a checkpoint it is sound
    assert data["action_space"]["drives_joints"] is False
    words = ["export", folder, "-o", tmp_path / "bundle", "--joint-units", "degrees", *EXPORT]
    done = edgevla(environment, *words)
    assert done.returncode == 2
    assert "end-effector poses ('hand')" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_users_own_joints_are_exported(environment: dict[str, str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", "fingers")
    assert edgevla(environment, "inspect", folder).returncode == 0
    words = ["export", folder, "-o", tmp_path / "bundle", "--joint-units", "raw"]
    done = edgevla(environment, *words, *EXPORT)
    assert done.returncode == 0, done.stderr
    assert "computes as torch" in done.stdout


def test_a_space_that_cannot_be_loaded_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    done = edgevla(environment, "inspect", checkpoint(tmp_path / "checkpoint", "broken"))
    assert done.returncode == 1
    assert "action space 'broken' (my_spaces:gone) cannot be loaded" in done.stdout
    assert "Traceback" not in done.stderr
