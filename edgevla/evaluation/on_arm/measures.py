"""What is measured while an episode runs: ticks, what safety bent, how long chunks took, how the goals moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevla.messages import Chunk, State

CLIPPED = "clipped_"


class Measures:
    """Of one episode. counters: of the robot, when it began."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._before = dict(counters)
        self.n_ticks = 0
        self.chunk_ms: list[float] = []

    def state(self, state: State) -> None:
        self.n_ticks += state.mode in ("running", "holding")

    def chunk(self, chunk: Chunk) -> None:
        self.chunk_ms.append(round(chunk.timing_ns.total / 1e6, 2))

    def figures(self, counters: Mapping[str, int]) -> dict[str, Any]:
        """counters: of the robot, by now; a fifth of a second may be missing."""
        grown = {name: n - self._before.get(name, 0) for name, n in counters.items()}
        return {
            "n_ticks": self.n_ticks,
            "n_starved": grown.get("ticks_starved", 0),
            "n_clipped": grown.get("ticks_clipped", 0),
            "clipped": {
                name.removeprefix(CLIPPED): n for name, n in grown.items() if name.startswith(CLIPPED) and n
            },
            "chunk_ms": self.chunk_ms,
        }
