"""That the demo's policy looks: a short training reaches for the cube, and with black pictures it does not."""

import json
import os
import subprocess
import sys

import pytest


def run(*words: str, timeout: float = 300.0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_a_policy_that_sees_reaches_and_one_that_does_not_fails(tmp_path):
    """60 demonstrations and 400 steps instead of 160 and 1000: far from done, far above chance (see the bounds)."""
    data, train_run, bundle = (str(tmp_path / name) for name in ("data", "run", "bundle"))
    run("edgevla.robots.trials.demonstrate", "--task", "follow_cube", "--output", data, "--episodes", "60")
    run("edgevla", "train", "--policy", "act", "--recipe", "act_small", "--dataset", data, "--output", train_run,
        "--steps", "400", "--threads", "1", "--device", "cpu", "--no-tensorboard", timeout=500)  # fmt: skip
    run("edgevla", "export", train_run, "-o", bundle, "--dataset", data, "--samples", "8")

    def success() -> list[float]:
        words = ["--task", "follow_cube", "--episodes", "30", "--json", "-o", str(tmp_path / "eval")]
        said = run("edgevla", "eval", bundle, *words, "--control", "none,black")
        return [float(cell["aggregated"]["pc_success"]) for cell in json.loads(said)["cells"]]

    seeing, blind = success()
    assert seeing >= 40
    assert blind < 20
