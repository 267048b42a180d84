"""Where a training step runs: one process on one device, or one of several under Accelerate.

The single process needs no dependency beyond torch. `accelerate launch -m edgevla train ...` and `torchrun -m
edgevla train ...` start several; then Accelerate averages their gradients, and batch number i of the run goes to
process i modulo their number. Only the first process prints and writes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgevla.errors import EdgeVLAError, EngineError, MissingExtraError

from .machine import Machine
from .optim import clip_gradients
from .policies.base import Batch, Policy

T = TypeVar("T")


class Loss(nn.Module):
    """A policy's `loss` as a forward pass, which is what distributed wrappers intercept."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.policy.loss(batch, draws)


class Worker(Machine):
    """One process. `rank` and `n_ranks` say which share of the batches is its own."""

    rank, n_ranks = 0, 1

    def __init__(self, device: torch.device, *, bf16: bool) -> None:
        self.device, self.bf16 = device, bf16
        self.loss: nn.Module | None = None

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step, once the policy has its place."""
        self.loss = Loss(policy)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around the forward pass: bf16 where the run wants it."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to the parameters'."""
        loss.backward()

    def accumulating(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around the passes of one step; gradients are exchanged only in the last of them."""
        return nullcontext()

    def clip(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Norm of the gradients, before they were cut to `max_norm`."""
        return clip_gradients(parameters, max_norm)

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def wait(self) -> None:
        """Returns once every process is here."""

    def place(self, batch: Batch) -> dict[str, Any]:
        """The batch's tensors on the device; what is not a tensor stays."""
        return {
            k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
        }


class AcceleratedWorker(Worker):
    """One of several processes, by Hugging Face Accelerate (data parallel)."""

    def __init__(self, device: torch.device, *, bf16: bool) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ModuleNotFoundError as error:
            raise MissingExtraError("train", "accelerate", "needed for several processes") from error
        # Parts of a policy may not be reached by every batch's loss (heads that only inference uses).
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        self.accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=handlers)
        super().__init__(self.accelerator.device, bf16=bf16)
        self.rank, self.n_ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.is_first_here = self.accelerator.is_local_main_process
        self.n_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.n_ranks))

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        # Rates and schedules are ours, so the optimizer stays as it is and only the gradients are shared.
        self.loss = self.accelerator.prepare_model(Loss(policy))

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def accumulating(self, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else self.accelerator.no_sync(self.loss)

    def mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="mean")

    def share(self, make: Callable[[], T]) -> T:
        here = (socket.gethostname(), os.environ.get("GROUP_RANK", "0"))
        said: tuple[T | None, EdgeVLAError | None] | None = None
        if self.is_first_here:
            try:
                said = make(), None
            except EdgeVLAError as error:  # else the others would wait for ever
                said = None, error
        everywhere: list[Any] = [None] * self.n_ranks
        torch.distributed.all_gather_object(everywhere, (here, said))
        made, refusal = next(what for where, what in everywhere if where == here and what is not None)
        if refusal is not None:
            raise refusal
        return made  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        total = self.accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum")
        return bool(total > 0)

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def start_worker(device: torch.device, *, bf16: bool) -> Worker:
    """The kind that the launcher's environment asks for."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return (AcceleratedWorker if several else Worker)(device, bf16=bf16)


def choose_device(name: str) -> torch.device:
    """The named device, or the first GPU, or the CPU when none is named.

    Raises:
        EngineError: a device was named that is not there.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"device '{name}' was asked for, but this torch ({torch.__version__}) cannot use it: {reason}. "
            "Choose another with --device, such as --device cpu"
        ) from error
    return device
