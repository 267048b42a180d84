"""`edgevla demo --task`: one task from nothing to numbers, and on from where it was interrupted."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from edgevla.dataset import open_dataset


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgevla", "demo", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.timeout(900)
def test_a_task_is_taught_step_by_step_and_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "lesson"
    words = ["--task", "follow_cube", "--quick", "--output", str(folder)]
    done = demo(*words, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads(done.stdout)
    assert (info["conditions"]["task"], info["cells"][0]["aggregated"]["n_episodes"]) == ("follow_cube", 1)
    assert open_dataset(folder / "dataset").n_episodes == 1
    assert "done before" not in done.stderr

    shutil.rmtree(folder / "bundle")
    again = demo(*words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("done before") == 2, "recorded and trained"
    assert "0 of 1 succeeded" in again.stdout or "1 of 1 succeeded" in again.stdout

    other = demo(*words, "--seed", "1")
    assert other.returncode == 2
    assert "was begun for something else" in other.stderr


def test_a_task_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    done = demo("--task", "follow_cub", "--output", str(tmp_path / "lesson"))
    assert done.returncode == 2
    assert "there is no simulated task 'follow_cub'" in done.stderr
    assert not (tmp_path / "lesson").exists()
