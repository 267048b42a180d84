"""Several processes by Accelerate: they share batches and gradients, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgevla.cli import main

PUSHT = str(Path(__file__).parents[1] / "fixtures" / "datasets" / "pusht_v30")
# Nothing random in the loss, so that the two ways of adding up gradients can be compared.
POLICY = (
    "chunk_size=4 n_action_steps=4 dim_model=16 n_heads=2 dim_feedforward=16 n_encoder_layers=1 use_vae=false"
)
POLICY += " dropout=0 pretrained_backbone_weights=none"


def options(run: Path, *more: str) -> list[str]:
    words = [word for setting in POLICY.split() for word in ("--set", setting)]
    words += ["--policy", "act", "--dataset", PUSHT, "--episodes", "0:2", "--steps", "3", "--batch-size", "2"]
    words += [
        "--lr",
        "1e-3",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--no-tensorboard",
        "--log-freq",
        "1",
        "--trunk-width",
        "16",
    ]
    return ["train", *words, "--output", str(run), *more]


def torchrun(n: int, words: list[str]) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), "-m", "edgevla"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_train_as_one_that_adds_up_two_batches(tmp_path: Path) -> None:
    out = torchrun(2, options(tmp_path / "two"))
    assert "(2 processes)" in out
    assert out.count("Done:") == 1, "only the first process speaks"
    assert main(options(tmp_path / "one", "--accumulate", "2")) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    # Adam divides by the gradient's size, so a gradient of rounding noise moves as far as any other: compare in lr.
    far = {k: (one[k] - two[k]).abs().max().item() / 1e-3 for k in one if one[k].is_floating_point()}
    assert sorted(far.values())[len(far) // 2] < 1e-2, far
    losses = []
    for run in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows] == [1, 2, 3]
        losses.append([r["loss"] for r in rows])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4)
