"""The training loop, on one page.

Each step: batches -> random draws -> loss -> gradients -> clip -> optimizer -> schedule -> log, and now and then
evaluate and save. Everything it needs is in a `Job`; nothing here knows a policy by name.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevla.checkpoints import CHECKPOINTS, PRETRAINED, TRAINING, last_of, step_of
from edgevla.errors import EdgeVLAError
from edgevla.interruption import Interruption

from .config import TrainConfig
from .policies.base import Batch, Policy
from .progress import PICTURE, TrainingLog, draw_curves
from .room import free_bytes, gigabytes, is_out_of_room
from .state import new_checkpoint, save_training_state
from .worker import Worker

log = logging.getLogger(__name__)

BatchesFrom = Callable[[int], Iterator[Batch]]
"""Batch number (of this process) -> endless batches from that number on; a pure function of seed and number."""


@dataclass
class Job:
    """One run, ready to go.

    held_out: batches of the episodes that are not trained on; None without evaluation.
    write_policy: fills a checkpoint's `pretrained_model` folder.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    scheduler: Any | None
    config: TrainConfig
    worker: Worker
    run: Path
    batches: BatchesFrom
    write_policy: Callable[[Path], None]
    log: TrainingLog
    held_out: Callable[[], Iterable[Batch]] | None = None
    trainable: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.worker.prepare(self.policy, self.optimizer)


@dataclass(frozen=True)
class TrainingOutcome:
    """step: finished steps. signal: the one that ended the run early, None when it came to its end."""

    step: int
    signal: int | None


def train(job: Job, done: int = 0) -> TrainingOutcome:
    """Trains from step `done` to `config.steps`; the last step is always saved.

    Raises:
        EdgeVLAError: the loss or its gradient is no longer finite; nothing of that step is kept.
    """
    config, worker = job.config, job.worker
    batches = job.batches(done * config.accumulate)
    step = done
    with Interruption() as interruption:
        while step < config.steps:
            step += 1
            numbers = _gradients(job, batches)
            grad_norm = worker.clip(job.trainable, config.optimizer.grad_clip_norm)
            numbers["grad_norm"] = float(grad_norm)
            _refuse_non_finite(job, step, numbers)
            lr = job.optimizer.param_groups[0]["lr"]
            job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            if job.scheduler is not None:
                job.scheduler.step()
            job.log.step(step, numbers, lr)
            stop = worker.any(interruption.signal is not None)
            if stop or step == config.steps or _is_due(step, config.save_freq):
                save(job, step)
            if job.held_out and (step == config.steps or _is_due(step, config.eval_freq or config.save_freq)):
                job.log.evaluation(step, evaluate(job))
            if stop:
                break
    if worker.rank == 0:
        _draw(job)
    return TrainingOutcome(step, interruption.signal)


def _gradients(job: Job, batches: Iterator[Batch]) -> dict[str, float]:
    """Adds up the gradients of one step's batches; returns the means of loss and parts, and the wait for data."""
    worker, n = job.worker, job.config.accumulate
    job.policy.train()
    sums: dict[str, torch.Tensor] = {}
    waited = 0.0
    for i in range(n):
        begun = time.monotonic()
        batch = worker.place(next(batches))
        waited += time.monotonic() - begun
        draws = job.policy.draw(batch)
        assert worker.loss is not None
        with worker.accumulating(is_last=i == n - 1):
            with worker.autocast():
                loss, parts = worker.loss(batch, draws)
            worker.backward(loss / n)
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float().mean() / n
    # One transfer from the device for all of them.
    values = worker.mean(torch.stack([v.to(worker.device) for v in sums.values()])).tolist()
    return {**dict(zip(sums, values, strict=True)), "data_s": waited}


def _refuse_non_finite(job: Job, step: int, numbers: dict[str, float]) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(numbers[name]):
            what = "loss" if name == "loss" else "norm of the gradient"
            raise EdgeVLAError(
                f"the {what} became {numbers[name]} at step {step} (learning rate "
                f"{job.optimizer.param_groups[0]['lr']:.3g}); look for wild values in the dataset with "
                "`edgevla inspect`, or lower the rate with --lr. Earlier checkpoints of the run are unharmed",
                step=step,
            )


def _is_due(step: int, freq: int) -> bool:
    return freq > 0 and step % freq == 0


@torch.no_grad()
def evaluate(job: Job) -> dict[str, float]:
    """Mean loss and parts over the held-out batches, in eval mode, with the same random draws every time."""
    assert job.held_out is not None
    sums: dict[str, float] = {}
    n = 0
    devices = [job.worker.device] if job.worker.device.type == "cuda" else []
    job.policy.eval()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(job.config.seed)
        for raw in job.held_out():
            batch = job.worker.place(raw)
            with job.worker.autocast():
                loss, parts = job.policy.loss(batch, job.policy.draw(batch))
            size = len(batch["action"])
            n += size
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value.float().mean()) * size
    return {name: total / n for name, total in sums.items()}


def save(job: Job, step: int) -> None:
    """Writes one checkpoint, whole or not at all, and the picture of the loss."""
    if job.worker.rank == 0:
        try:
            _write(job, step)
        except Exception as error:
            if not is_out_of_room(error):
                raise
            raise _no_room(job, step) from error
        if step < job.config.steps:
            _draw(job)
    job.worker.wait()


def _write(job: Job, step: int) -> None:
    with new_checkpoint(job.run, step, job.config.steps) as folder:
        job.write_policy(folder / PRETRAINED)
        save_training_state(
            folder / TRAINING,
            step,
            job.optimizer,
            job.scheduler,
            job.config.batch_size,
            job.worker.n_ranks,
        )


def _no_room(job: Job, step: int) -> EdgeVLAError:
    run = job.run
    safe = last_of(run / CHECKPOINTS)
    then = (
        f"Step {step_of(safe)} is safe ({safe}): make room, and go on with: edgevla train --resume {run}"
        if safe is not None
        else "No step of the run is saved yet: make room, or choose another disk with --output, and start again"
    )
    return EdgeVLAError(
        f"there is no room for the checkpoint of step {step}: it takes about {gigabytes(checkpoint_bytes(job))}, and "
        f"{gigabytes(free_bytes(run))} are free for {run}. {then}",
        step=step,
    )


def checkpoint_bytes(job: Job) -> int:
    """About what one checkpoint takes on disk: weights, or the factors alone, and the optimizer's two moments."""
    own = job.trainable if job.policy.is_adapted else list(job.policy.state_dict().values())
    weights = sum({t.data_ptr(): t.nbytes for t in own}.values())
    return weights + 2 * sum(p.nbytes for p in job.trainable)


def _draw(job: Job) -> None:
    """The picture is worth no run: where it finds no room, training goes on."""
    try:
        draw_curves(job.run, f"{job.config.policy} on {Path(job.config.dataset).name}")
    except OSError as error:
        if not is_out_of_room(error):
            raise
        log.warning("no room for %s", job.run / PICTURE)
