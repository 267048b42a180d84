"""Which frames are evaluated: every so many-th of an episode, and those at which `sync` would ask for the next chunk.

Chunks can be chained where one begins n_action_steps after another. So `every` divides n_action_steps, or is a multiple
of it, where nobody said otherwise; and where the next chunk's frame is not among the frames, it is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevla.dataset.layout import Episode


@dataclass(frozen=True)
class EvaluatedFrame:
    """One evaluated frame. episode: its number in the dataset. frame: counted from the episode's beginning.

    row: in the opened dataset. end: the first row after the episode.
    """

    episode: int
    frame: int
    row: int
    end: int

    @property
    def noise(self) -> int:
        """The same for every policy and however the episodes are chosen."""
        return (self.episode << 24) + self.frame


def plan(episodes: Sequence[Episode], n_action_steps: int, every: int) -> list[EvaluatedFrame]:
    """Frames of all episodes, in order."""
    frames = []
    for e in episodes:
        wanted = set(range(0, e.length, every))
        wanted |= {f + n_action_steps for f in wanted if f + n_action_steps < e.length}
        frames += [EvaluatedFrame(e.index, f, e.from_index + f, e.to_index) for f in sorted(wanted)]
    return frames


def every_for(episodes: Sequence[Episode], n_action_steps: int, most: int) -> int:
    """The smallest suitable `every` that gives at most so many frames; else the one that gives the fewest."""
    longest = max(e.length for e in episodes)
    divisors = [d for d in range(1, n_action_steps + 1) if n_action_steps % d == 0]
    multiples = [n_action_steps]
    while multiples[-1] < longest:
        multiples.append(2 * multiples[-1])
    for every in [*divisors, *multiples[1:]]:
        if sum(_count(e.length, n_action_steps, every) for e in episodes) <= most:
            return every
    return multiples[-1]


def some_of(episodes: Sequence[Episode], n: int) -> list[Episode]:
    """At most n of them, spread evenly."""
    n = min(n, len(episodes))
    return [episodes[i * len(episodes) // n] for i in range(n)]


def _count(length: int, n_action_steps: int, every: int) -> int:
    n = -(-length // every)
    if every <= n_action_steps:
        return n
    return n + -(-max(0, length - n_action_steps) // every)
