"""Memory: how much a process may take, modules built without filling them, mapped pages given back when copied."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

MADV_DONTNEED = 4
CGROUPS = Path("sys/fs/cgroup")
UNLIMITED = 1 << 60
"""Bytes; what version 1 says where there is no limit is a little less than 2^63."""


def available_ram(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping or being killed: the least of what the machine and each enclosing
    control group (a container, a service, a batch job) have left. root: where `proc` and `sys` are."""
    return max(0, min([_of_machine(root), *_of_groups(root)]))


def _of_machine(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _of_groups(root: Path) -> Iterator[int]:
    """What is left in each control group that this process is in and that has a limit; versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root / CGROUPS, root / CGROUPS / "unified"]
            files = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = [root / CGROUPS / controllers, root / CGROUPS / "memory"]
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in dict.fromkeys(mounts):
            # Inside of a container the path may be the host's, and the mount be the group itself.
            group = mount / path.strip("/")
            for folder in (group, *group.parents):
                if not folder.is_relative_to(mount):
                    break
                if (left := _left(folder, *files)) is not None:
                    yield left


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """None: no limit, or no such group. Cached pages of files that nobody uses count as free, as for the machine."""
    try:
        most = int((group / limit).read_text())
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # `max` is no number
        return None
    if most >= UNLIMITED:
        return None
    return most - used + min(used, int(stat.get(reclaimable, 0)))


@contextlib.contextmanager
def without_init() -> Iterator[None]:
    """Modules are built without filling their parameters: untouched memory costs nothing, and is replaced anyway."""
    names = [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("_")]
    originals = {n: getattr(nn.init, n) for n in names}
    try:
        for n in names:
            setattr(nn.init, n, lambda tensor, *args, **kwargs: tensor)
        yield
    finally:
        for n, original in originals.items():
            setattr(nn.init, n, original)


def release_pages(tensor: Tensor) -> None:
    """Drops a tensor's pages of a mapped file, which count as this process's memory once they were read. Reading them
    again fetches them from the file. Only for tensors that are mapped; elsewhere than on Linux it does nothing."""
    if sys.platform != "linux":
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
