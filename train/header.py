"""The header of a safetensors file: what weights there are, without reading one of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevla.errors import CheckpointError

HEADER_START = 8
"""Bytes of the header's own length, before it."""


@dataclass(frozen=True)
class Weight:
    """offsets: of its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int] = (0, 0)

    @property
    def count(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Weight]:
    """Names, types and shapes of a safetensors file. Names that share another's tensor (the metadata lists them) are
    not counted twice; see `read_aliases`.

    Raises:
        CheckpointError: as `_entries`.
    """
    entries = _entries(path)
    entries.pop("__metadata__", None)
    return {
        name: Weight(e["dtype"], tuple(e["shape"]), tuple(e["data_offsets"])) for name, e in entries.items()
    }


def read_aliases(path: Path) -> dict[str, str]:
    """Names that were left out because another name has the same tensor: left-out name -> kept name."""
    entries = _entries(path)
    metadata = entries.pop("__metadata__", None) or {}
    return {left: kept for left, kept in metadata.items() if kept in entries and left not in entries}


def _entries(path: Path) -> dict[str, Any]:
    """The header's JSON.

    Raises:
        CheckpointError: missing, damaged, or shorter than its header says.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no {path.name}; fetch the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if not 0 < n <= min(size - 8, 100 << 20):
            raise CheckpointError(f"{path} is damaged: its header of {n} bytes does not fit; fetch it again")
        try:
            header = json.loads(file.read(n))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged: its header is no JSON ({error}); fetch it again"
            ) from error
    end = max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
    if 8 + n + end != size:
        raise CheckpointError(f"{path} has {size} bytes, its header says {8 + n + end}; fetch it again")
    return header
