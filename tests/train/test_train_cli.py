"""`edgevla train` on a real dataset with a small ACT: what a person types, sees, and finds on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.cli import main
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.config import TrainConfig

DATASETS = Path(__file__).parents[1] / "fixtures" / "datasets"
PUSHT = str(DATASETS / "pusht_v30")
TINY = (
    "chunk_size=4 n_action_steps=4 dim_model=16 n_heads=2 dim_feedforward=16 n_encoder_layers=1 latent_dim=4"
)
TINY += " n_vae_encoder_layers=1 pretrained_backbone_weights=none"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def options(output: Path | str, *more: str, dataset: str = PUSHT, steps: int = 4) -> list[str]:
    settings = [word for setting in TINY.split() for word in ("--set", setting)]
    words = ["--policy", "act", "--dataset", dataset, "--episodes", "0:2", "--output", str(output), *settings]
    words += f"--steps {steps} --batch-size 2 --cache ram --device cpu --threads 1 --trunk-width 16".split()
    return ["train", *words, *more]


def edgevla_train(*args: Any, **kwargs: Any) -> int:
    return main(options(*args, **kwargs))


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / name / "pretrained_model" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert (
        edgevla_train(
            run, "--lr", "1e-3", "--joint-units", "degrees", "--image-transforms", "--save-freq", "2"
        )
        == 0
    )
    return run


def test_a_run_leaves_lerobots_layout_and_our_files(trained: Path) -> None:
    last = trained / "checkpoints" / "last"
    assert last.readlink() == Path("000004")
    assert (trained / "checkpoints" / "000002" / "training_state" / "training_step.json").is_file()
    names = {p.name for p in (last / "pretrained_model").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "train_config.json",
        "edgevla.json",
        "edgevla-train.toml",
    } <= names
    assert {p.name for p in trained.iterdir()} >= {"loss.png", "metrics.jsonl", "tensorboard"}
    facts = json.loads((last / "pretrained_model" / "edgevla.json").read_text())
    assert (facts["joint_units"], facts["n_episodes"]) == ("degrees", 2)
    config = TrainConfig.load(last / "pretrained_model" / "edgevla-train.toml")
    assert (config.policy, config.steps, config.optimizer.lr, config.settings["chunk_size"]) == (
        "act",
        4,
        1e-3,
        4,
    )
    for name in (last, trained / "checkpoints", trained):  # a run stands for its newest checkpoint
        assert load_policy(name).processors.folder is not None
    policy = load_policy(last)
    assert policy.config.optimizer_lr == policy.config.optimizer_lr_backbone == 1e-3  # type: ignore[attr-defined]


def test_the_run_is_described_in_lerobots_words(trained: Path) -> None:
    data = json.loads((trained / "checkpoints/last/pretrained_model/train_config.json").read_text())
    assert data["policy"]["type"] == "act"
    assert data["dataset"]["root"] == PUSHT
    assert data["dataset"]["image_transforms"] == {"enable": True}
    assert data["optimizer"]["type"] == "adamw"
    assert data["scheduler"] is None
    # Every key is one of LeRobot's TrainPipelineConfig (src/lerobot/configs/train.py): its parser refuses others.
    known = (
        "dataset env policy output_dir job_name resume seed cudnn_deterministic num_workers batch_size steps "
    )
    known += "log_freq tolerance_s save_checkpoint save_freq use_policy_training_preset optimizer scheduler eval wandb "
    assert set(data) <= set((known + "peft rename_map").split())


def test_an_interrupted_run_goes_on_to_the_bit(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data order, augmentation, dropout and the VAE's noise included."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "000004")
    (copy / "checkpoints" / "last").unlink()
    (copy / "checkpoints" / "last").symlink_to("000002")
    assert main(["train", "--resume", str(copy)]) == 0
    straight, resumed = weights(trained), weights(copy)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert not all(torch.equal(straight[k], weights(trained, "000002")[k]) for k in straight)


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgevla", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_ctrl_c_saves_and_says_the_command_that_goes_on(tmp_path: Path) -> None:
    process = start(*options("runs/a", steps=100_000), cwd=tmp_path)
    wait_for(
        lambda: (
            (tmp_path / "runs/a/metrics.jsonl").is_file()
            and (tmp_path / "runs/a/metrics.jsonl").stat().st_size > 0
        )
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "SIGINT: step" in out
    resume = next(line.strip() for line in out.splitlines() if "--resume" in line)
    assert resume == "edgevla train --resume runs/a"
    step = int((tmp_path / "runs/a/checkpoints/last").readlink().name)
    process = start(*resume.split()[1:], "--steps", str(step + 1), "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["step"], result["next"]) == (
        step + 1,
        f"edgevla export runs/a/checkpoints/last --dataset {PUSHT}",
    )


def test_killed_while_saving_nothing_is_lost(tmp_path: Path) -> None:
    """kill -9 at a moment when a checkpoint is being written, then resume."""
    process = start(*options("run", "--save-freq", "1", steps=100_000), cwd=tmp_path)
    home = tmp_path / "run" / "checkpoints"
    wait_for(lambda: (home / "last").exists() and any(home.glob(".writing-*")))
    process.kill()
    process.communicate(timeout=300)
    step = int((home / "last").readlink().name)
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", str(step + 1)]) == 0
    assert int((home / "last").readlink().name) == step + 1
    assert not list(home.glob(".writing-*"))


def test_fine_tuning_takes_the_new_datasets_statistics(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained / "checkpoints" / "last"
    words = [
        "train",
        "--policy",
        "act",
        "--dataset",
        PUSHT,
        "--episodes",
        "5:7",
        "--from",
        str(source),
        "--steps",
        "1",
    ]
    assert main([*words, "--batch-size", "2", "--output", str(tmp_path / "run"), "--lr", "1e-9"]) == 0
    assert "Starts from the weights in" in capsys.readouterr().out
    old, new = load_policy(source), load_policy(tmp_path / "run" / "checkpoints" / "last")
    assert new.config.chunk_size == 4  # type: ignore[attr-defined]
    a, b = old.processors.stats["action"], new.processors.stats["action"]
    assert not torch.equal(torch.tensor(a["mean"]), torch.tensor(b["mean"]))
    key = "encoder.layers.0.linear1.weight"
    torch.testing.assert_close(old.state_dict()[key], new.state_dict()[key], rtol=0, atol=1e-7)


def test_a_trunk_of_its_own_and_a_checkpoint_exclude_each_other(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgevla_train(tmp_path / "run", "--from", str(trained), "--backbone-weights", "/no/file") == 2
    says(capsys, "--trunk-width is for a fresh vision trunk")


def test_held_out_episodes_are_measured(tmp_path: Path) -> None:
    assert edgevla_train(tmp_path / "run", "--eval-episodes", "1", "--eval-freq", "2") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "eval_loss" in r] == [2, 4]


def says(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--device", "cuda:7"], 1, ["device 'cuda:7' was asked for", "--device cpu"]),
        (["--set", "chunk_sise=3"], 2, ["chunk_sise", "did you mean 'chunk_size'"]),
        (["--set", "n_decoder_layers=many"], 2, ["n_decoder_layers is 'many'; expected a whole number"]),
        (["--set", "chunk_size=8"], 2, ["--set chunk_size is given twice, as 4 and as 8"]),
        (
            ["--camera", "a=image", "--camera", "a=none"],
            2,
            ["--camera a is given twice, as image and as none"],
        ),
        (["--set", "chunk_size"], 2, ["NAME=VALUE"]),
        (["--episodes", "3:99"], 2, ["--episodes", "0 ... 11"]),
        (["--camera", "side=none"], 2, ["has no camera 'side'", "observation.image"]),
        (["--recipe", "difusion"], 2, ["did you mean 'diffusion'"]),
        (["--recipe", "diffusion"], 2, ["recipe is for diffusion"]),
        (["--policy", "atc"], 2, ["did you mean 'act'"]),
        (["--gradient-checkpointing"], 2, ["gradient checkpointing"]),
        (["--dataset", "/no/such/folder"], 1, ["/no/such/folder"]),
        (["--from", "/no/such/checkpoint", "--trunk-width", "0"], 1, ["/no/such/checkpoint"]),
        (["--lr", "0"], 2, ["learning rate"]),
        (["--steps", "0"], 2, ["steps is 0"]),
        (["--set", "optimizer_lr=1e-3"], 2, ["decided by the run; say --lr"]),
        (["--final-lr", "1e-6"], 2, ["--final-lr does nothing under the schedule 'none'"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    words: list[str], code: int, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgevla_train(tmp_path / "run", *words) == code
    says(capsys, *parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_policy_or_dataset_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--policy", "act"]) == 2
    says(capsys, "--dataset is missing")
    assert main(["train", "--from", "/no/such/run", "--recipe", "snapflow", "--dataset", PUSHT]) == 2
    says(capsys, "--from /no/such/run: no checkpoint lies there")


def test_a_finished_or_changed_run_is_not_resumed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(trained)]) == 2
    says(capsys, "all of its 4 steps", "--steps")
    assert main(["train", "--resume", str(trained), "--steps", "9", "--lr", "1"]) == 2
    says(capsys, "cannot change", "--from")
    assert main(["train", "--resume", str(tmp_path)]) == 2
    says(capsys, "no checkpoint to resume from")
    assert edgevla_train(trained) == 2
    says(capsys, "--resume")


def test_a_run_is_not_resumed_on_another_dataset(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    other = str(DATASETS / "so101_v30")
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "9", "--dataset", other]) == 1
    says(capsys, "is not the dataset that the run began with")


def test_a_policy_with_another_camera_asks_for_the_binding(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load_policy(trained / "checkpoints" / "last")
    features = policy.config.input_features
    policy.config.input_features = {
        k.replace("observation.image", "observation.images.top"): f for k, f in features.items()
    }
    folder = save_policy(policy, tmp_path / "renamed")
    words = [
        "train",
        "--policy",
        "act",
        "--dataset",
        PUSHT,
        "--from",
        str(folder),
        "--steps",
        "1",
        "--batch-size",
        "2",
    ]
    assert main([*words, "--output", str(tmp_path / "a")]) == 2
    says(capsys, "'observation.images.top'", "--camera top=image")
    assert main([*words, "--output", str(tmp_path / "b"), "--camera", "top=image", "--episodes", "0:1"]) == 0
    stored = load_policy(tmp_path / "b" / "checkpoints" / "last")
    assert stored.processors.rename_map == {"observation.image": "observation.images.top"}
    assert main(["train", "--resume", str(tmp_path / "b"), "--steps", "2"]) == 0
