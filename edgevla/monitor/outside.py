"""What the monitor knows past the sockets: the run directory, the guardian's own word, and who is still alive.

Messages say what the control loop does. When it is silent, killed or gone, these files and pids say what is true of
the torque.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from edgevla.errors import WireError
from edgevla.session import (
    NOTE,
    Deployment,
    GuardianStatus,
    began,
    is_alive,
    read_deployment,
    read_guardian_status,
    read_preparing,
)

HAS_PROC = Path("/proc/self/stat").exists()


@dataclass(frozen=True)
class Outside:
    """guardian: its newest status, kept when the run directory has been removed; None where there never was one.

    ran_ns: how long the deployment has been there, or was; None: not known. noted_ns: when its note was written;
    execution: what it says of how chunks become goals. preparing: how far the engines are that are built before the
    robot's processes begin; empty: none is.
    """

    guardian: GuardianStatus | None = None
    is_guardian_alive: bool = False
    is_supervisor_alive: bool = True
    is_folder_there: bool = True
    ran_ns: int | None = None
    noted_ns: int = 0
    execution: str = ""
    preparing: str = ""


def look(folder: Path, note: Deployment, before: Outside) -> Outside:
    """What is true now; the guardian's last word stays when its file has gone."""
    guardian = read_guardian_status(folder) or before.guardian
    noted_ns = _written_ns(folder / NOTE)
    is_alive_still = is_at_work(note.supervisor_pid, note.supervisor_since)
    execution = before.execution
    if noted_ns not in (0, before.noted_ns):
        with contextlib.suppress(WireError):  # just being removed
            execution = read_deployment(folder).execution
    return replace(
        before,
        guardian=guardian,
        is_guardian_alive=guardian is not None and is_at_work(guardian.pid),
        is_supervisor_alive=is_alive_still,
        is_folder_there=noted_ns > 0,
        ran_ns=running_for(note) if is_alive_still and noted_ns else before.ran_ns,
        noted_ns=noted_ns or before.noted_ns,
        execution=execution,
        preparing=read_preparing(folder),
    )


def _written_ns(path: Path) -> int:
    """0: it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def running_for(note: Deployment) -> int | None:
    """How long ago its supervisor began, ns; None where that is not known."""
    if not note.supervisor_since or not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    began_ns = note.supervisor_since * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - began_ns)


def is_at_work(pid: int, since: int = 0) -> bool:
    """Whether the process lives and does anything: one that has died and waits to be counted (a zombie) does not."""
    return is_alive(pid, since) and (began(pid) > 0 or not HAS_PROC)
