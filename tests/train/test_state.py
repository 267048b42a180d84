"""A checkpoint is whole or absent, whatever dies and whenever; and it holds what LeRobot expects where it expects it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.checkpoints import find_checkpoint
from edgevla.errors import CheckpointError, UsageError
from edgevla.train.state import (
    load_training_state,
    new_checkpoint,
    restore_rng,
    rng_state,
    save_training_state,
    seed_everything,
    step_name,
    tidy,
)

# One child per system call that writing a checkpoint makes: it dies there, by kill -9, and the parent looks.
KILLED_ANYWHERE = """
import os, signal, sys
from pathlib import Path
from edgevla.checkpoints import find_checkpoint
from edgevla.train.state import new_checkpoint, tidy

run, again = Path(sys.argv[1]), sys.argv[2] == "again"

def write(step, text):
    with new_checkpoint(run, step, 100) as folder:
        for part in ("pretrained_model", "training_state"):
            (folder / part).mkdir()
        (folder / "pretrained_model" / "model.safetensors").write_text(text)
        (folder / "training_state" / "training_step.json").write_text(text)

write(10, "first")
target = 10 if again else 20
calls = 0

def dies_at(n):
    global calls
    calls = 0
    def wrap(original):
        def call(*args, **kwargs):
            global calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        return call
    for name in ("mkdir", "open", "rename", "replace", "symlink", "unlink", "rmdir", "fsync"):
        setattr(os, name, wrap(getattr(os, name)))
    write(target, "second")
    os._exit(0)

n = seen_first = seen_second = 0
while True:
    n += 1
    child = os.fork()
    if child == 0:
        dies_at(n)
    _, status = os.waitpid(child, 0)
    tidy(run)
    found = find_checkpoint(run)
    files = [found / "pretrained_model" / "model.safetensors", found / "training_state" / "training_step.json"]
    texts = {f.read_text() for f in files}
    assert len(texts) == 1, (n, texts)
    seen_first += texts == {"first"}
    seen_second += texts == {"second"}
    assert not list((run / "checkpoints").glob(".writing*")), n
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    write(10, "first")  # whatever it left, the next run can write
    os.system(f"rm -rf '{run}/checkpoints/000020'; ln -sfn 000010 '{run}/checkpoints/last'")
print(n, seen_first, seen_second)
"""


@pytest.mark.parametrize("mode", ["new", "again"])
def test_killed_at_any_system_call_a_complete_checkpoint_remains(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED_ANYWHERE, str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    n, first, second = map(int, done.stdout.split())
    assert n > 15, "the deaths must cover the whole of the writing"
    assert first > 5
    assert second > 1


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill() -> None:
        with new_checkpoint(tmp_path, 5, 10) as folder:
            (folder / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def complete(folder: Path) -> Path:
    (folder / "pretrained_model").mkdir(parents=True)
    (folder / "training_state").mkdir()
    (folder / "training_state" / "training_step.json").write_text('{"step": 1}')
    return folder


def test_a_run_is_found_by_any_of_its_names(tmp_path: Path) -> None:
    newest = complete(tmp_path / "checkpoints" / "000020")
    complete(tmp_path / "checkpoints" / "000003")
    for name in ("", "checkpoints", "checkpoints/000020", "checkpoints/000020/pretrained_model"):
        assert find_checkpoint(tmp_path / name) == newest  # without `last`, the newest complete one
    (tmp_path / "checkpoints" / "last").symlink_to("000003")
    assert find_checkpoint(tmp_path).name == "000003"
    assert find_checkpoint(tmp_path / "checkpoints" / "last").name == "000003"
    (tmp_path / "checkpoints" / "last").unlink()
    (tmp_path / "checkpoints" / "last").symlink_to("000099")
    assert find_checkpoint(tmp_path / "checkpoints" / "last") == newest


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        find_checkpoint(tmp_path)


def test_step_names_are_as_wide_as_the_run_needs() -> None:
    assert step_name(20, 100) == "000020"
    assert step_name(20, 10_000_000) == "00000020"


def optimized() -> tuple[torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.5}]
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1))
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return optimizer, scheduler


def test_the_training_state_has_lerobots_files_and_names(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    optimizer, scheduler = optimized()
    save_training_state(tmp_path / "s", 7, optimizer, scheduler, batch_size=8)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "optimizer_param_groups.json",
        "optimizer_state.safetensors",
        "rng_state.safetensors",
        "scheduler_state.json",
        "training_step.json",
    ]
    assert json.loads((tmp_path / "s" / "training_step.json").read_text())["step"] == 7
    assert set(load_file(tmp_path / "s" / "optimizer_state.safetensors")) == {
        f"state/{i}/{name}" for i in range(4) for name in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {"py_rng_state", "np_rng_state_values", "torch_rng_state"} <= set(
        load_file(tmp_path / "s" / "rng_state.safetensors")
    )


def test_optimizer_and_schedule_come_back_exactly(tmp_path: Path) -> None:
    optimizer, scheduler = optimized()
    save_training_state(tmp_path / "s", 7, optimizer, scheduler, batch_size=8)
    other, other_scheduler = optimized()
    for group in other.param_groups:
        group["lr"] = 99.0
    for state in other.state.values():
        state["exp_avg"].zero_()
    assert load_training_state(tmp_path / "s", other, other_scheduler, torch.device("cpu")) == 7
    mine, theirs = optimizer.state_dict(), other.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    for i, state in mine["state"].items():
        assert all(torch.equal(v, theirs["state"][i][k]) for k, v in state.items())
    assert scheduler.state_dict() == other_scheduler.state_dict()


def test_moments_take_the_layout_of_their_parameter(tmp_path: Path) -> None:
    """A fused step goes through memory, not through indices: a transposed parameter needs transposed moments."""
    from edgevla.train.config import OptimizerConfig
    from edgevla.train.optim import build_optimizer

    def made() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3).t())
        return weight, build_optimizer(OptimizerConfig(lr=0.1), [{"params": [weight]}])

    def step(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, k: int) -> None:
        weight.grad = torch.arange(12.0).reshape(3, 4).mul(k).sin()
        optimizer.step()

    (a, straight), (b, resumed) = made(), made()
    step(a, straight, 1)
    save_training_state(tmp_path / "s", 1, straight, None, batch_size=1)
    b.data.copy_(a.data)
    load_training_state(tmp_path / "s", resumed, None, torch.device("cpu"))
    for weight, optimizer in ((a, straight), (b, resumed)):
        step(weight, optimizer, 2)
    assert torch.equal(a, b)


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    optimizer, scheduler = optimized()
    save_training_state(tmp_path / "s", 7, optimizer, scheduler, batch_size=8)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(CheckpointError, match="other parameters"):
        load_training_state(tmp_path / "s", other, None, torch.device("cpu"))


@pytest.mark.parametrize(
    "name", ["optimizer_state.safetensors", "training_step.json", "rng_state.safetensors"]
)
def test_damaged_training_state_is_refused(name: str, tmp_path: Path) -> None:
    optimizer, scheduler = optimized()
    save_training_state(tmp_path / "s", 7, optimizer, scheduler, batch_size=8)
    os.truncate(tmp_path / "s" / name, 3)
    with pytest.raises(CheckpointError, match="damaged"):
        load_training_state(tmp_path / "s", optimizer, scheduler, torch.device("cpu"))


def test_all_generators_continue_where_they_were() -> None:
    import random

    import numpy as np

    def draw() -> tuple[Any, ...]:
        return random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002

    seed_everything(3)
    np.random.normal()  # noqa: NPY002  numpy now holds the second value of a pair
    state = rng_state()
    first = draw()
    draw()
    restore_rng(state)
    again = draw()
    assert again[0] == first[0]
    assert again[2] == pytest.approx(first[2], rel=1e-6)  # the file holds it as float32, as LeRobot's does
    assert again[3] == first[3]


def test_tidying_restores_a_folder_that_was_being_replaced(tmp_path: Path) -> None:
    complete(tmp_path / "checkpoints" / ".old-000010")
    (tmp_path / "checkpoints" / ".writing-000020-1").mkdir()
    tidy(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000010"]
