"""What both servo protocols have in common: a status frame."""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """A servo's answer: who, its ERR byte, and the data (empty for writes and pings)."""

    id: int
    error: int
    data: bytes
