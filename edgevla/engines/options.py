"""What every engine is told, and what all of them give back."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EngineOptions:
    """threads: of one graph; 0 means all cores but one, so that the control loop keeps a core.
    prepack: False leaves weights memory-mapped and shared between processes (slower runs, far less memory).
    max_batch: observations that one run may take.
    keep_on_device: outputs stay on the GPU, as whatever the next graph takes.
    provider_options: passed to onnxruntime's provider as they are.
    """

    threads: int = 0
    prepack: bool = True
    device_id: int = 0
    keep_on_device: bool = False
    max_batch: int = 1
    provider_options: dict[str, Any] = field(default_factory=dict)

    @property
    def n_threads(self) -> int:
        return self.threads or max(1, n_cores() - 1)


def n_cores() -> int:
    """Cores this process may use (a container or taskset may allow fewer than the machine has)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def to_numpy(value: Any) -> np.ndarray:
    """An engine's output on the host, wherever it lives."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())
