"""What the monitor knows past the sockets: the run directory, the guardian's own word, and who is still alive.

Messages say what the control loop does. When it is silent, killed or gone, these files and pids say what is true of
the torque.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevla.session import NOTE, GuardianStatus, is_alive, read_guardian_status


@dataclass(frozen=True)
class Outside:
    """guardian: its newest status, kept when the run directory has been removed; None where there never was one."""

    guardian: GuardianStatus | None = None
    is_guardian_alive: bool = field(default=False)
    is_supervisor_alive: bool = True
    is_folder_there: bool = True


def look(folder: Path, supervisor_pid: int, before: Outside) -> Outside:
    """What is true now; the guardian's last word stays when its file has gone."""
    guardian = read_guardian_status(folder) or before.guardian
    return replace(
        before,
        guardian=guardian,
        is_guardian_alive=guardian is not None and is_running(guardian.pid),
        is_supervisor_alive=is_running(supervisor_pid),
        is_folder_there=(folder / NOTE).exists(),
    )


def is_running(pid: int) -> bool:
    """Whether the process does anything: one that has died and waits to be counted (a zombie) does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123  several times a second
            return stat.read().rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"])
    except FileNotFoundError:
        return is_alive(pid) if not os.path.isdir("/proc/self") else False  # noqa: PTH112
    except OSError:
        return False
