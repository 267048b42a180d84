"""The files of one run, in a folder of its own, and how many runs are kept.

    DIR/2026-03-01-142501-1a2b3c4d/run.flight    its newest blocks; run.1.flight: those before, of a run of many hours
                                   summary.json
                                   saved/        moments saved for good (docs/flight-recorder.md)
    DIR/latest                                   link to the newest (a file with its name where links do not work)

A policy server's log is `run.jsonl`, in lines. Nothing of an earlier run is overwritten.
A disk that is full, read-only or gone ends the log, never the run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

KEPT_BYTES = 1_000_000_000
"""All runs of one DIR together: the oldest go first, the newest stays whatever its size."""
KEPT_DAYS = 90
"""Older runs go first of all. A run with `SAVED` in it never goes, and does not count."""
PART_BYTES = 150_000_000
"""Of one part: more than fifteen hours of a six-joint arm. With the part before, a run holds twice that at most."""
SAVED = "saved"
FLUSH_BYTES, FLUSH_S = 1 << 16, 1.0
LATEST = "latest"
RUN = re.compile(r"\d{4}-\d\d-\d\d-\d{6}-[0-9a-f]{8}")

Warn = Callable[[str], None]


class LogFiles:
    """Lines or blocks in, never an exception out once it stands. warn: hears at most once that the log has ended.

    name: of the file. begin: what makes the beginning of every part, for a format that has one.

    Raises:
        OSError: the folder cannot be made, or nothing written into it: known before anything starts.
    """

    def __init__(
        self,
        place: Path,
        session: bytes,
        warn: Warn,
        name: str = "run.jsonl",
        begin: Callable[[], bytes] = bytes,
    ) -> None:
        self._name, self._begin = name, begin
        self.folder = place / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{session.hex()[:8]}"
        self._warn = warn
        self._fd = -1
        self._pending: list[bytes] = []
        self._n_pending, self._n_written, self._n_parts = 0, 0, 0
        self._flushed_s = time.monotonic()
        self.folder.mkdir(parents=True)
        self._open()
        link_latest(place, self.folder.name)
        if n := prune(place, self.folder.name, KEPT_BYTES, time.time() - KEPT_DAYS * 86_400):
            warn(
                f"{n} old run{'s' * (n > 1)} in {place} removed, to keep it below {KEPT_BYTES / 1e9:g} GB and "
                f"{KEPT_DAYS} days"
            )

    @property
    def path(self) -> Path:
        """The file of blocks, or of lines."""
        return self.folder / self._name

    @property
    def is_open(self) -> bool:
        """Whether records can still be written; a full disk ends that."""
        return self._fd >= 0

    def write(self, line: str) -> None:
        """One line of JSON, without its end."""
        self.append(line.encode() + b"\n")

    def append(self, data: bytes) -> None:
        """A line or block, whole."""
        if not self.is_open:
            return
        self._pending.append(data)
        self._n_pending += len(self._pending[-1])
        if self._n_pending >= FLUSH_BYTES or time.monotonic() - self._flushed_s >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what has gathered; a failure is said once and ends the log, not the run."""
        if not self.is_open:
            return
        data = b"".join(self._pending)
        self._pending, self._n_pending, self._flushed_s = [], 0, time.monotonic()
        try:
            if os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "it was removed", str(self.path))
            _write_all(self._fd, data)
            self._n_written += len(data)
            if self._n_written >= PART_BYTES:
                self._begin_part()
        except OSError as error:
            self._drop(error)

    def close(self, summary: str) -> None:
        """The rest of the lines, and `summary.json` whole or not at all."""
        self.flush()
        if not self.is_open:
            return
        part = self.folder / "summary.json.part"
        try:
            part.write_text(summary + "\n")
            part.replace(self.folder / "summary.json")
        except OSError as error:
            self._drop(error)
        self._close_file()

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._n_written = 0
        with contextlib.suppress(OSError):  # not every file system knows locks; then nobody looks for them
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if head := self._begin():
            _write_all(self._fd, head)
            self._n_written = len(head)

    def _begin_part(self) -> None:
        self._n_parts += 1
        if self._n_parts == 2:
            self._warn(
                f"this run's log has reached {2 * PART_BYTES / 1e6:g} MB; from now on its oldest part is dropped"
            )
        stem, _, ending = self._name.partition(".")
        self.path.replace(self.folder / f"{stem}.1.{ending}")
        self._close_file()
        self._open()

    def _drop(self, error: OSError) -> None:
        """What is there stays readable: an unfinished line is cut off."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._n_written)
        self._close_file()
        with contextlib.suppress(OSError):
            (self.folder / "summary.json.part").unlink(missing_ok=True)
        self._warn(f"the log ends here: {self.folder}: {error.strerror or error}; the run goes on without it")

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def link_latest(place: Path, name: str) -> None:
    """Makes `latest` stand for one run. What a person put there under this name stays."""
    latest, part = place / LATEST, place / f".{LATEST}-{name}"
    if latest.is_dir() and not latest.is_symlink():
        return
    try:
        part.symlink_to(name)
        part.replace(latest)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
            part.write_text(name + "\n")
            part.replace(latest)


def prune(place: Path, newest: str, most: int, oldest_s: float = 0.0) -> int:
    """Removes runs that began before `oldest_s`, then the oldest until all have at most `most` bytes; how many.

    The run `newest` stays, those that are being written by others, and those in which something was saved for good,
    which do not count.
    """
    runs = sorted(path for path in place.iterdir() if RUN.fullmatch(path.name) and path.is_dir())
    runs = [run for run in runs if not (run / SAVED).exists()]
    sizes = {run: sum(_size(file) for file in run.rglob("*")) for run in runs}
    left, n_removed = sum(sizes.values()), 0
    oldest = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(oldest_s))
    for run in runs:
        if left <= most and run.name >= oldest:
            break
        if run.name == newest or _is_written(run):
            continue
        shutil.rmtree(run, ignore_errors=True)
        left -= sizes[run]
        n_removed += 1
    return n_removed


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _is_written(run: Path) -> bool:
    return any(_is_locked(file) for file in (*run.glob("run.jsonl"), *run.glob("run.flight")))


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
