"""What every node says of itself five times a second, how it hears that it shall end, and how to be on time."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
PARENT = "EDGEVLA_PARENT"
"""Environment variable with the pid of who started this process: asked at start-up, the kernel's own answer may come
too late, from a process that was orphaned before it could ask."""
_parent = int(os.environ.get(PARENT) or os.getppid())
REAL_TIME_PRIORITY = 40


def rss_bytes() -> int:
    """Memory this process holds now."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123  called in the loop: the shortest way
            return int(file.read().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def heartbeat(phase: str, counters: Mapping[str, int]) -> dict[str, Any]:
    """Fields of a `heartbeat`."""
    return {
        "pid": os.getpid(),
        "phase": phase,
        "counters": {k: max(0, int(v)) for k, v in counters.items()},
        "rss_bytes": rss_bytes(),
    }


def is_orphan() -> bool:
    """Whether the process that started this one has died."""
    return os.getppid() != _parent


def stop_on_sigterm() -> threading.Event:
    """Set by SIGTERM. Ctrl-C is left to the supervisor, which stops everything in order."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stopping


def freeze_garbage() -> None:
    """No collection from here on: a full one takes longer than a tick. The loop makes no cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()


def ask_for_real_time() -> str:
    """Asks the kernel to run this thread before others. What it said: empty when it agreed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))
    except (OSError, AttributeError) as error:
        return (
            f"no real-time priority ({error}); the loop may run late when the machine is busy. To permit it, add to "
            f"/etc/security/limits.conf: @dialout - rtprio {REAL_TIME_PRIORITY}"
        )
    return ""
