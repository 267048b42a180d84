"""How smooth the goals are where one chunk takes over from another, beside how smooth they are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevla.messages import State


def seams(states: Sequence[State], is_body: Sequence[bool]) -> tuple[list[float], list[float]]:
    """Second differences of the goals, in the joint's unit per tick squared, of the joint that bends most: at ticks
    where the chunk changed, and at the others. A jump shows at its tick and, the other way, at the next, which is left
    out.

    is_body: per joint, whether it counts; grippers open and close at once and would hide the rest.
    """
    goals = np.array([state.goal for state in states], float)
    if len(goals) < 3:
        return [], []
    chunks = np.array([-1 if state.chunk_seq is None else state.chunk_seq for state in states])
    goals = goals[:, np.asarray(is_body, bool)]
    bend = np.abs(goals[2:] - 2 * goals[1:-1] + goals[:-2]).max(axis=1)
    is_valid = np.isfinite(bend) & (chunks[:-2] >= 0)
    at_seam = chunks[2:] != chunks[1:-1]
    is_after = chunks[1:-1] != chunks[:-2]
    return _rounded(bend[is_valid & at_seam]), _rounded(bend[is_valid & ~at_seam & ~is_after])


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
