"""Room on a disk: how much there is, whether an error says that there is none, and a file that has its room for sure."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full; the user's share of it is used up; a file may not grow so far (ulimit -f)."""
_IN_WORDS = re.compile(rf"(os error|\[Errno) ({'|'.join(map(str, NO_ROOM))})\b")
"""As libraries hand the number on that have no OSError: safetensors, shutil.copytree."""
_BLOCK = 1 << 20


def is_out_of_room(error: BaseException) -> bool:
    """Whether an error means that the disk is full, however torch wraps it."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    return _IN_WORDS.search(str(error)) is not None


def free_bytes(folder: Path) -> int:
    """What a user may still write where `folder` is, or will be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    state = os.statvfs(there)
    return state.f_bavail * state.f_frsize


def gigabytes(n_bytes: float) -> str:
    """As a person reads it: `1.20 GB`, `3.4 MB`."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def reserve(path: Path, size: int) -> None:
    """Makes a file of this size whose every byte has its place on the disk; what it holds already stays.

    A file with holes, mapped into memory, ends the process with SIGBUS where the disk fills up under it.

    Raises:
        OSError: there is no room; the file is as it was, or is gone if it is new.
    """
    is_new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _allocate(handle, size)
        os.ftruncate(handle, size)
    except OSError:
        if is_new:
            path.unlink()
        raise
    finally:
        os.close(handle)


def _allocate(handle: int, size: int) -> None:
    if not size:
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        written = os.fstat(handle).st_size
        while written < size:  # a file system that reserves nothing gives room to what is written
            written += os.pwrite(handle, bytes(min(_BLOCK, size - written)), written)
