"""How fast a bundle infers on this machine, and what memory that takes: one way to measure, for `bench`, `push` and
`inspect --device this`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevla.runner import BundlePolicy

N_WARM_UPS = 3
KB = 1024


@dataclass(frozen=True)
class Spent:
    """Milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Measured:
    """n: chunks, after warming up. first_ms: of the very first one. parts: `prompt`, `encode`, `denoise` (all its
    steps), `decode`. On a GPU a part ends where the host goes on, so what was begun in one may be paid in the next;
    `chunk` is all of it.
    """

    n: int
    first_ms: float
    chunk: Spent
    parts: dict[str, Spent]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of this process. peak: the most that was resident since it began. shared_out: now, each shared page divided
    by those who share it (PSS). None: this system does not say.
    """

    resident: int | None
    peak: int | None
    shared_out: int | None


def measure(
    policy: BundlePolicy,
    n: int,
    *,
    longest_s: float = float("inf"),
    is_over: Callable[[], bool] = lambda: False,
    show: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Up to n chunks on blank input, fewer where they take longer than that or `is_over` says so, but one.

    show: is told how many are done.

    Raises:
        EngineError: the engine failed.
    """
    first_ns = policy.warm_up(N_WARM_UPS)[0]
    chunks: list[int] = []
    parts: list[dict[str, int]] = []
    until = time.monotonic() + longest_s
    while len(chunks) < n and not (chunks and (is_over() or time.monotonic() > until)):
        began = time.monotonic_ns()
        parts.append(policy.run_blank(len(chunks)))
        chunks.append(time.monotonic_ns() - began)
        show(len(chunks))
    policy.reset()
    by_part = {name: _spent([part[name] for part in parts]) for name in parts[0]}
    return Measured(len(chunks), first_ns / 1e6, _spent(chunks), by_part)


def _spent(ns: Sequence[int]) -> Spent:
    p50, p99, most = np.percentile(ns, (50, 99, 100)) / 1e6
    return Spent(float(p50), float(p99), float(most))


def memory(proc: Path = Path("/proc/self")) -> MemoryUse:
    return MemoryUse(
        _bytes_of(proc / "status", "VmRSS:"),
        _bytes_of(proc / "status", "VmHWM:"),
        _bytes_of(proc / "smaps_rollup", "Pss:"),
    )


def _bytes_of(file: Path, key: str) -> int | None:
    """Of a line such as `VmHWM:   123 kB`."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * KB for line in lines if line.startswith(key)), None)
