"""What both servo protocols have in common: a status frame, and what a servo's answers cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Status(NamedTuple):
    """A servo's answer: who, its ERR byte, and the data (empty for writes and pings)."""

    id: int
    error: int
    data: bytes


@dataclass
class Counters:
    """What one servo cost: retries asked, answers damaged, tries without an answer, ticks without a value."""

    n_retries: int = 0
    n_corrupt: int = 0
    n_lost: int = 0
    n_stale: int = 0
