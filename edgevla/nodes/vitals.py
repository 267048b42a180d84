"""What every node says of itself five times a second, how it hears that it shall end, and how to be on time."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the guardian imports this: no numpy
    from edgevla.messages import Heartbeat, Phase

PAGE = os.sysconf("SC_PAGE_SIZE")
PARENT = "EDGEVLA_PARENT"
"""Environment variable with the pid of who started this process: asked at start-up, the kernel's own answer may come
too late, from a process that was orphaned before it could ask."""
_parent = int(os.environ.get(PARENT) or os.getppid())
REAL_TIME_PRIORITY = 40
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Environment of processes that multiply no large matrices with numpy, as none of a deployment does: its threads, one
per core, spin while they wait for work, 40 ms of processor time in every start."""


def use_one_blas_thread() -> None:
    """Here, and in what this process starts; where the user has not said otherwise. Before numpy is imported."""
    for name, value in ONE_BLAS_THREAD.items():
        os.environ.setdefault(name, value)


def rss_bytes() -> int:
    """Memory this process holds now."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123  called in the loop: the shortest way
            return int(file.read().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def heartbeat(phase: Phase, counters: Mapping[str, int]) -> Heartbeat:
    """Of this process."""
    from edgevla.messages import Heartbeat

    return Heartbeat(os.getpid(), phase, {k: max(0, int(v)) for k, v in counters.items()}, rss_bytes())


AT_ONCE = "! "
"""Before a sentence on stderr that a person must read while the process still starts."""


def tell_at_once(sentence: str) -> None:
    """To whoever started this process; they are shown it even before everything is ready."""
    with contextlib.suppress(OSError):  # nobody may be left to read it
        print(f"{AT_ONCE}{sentence}", file=sys.stderr, flush=True)


def is_orphan() -> bool:
    """Whether the process that started this one has died."""
    return os.getppid() != _parent


END = signal.SIGUSR1
"""How a supervisor ends its children. SIGTERM may come to a whole group at once (`systemctl stop`, a shutdown), and
then the supervisor brings the arm to rest first: its children are needed until it says so."""

STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""What makes a process stand still and can be refused."""
_OTHERS = STOPS | {
    *(signal.SIGKILL, signal.SIGSTOP),  # cannot be refused
    *(
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
    ),
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),  # end nobody
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python makes errors of them
}
ENDS: frozenset[int] = frozenset(signal.valid_signals()) - _OTHERS
"""What ends a process that has said nothing about it, and can be heard: SIGTERM, SIGQUIT, SIGUSR2, SIGALRM, ... Sent to
all processes of a deployment at once, one that nobody hears would leave an arm with torque and without anybody."""


def has_supervisor() -> bool:
    """Whether the process that started this one is a supervisor, and lives."""
    return PARENT in os.environ and not is_orphan()


def stop_when_asked() -> threading.Event:
    """Set by `END`, and by whatever else ends a process where no living supervisor decides."""
    stopping = threading.Event()

    def heard(*_: object) -> None:
        if not has_supervisor():
            stopping.set()

    for number in ENDS - {END}:
        signal.signal(number, heard)
    signal.signal(END, lambda *_: stopping.set())
    return stopping


def leave_signals_to_the_supervisor() -> None:
    """Of a process that the arm depends on: what would end or stop it is not heard, but SIGTERM and `END`."""
    for number in (ENDS | STOPS) - {signal.SIGTERM, END}:
        signal.signal(number, signal.SIG_IGN)


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
