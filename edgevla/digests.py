"""Digests of files' whole content, each file read once.

Sizes and times are no proof of what a file holds (it may be replaced by one of equal size, a copy keeps its times), and
a sample of bytes misses one picture of a thousand. Reading goes at about the disk's speed, and what was read is
remembered by device, inode, size and times, of which the time of change (ctime) cannot be set back by a copying tool.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REMEMBERED = "file-digests.jsonl"
SETTLED_NS = 2_000_000_000
"""A file that changed so shortly ago may change again within the clock's tick, and is not remembered."""
MOST_REMEMBERED = 1 << 24
"""Bytes of the memory; a larger one is begun anew."""
_BLOCK = 1 << 20

Stamp = tuple[int, int, int, int, int]
"""(device, inode, size, time of writing, time of change) of a file, times in ns."""


def cache_folder() -> Path:
    """`$EDGEVLA_CACHE`, else `~/.cache/edgevla` (or under XDG_CACHE_HOME)."""
    if named := os.environ.get("EDGEVLA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgevla"


def digests(root: Path, files: Iterable[str]) -> list[tuple[str, str]]:
    """(file, digest of its content, `-` where it is missing), each file once, in the order of their names."""
    names = sorted(set(files))
    known = _remembered()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: _digest(root / name, known), names))
    _remember([(stamp, text) for stamp, text in found if stamp is not None and stamp not in known])
    return [(name, text) for name, (_, text) in zip(names, found, strict=True)]


def _digest(path: Path, known: dict[Stamp, str]) -> tuple[Stamp | None, str]:
    """Its stamp, None where it is not to be remembered, and its digest."""
    try:
        with path.open("rb", buffering=0) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            if stamp in known:
                return stamp, known[stamp]
            digest = hashlib.blake2b(digest_size=32)
            while block := file.read(_BLOCK):
                digest.update(block)
            is_settled = (
                time.time_ns() - max(stamp[3:]) > SETTLED_NS and _stamp(os.fstat(file.fileno())) == stamp
            )
            return stamp if is_settled else None, digest.hexdigest()
    except OSError:
        return None, "-"


def _stamp(state: os.stat_result) -> Stamp:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _remembered() -> dict[Stamp, str]:
    known: dict[Stamp, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (cache_folder() / REMEMBERED).read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a line that a killed process left half
                *stamp, digest = json.loads(line)
                known[tuple(stamp)] = digest  # type: ignore[index]
    return known


def _remember(new: list[tuple[Stamp, str]]) -> None:
    """A folder that cannot be written costs time, nothing else."""
    if not new:
        return
    path = cache_folder() / REMEMBERED
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size > MOST_REMEMBERED:
            path.unlink()
        with path.open("a") as file:
            file.write("".join(json.dumps([*stamp, digest]) + "\n" for stamp, digest in new))
