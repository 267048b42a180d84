"""The loop: it learns, it continues to the bit, it stops when told and when numbers break."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.checkpoints import find_checkpoint
from edgevla.errors import EdgeVLAError
from edgevla.train.config import SchedulerConfig
from edgevla.train.loop import TrainingOutcome, evaluate, save, train
from edgevla.train.progress import TrainingLog, draw_curves, duration, read_metrics, smooth
from edgevla.train.state import load_training_state, seed_everything


def weights(run: Path, step: int = 20) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / f"{step:06d}" / "pretrained_model" / "model.safetensors")


def resume(toy: Any, run: Path, config: Any = None, data: Any = None) -> TrainingOutcome:
    """What the command line does: a fresh process' objects, then everything from the checkpoint."""
    seed_everything(999)
    checkpoint = find_checkpoint(run)
    done = int(checkpoint.name)
    job = toy.job(run, config, policy=toy.Toy(toy.Config()), done=done, data=data)
    from safetensors.torch import load_file

    stored = load_file(checkpoint / "pretrained_model" / "model.safetensors")
    job.policy.load_state_dict({k.removeprefix("model."): v for k, v in stored.items()})
    load_training_state(checkpoint / "training_state", job.optimizer, job.scheduler, torch.device("cpu"))
    return train(job, done)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ten_steps_and_ten_resumed_are_twenty_straight_to_the_bit(
    toy: Any, accumulate: int, tmp_path: Path
) -> None:
    config = toy.config(accumulate=accumulate)
    train(toy.job(tmp_path / "straight", config))
    train(toy.job(tmp_path / "parts", config))
    for name in ("000020", "last"):
        os.system(f"rm -r {tmp_path}/parts/checkpoints/{name}")
    assert resume(toy, tmp_path / "parts", config) == TrainingOutcome(20, None)
    straight, parts = weights(tmp_path / "straight"), weights(tmp_path / "parts")
    assert straight.keys() == parts.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, parts[name]), name
    for file in ("optimizer_state.safetensors", "rng_state.safetensors", "scheduler_state.json"):
        a, b = (tmp_path / run / "checkpoints/000020/training_state" / file for run in ("straight", "parts"))
        assert a.read_bytes() == b.read_bytes(), file


def test_a_resumed_run_with_another_data_order_differs(toy: Any, tmp_path: Path) -> None:
    """The comparison above would notice a loader that starts again from its beginning."""
    train(toy.job(tmp_path / "straight"))
    train(toy.job(tmp_path / "parts"))
    for name in ("000020", "last"):
        os.system(f"rm -r {tmp_path}/parts/checkpoints/{name}")
    resume(toy, tmp_path / "parts", data=toy.Data(seed=1))
    assert not torch.equal(
        weights(tmp_path / "straight")["model.first.weight"],
        weights(tmp_path / "parts")["model.first.weight"],
    )


def test_it_learns(toy: Any, tmp_path: Path) -> None:
    train(toy.job(tmp_path, toy.config(steps=200, save_freq=0, scheduler=SchedulerConfig()), dropout=0.0))
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert rows[-1]["step"] == 200
    assert {"loss", "l1_loss", "grad_norm", "lr", "steps_per_s", "data_s"} <= set(rows[0])


def test_checkpoints_fall_on_multiples_and_on_the_last_step(toy: Any, tmp_path: Path) -> None:
    train(toy.job(tmp_path, toy.config(steps=23)))
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["000010", "000020", "000023", "last"]
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("000023")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves_it(toy: Any, number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)

    class Interrupting(toy.Data):
        def batch(self, i: int) -> dict[str, torch.Tensor]:
            if i == 6:
                os.kill(os.getpid(), number)
            return super().batch(i)

    assert train(toy.job(tmp_path, data=Interrupting())) == TrainingOutcome(7, number)
    assert find_checkpoint(tmp_path).name == "000007"
    assert signal.getsignal(number) is before
    assert resume(toy, tmp_path) == TrainingOutcome(20, None)
    train(toy.job(tmp_path / "straight"))
    assert torch.equal(
        weights(tmp_path)["model.first.weight"], weights(tmp_path / "straight")["model.first.weight"]
    )


def test_a_second_signal_does_not_wait(toy: Any, tmp_path: Path) -> None:
    class Impatient(toy.Data):
        def batch(self, i: int) -> dict[str, torch.Tensor]:
            if i == 6:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(i)

    with pytest.raises(KeyboardInterrupt):
        train(toy.job(tmp_path, data=Impatient()))


def test_a_loss_that_is_not_finite_stops_at_its_step(toy: Any, tmp_path: Path) -> None:
    job = toy.job(tmp_path, data=toy.Data(poison=12))
    with pytest.raises(EdgeVLAError, match="loss became nan at step 13") as error:
        train(job)
    assert error.value.fields["step"] == 13
    assert find_checkpoint(tmp_path).name == "000010"
    assert all(torch.isfinite(p).all() for p in job.policy.parameters()), "the step was not applied"


def test_accumulated_batches_are_one_large_batch(toy: Any, tmp_path: Path) -> None:
    """Mean over equal batches; batch norm is left out, it sees each batch alone."""

    def run(name: str, accumulate: int, size: int) -> torch.Tensor:
        class Halves(toy.Data):
            def batch(self, i: int) -> dict[str, torch.Tensor]:
                whole = toy.Data(8).batch(i * size // 8)
                half = slice((i * size) % 8, (i * size) % 8 + size)
                return {k: v[half] for k, v in whole.items()}

        config = toy.config(steps=3, accumulate=accumulate, save_freq=0)
        seed_everything(0)
        policy = toy.Toy(toy.Config(dropout=0.0, noise=0.0))
        policy.norm = torch.nn.Identity()  # type: ignore[assignment]
        train(toy.job(tmp_path / name, config, data=Halves(), policy=policy))
        return policy.first.weight

    torch.testing.assert_close(run("two", 2, 4), run("one", 1, 8), rtol=1e-5, atol=1e-7)


def test_bf16_autocast_trains_in_float32_parameters(toy: Any, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    job = toy.job(tmp_path, toy.config(steps=3, precision="bf16"))
    job.policy.first.register_forward_hook(lambda m, i, o: seen.append(o.dtype))  # type: ignore[operator]
    train(job)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in job.policy.parameters()} == {torch.float32}


def test_evaluation_changes_nothing_and_repeats(toy: Any, tmp_path: Path) -> None:
    data = toy.Data(seed=5)
    config = toy.config(eval_freq=5)
    job = toy.job(tmp_path / "a", config)
    job.held_out = lambda: [data.batch(0), data.batch(1)]
    train(job)
    train(toy.job(tmp_path / "b", config))
    assert torch.equal(
        weights(tmp_path / "a")["model.first.weight"], weights(tmp_path / "b")["model.first.weight"]
    )
    rows = [r for r in read_metrics(tmp_path / "a") if "eval_loss" in r]
    assert [r["step"] for r in rows] == [5, 10, 15, 20]
    assert evaluate(job) == evaluate(job)
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"]


def test_the_log_of_a_resumed_run_has_every_step_once(toy: Any, tmp_path: Path) -> None:
    train(toy.job(tmp_path))
    for name in ("000020", "last"):
        os.system(f"rm -r {tmp_path}/checkpoints/{name}")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # killed while writing
    resume(toy, tmp_path)
    assert [r["step"] for r in read_metrics(tmp_path)] == [5, 10, 15, 20]


def test_the_picture_is_drawn_with_and_without_held_out_loss(toy: Any, tmp_path: Path) -> None:
    assert draw_curves(tmp_path, "empty") is None
    train(toy.job(tmp_path))
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    log = TrainingLog(tmp_path, n_steps=20, log_freq=5, done=20, out=None)
    log.evaluation(20, {"loss": 0.3})
    log.close()
    draw_curves(tmp_path, "with held-out loss")
    assert (tmp_path / "loss.png").read_bytes() != picture


def test_tensorboard_gets_the_same_numbers(toy: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = toy.job(tmp_path)
    job.log = TrainingLog(tmp_path, n_steps=20, log_freq=5, tensorboard=True, out=None)
    train(job)
    job.log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {e.step: e.value for e in events.Scalars("train/loss")}
    assert scalars == {r["step"]: pytest.approx(r["loss"]) for r in read_metrics(tmp_path)}


def test_progress_says_rate_time_left_and_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    now = [0.0]
    log = TrainingLog(tmp_path, n_steps=100, log_freq=10, out=sys.stderr, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 2.0
        log.step(step, {"loss": 0.5, "grad_norm": 1.0, "data_s": 0.0}, lr=1e-4)
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 5/100 (5 %)  loss 0.5  lr 0.0001  0.5 steps/s  3 min 10 s left"
    assert lines[-1] == "step 100/100 (100 %)  loss 0.5  lr 0.0001  0.5 steps/s"


def test_durations_and_smoothing() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7620)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 07 min",
    ]
    assert smooth([1.0, 1.0, 1.0]) == [1.0, 1.0, 1.0]
    assert len(smooth([float(i) for i in range(100)])) == 100


def test_saving_twice_at_one_step_replaces(toy: Any, tmp_path: Path) -> None:
    job = toy.job(tmp_path, dataclasses.replace(toy.config(), steps=1))
    train(job)
    job.policy.first.weight.data.zero_()  # type: ignore[union-attr]
    save(job, 1)
    assert not weights(tmp_path, 1)["model.first.weight"].any()
