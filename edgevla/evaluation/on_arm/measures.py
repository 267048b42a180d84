"""What is measured while an episode runs: ticks, what safety bent, how long chunks took, how the goals moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgevla.evaluation.seams import seams
from edgevla.messages import Chunk, State

CLIPPED = "clipped_"
MOST_KEPT = 100
"""Second differences of an episode; of more, as many quantiles."""


class Measures:
    """Of one episode. counters: of the robot, when it began. is_body: per joint, no gripper. unit: of their goals."""

    def __init__(self, counters: Mapping[str, int], is_body: Sequence[bool], unit: str) -> None:
        self._before, self._is_body, self._unit = dict(counters), is_body, unit
        self._states: list[State] = []
        self.chunk_ms: list[float] = []

    def state(self, state: State) -> None:
        """One tick of the robot's, while the policy drives."""
        if state.mode in ("running", "holding"):
            self._states.append(state)

    def chunk(self, chunk: Chunk) -> None:
        """One answer of the policy's: its time counts."""
        self.chunk_ms.append(round(chunk.timing_ns.total / 1e6, 2))

    def figures(self, counters: Mapping[str, int]) -> dict[str, Any]:
        """counters: of the robot, by now; a fifth of a second may be missing."""
        at_seams, within = seams(self._states, self._is_body)
        grown = {name: n - self._before.get(name, 0) for name, n in counters.items()}
        return {
            "n_ticks": len(self._states),
            "n_starved": grown.get("ticks_starved", 0),
            "n_clipped": grown.get("ticks_clipped", 0),
            "clipped": {
                name.removeprefix(CLIPPED): n for name, n in grown.items() if name.startswith(CLIPPED) and n
            },
            "chunk_ms": self.chunk_ms,
            "seams": _thinned(at_seams),
            "within": _thinned(within),
            "unit": self._unit,
        }


def _thinned(values: Sequence[float]) -> list[float]:
    """So few that a line of the file can be read; the share of large ones stays."""
    if len(values) <= MOST_KEPT:
        return list(values)
    kept = np.quantile(np.array(values), np.linspace(0, 1, MOST_KEPT))
    return [float(f"{value:.4g}") for value in kept]
