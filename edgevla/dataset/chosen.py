"""Which episodes: `0,2-5` or `0:40` as a person writes them, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgevla.errors import UsageError


def parse_episodes(text: str, n_episodes: int, *, what: str = "--episodes") -> list[int]:
    """`0,2-5` (both ends), `0:40` (without 40), `8:` (to the last) -> episode numbers, ascending.

    Raises:
        UsageError: not of that form, empty, or beyond the dataset's episodes.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d*)\s*([-:]?)\s*(\d*)\s*", part)
        low, between, high = found.groups() if found else ("", "", "")
        if not (low or between == ":") or (between == "-" and not high):
            raise UsageError(f"{what} '{text}' is not of the form 0,2-5 or 0:40")
        first = int(low or 0)
        last = first + 1 if not between else int(high or n_episodes) + (between == "-")
        if between and first >= last and high:
            raise UsageError(f"{what} '{text}' names no episodes: {part.strip()} ends before it begins")
        if not first < last <= n_episodes:
            raise UsageError(
                f"{what} '{text}' names episodes outside 0 ... {n_episodes - 1}, all that the dataset has"
            )
        chosen.update(range(first, last))
    return sorted(chosen)


def episodes_text(numbers: Iterable[int]) -> str:
    """The shortest text that `parse_episodes` reads back: `0,2-5`."""
    stretches: list[list[int]] = []
    for number in sorted(set(numbers)):
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in stretches)
