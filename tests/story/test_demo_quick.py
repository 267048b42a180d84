"""`edgevla demo --quick`: every step of the story once, through the real commands and processes."""

import json
import os
import subprocess
import sys

import pytest

from edgevla.dataset import open_dataset

pytestmark = pytest.mark.realtime


def demo(*words: str, timeout: float = 400.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgevla", "demo", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.timeout(400)
def test_the_whole_story_runs_and_leaves_what_it_promises(tmp_path):
    folder = tmp_path / "run"
    done = demo("--quick", "--json", "--output", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert [(t["task"], t["execution"], t["delay_ms"]) for t in results["trials"]] == [
        ("follow_cube", "sync", 0),
        ("follow_cube/conveyor", "sync", 0),
        ("follow_cube/conveyor", "async", 0),
        ("follow_cube/conveyor", "sync", 200),
        ("follow_cube/conveyor", "async", 200),
    ]
    assert all(t["n"] == 2 for t in results["trials"])
    (rollout,) = results["rollouts"]
    assert rollout["summary"]["failure"] is None
    assert rollout["n"] == 1

    dataset = open_dataset(folder / "datasets" / "rest")
    assert (dataset.n_episodes, dataset.info.fps, dataset.cameras) == (4, 30, ["observation.images.front"])
    for path in (
        "runs/rest/loss.png",
        "bundles/rest/manifest.json",
        "bundles/conveyor/encode.onnx",
        "evals/conveyor-async-200ms/sheet.png",
        "logs/train-rest.log",
        "results.json",
    ):
        assert (folder / path).is_file(), path
    assert "[5/5]" in done.stderr
    for step in range(1, 6):
        assert f"[{step}/5]" in done.stderr


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "something").write_text("mine")
    done = demo("--quick", "--output", str(tmp_path), timeout=60)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert "Traceback" not in done.stderr
