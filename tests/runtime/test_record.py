"""`edgevla record` beside a real deployment: processes, sockets, video."""

import json
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from edgevla.dataset import open_dataset
from edgevla.dataset.check import check_dataset

pytestmark = pytest.mark.realtime


@pytest.fixture(autouse=True)
def own_runtime_folder(monkeypatch):
    """`record` attaches to the newest deployment of this user: only this test's is there (short, for sockets)."""
    folder = tempfile.mkdtemp(prefix="ev-", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


def record(*words, keys="", timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "edgevla", "record", *map(str, words)],
        input=keys,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(180)
def test_rollouts_of_a_policy_become_episodes(deploy, tmp_path):
    running = deploy()
    running.wait_for("running")
    root = tmp_path / "recorded"
    done = record(root, "--task", "go there", "--episodes", 2, "--seconds", 1.5, "--pause", 0.3, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["n_kept"] == 2
    again = record(root, "--task", "go there", "--episodes", 1, "--seconds", 1, "--pause", 0.2)
    assert again.returncode == 0, again.stderr
    assert "episode 2 kept" in again.stdout

    dataset = open_dataset(root)
    assert (dataset.n_episodes, dataset.info.fps, dataset.tasks) == (3, 30, ["go there"])
    assert not [f for f in check_dataset(root) if f.severity == "error"]
    lengths = [episode.length for episode in dataset.episodes]
    assert lengths == [45, 45, 30], "1.5 s and 1 s at 30 Hz, in rows"
    state, action = dataset.columns["observation.state"], dataset.columns["action"]
    assert np.isfinite(action).all()
    assert np.abs(action[-1] - state[-1]).max() < 15, "what was sent lies near where the arm is"
    assert dataset.frame("observation.images.front", 0).shape == (48, 64, 3)


@pytest.mark.timeout(120)
def test_keys_keep_discard_and_quit(deploy, tmp_path):
    running = deploy()
    running.wait_for("running")
    root = tmp_path / "recorded"
    done = record(root, keys="k\nr\nd\nx\nq\n")
    assert done.returncode == 0, done.stderr
    assert "! there is no episode to keep" in done.stdout
    assert "recording episode 0" in done.stdout
    assert "episode discarded" in done.stdout
    assert "0 episodes kept" in done.stdout


def test_without_a_deployment_it_says_what_to_start(tmp_path):
    done = record(tmp_path / "recorded")
    assert done.returncode == 2
    assert "no deployment is running" in done.stderr
    assert "Traceback" not in done.stderr
