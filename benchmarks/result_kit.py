"""What every file of results says of how it came about."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def conditions(script: str, is_short: bool) -> str:
    """Command, commit, day, machine. is_short: less than the command does by default."""
    command = shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]])
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = found.stdout.strip() or "unknown"
    load = os.getloadavg()[0]
    begin = "**A short run, to be made again without these options**: " if is_short else ""
    return (
        f"{begin}`{command}`, commit {commit}, {datetime.date.today()},\n{os.cpu_count()} cores "
        f"{platform.machine()}, load average {load:.1f} at the end (other work ran, if it is not small)."
    )
