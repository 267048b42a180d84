"""Batches ahead of the training loop: worker threads (decoding releases the GIL), delivered in order.

`Loader.batches(n)` begins at batch n of this process; batch i of process r is batch i * n_ranks + r of the run, so
several processes share an epoch and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from edgevla.errors import UsageError

from .data import TrainingData
from .policies.base import Batch


class Loader:
    """Endless batches of `data`. n_threads: 0 makes them in the caller's thread. prefetch: batches kept ready."""

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        n_ranks: int = 1,
        n_threads: int | None = None,
        prefetch: int = 4,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is not possible")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.rank, self.n_ranks = rank, n_ranks
        self.n_threads = min(4, os.cpu_count() or 1) if n_threads is None else n_threads
        self.prefetch, self.pin_memory = max(1, prefetch), pin_memory

    def batch(self, number: int) -> Batch:
        """Batch `number` of this process: a pure function of it and the seed."""
        overall = number * self.n_ranks + self.rank
        rows = self.data.batch_rows(overall, self.batch_size, self.seed)
        made: dict[str, Any] = dict(self.data.batch(rows, augment_seed=(self.seed, overall)))
        if self.pin_memory:
            made = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in made.items()}
        return made

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Batches of this process from number `first` on, without end. An error in a worker is raised here."""
        if self.n_threads == 0:
            while True:
                yield self.batch(first)
                first += 1
        pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="loader")
        ahead: deque[Future[Batch]] = deque()
        try:
            while True:
                while len(ahead) < self.prefetch:
                    ahead.append(pool.submit(self.batch, first))
                    first += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
