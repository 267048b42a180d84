"""A run's folder belongs to one training at a time: it is claimed before anything else happens.

The claim is a lock on `RUN/.running`, which the kernel drops when the process dies, however it dies. Where a file
system knows no locks, the process that the file names is asked whether it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from edgevla.checkpoints import CHECKPOINTS
from edgevla.errors import UsageError
from edgevla.session import is_alive

CLAIM = ".running"


def default_folder(policy: str) -> Path:
    """A new folder below `runs`, named by the policy and the time."""
    return Path("runs") / f"{policy}-{datetime.now():%m%d-%H%M%S}"


@contextmanager
def claimed_anew(wanted: str, policy: str) -> Iterator[Path]:
    """The folder of a new run, held until the end of the block: the one that was asked for, else one that nobody has.

    A folder in which nothing came about goes away again.

    Raises:
        UsageError: what was asked for is a file, holds a run, or is another process's.
    """
    folder, is_made = _take(Path(wanted)) if wanted else (_free(default_folder(policy)), True)
    try:
        with claimed(folder):
            if (folder / CHECKPOINTS).exists():
                raise UsageError(
                    f"{folder} holds a run already; go on with it by --resume {folder}, or choose another --output, "
                    f"such as {_next_free(folder)}"
                )
            yield folder
    finally:
        if is_made:
            with suppress(OSError):  # not empty: the usual end
                folder.rmdir()


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Holds a run's folder until the end of the block.

    Raises:
        UsageError: another process trains there; names it.
    """
    handle = _lock(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            (folder / CLAIM).unlink()
        os.close(handle)


def _take(folder: Path) -> tuple[Path, bool]:
    """The folder, made where it is missing, and whether it was."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --output for the run's folder")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return folder, False
    return folder, True


def _free(folder: Path) -> Path:
    """A folder that did not exist: this one, or with the next number behind its name. To make it is to have it."""
    for number in count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("numbers do not end")


def _next_free(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(name for name in names if not name.exists())


def _lock(folder: Path) -> int:
    """An open file that holds the claim."""
    path = folder / CLAIM
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _hold(handle, folder)
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_myself()).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever had it has just removed it: the name is free for a new one


def _hold(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(folder, _holder(handle)) from None
    except OSError:  # no locks on this file system
        holder = _holder(handle)
        if holder and (holder.get("host") != socket.gethostname() or is_alive(int(holder.get("pid", 0)))):
            raise _taken(folder, holder) from None


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}


def _holder(handle: int) -> dict[str, Any]:
    try:
        held = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _taken(folder: Path, holder: dict[str, Any]) -> UsageError:
    who = (
        f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
        if holder
        else ""
    )
    return UsageError(
        f"another edgevla train is writing into {folder}{who}; let it end, or choose another --output, such as "
        f"{_next_free(folder)}"
    )
