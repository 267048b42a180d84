"""Weights of many gigabytes: modules built without filling them, and mapped pages given back once they are copied."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator

from torch import Tensor, nn

MADV_DONTNEED = 4


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
