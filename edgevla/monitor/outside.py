"""What the monitor knows past the sockets: the run directory, the guardian's own word, and who is still alive.

Messages say what the control loop does. When it is silent, killed or gone, these files and pids say what is true of
the torque.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgevla.session import NOTE, Deployment, GuardianStatus, began, is_alive, read_guardian_status

HAS_PROC = Path("/proc/self/stat").exists()


@dataclass(frozen=True)
class Outside:
    """guardian: its newest status, kept when the run directory has been removed; None where there never was one."""

    guardian: GuardianStatus | None = None
    is_guardian_alive: bool = False
    is_supervisor_alive: bool = True
    is_folder_there: bool = True


def look(folder: Path, note: Deployment, before: Outside) -> Outside:
    """What is true now; the guardian's last word stays when its file has gone."""
    guardian = read_guardian_status(folder) or before.guardian
    return replace(
        before,
        guardian=guardian,
        is_guardian_alive=guardian is not None and is_at_work(guardian.pid),
        is_supervisor_alive=is_at_work(note.supervisor_pid, note.supervisor_since),
        is_folder_there=(folder / NOTE).exists(),
    )


def is_at_work(pid: int, since: int = 0) -> bool:
    """Whether the process lives and does anything: one that has died and waits to be counted (a zombie) does not."""
    return is_alive(pid, since) and (began(pid) > 0 or not HAS_PROC)
