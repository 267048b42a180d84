"""A dataset is changed as a whole: made in a folder beside it, synced, then exchanged with it in one step.

Whoever is killed on the way leaves the old dataset or the new one, and at most a hidden folder beside it, which the next
edit of the same dataset removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgevla.errors import DatasetError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""From linux/fcntl.h and linux/fs.h."""


@contextlib.contextmanager
def kept_still(root: Path, *, is_changed: bool) -> Iterator[None]:
    """Nobody records into `root` meanwhile; where it `is_changed`, nobody else reads from it to edit, either.

    Raises:
        DatasetError: a recording into it is running, or an edit of it.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, (fcntl.LOCK_EX if is_changed else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(
                f"{root} is being recorded into, or edited, right now; end that first, or wait"
            ) from None
        except OSError:
            pass  # some network file systems know no locks
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def made_beside(target: Path, *, takes_place: bool) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends well, and vanishes when it does not.

    takes_place: of a dataset that is there, which is removed afterwards; else `target` must not exist.

    Raises:
        DatasetError: it exists; somebody else makes it right now; or no folder can be exchanged there.
    """
    if not takes_place and target.exists():
        raise DatasetError(f"{target} exists already; name a new folder with -o")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.edit"
    scratch.mkdir(exist_ok=True)
    with kept_still(scratch, is_changed=True):
        try:
            _empty(scratch)
            if takes_place:
                _check_exchange(scratch, target)
            yield scratch
            _sync(scratch)
            if takes_place:
                _exchange(scratch, target)
            else:
                scratch.rename(target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _check_exchange(scratch: Path, target: Path) -> None:
    """Before the work, not after it."""
    one, other = scratch / "one", scratch / "other"
    one.mkdir()
    other.mkdir()
    try:
        _exchange(one, other)
    except DatasetError:
        raise DatasetError(_no_exchange(target)) from None
    one.rmdir()
    other.rmdir()


def _no_exchange(target: Path) -> str:
    return (
        f"{target} cannot be changed in one step, for its file system does not exchange folders; write the result "
        "elsewhere with -o, then remove the old one"
    )


def _exchange(one: Path, other: Path) -> None:
    """Each gets the other's name, in one step also across a power cut."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    failed = rename is None or rename(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )
    if failed:
        number = ctypes.get_errno() if rename is not None else errno.ENOSYS
        raise DatasetError(f"{_no_exchange(other)} ({os.strerror(number)})")


def _sync(root: Path) -> None:
    """Everything in it is on the disk before it gets its name."""
    for folder, _, files in os.walk(root):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(folder))


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
