"""Of several chunks drawn for one observation, the one that agrees best with what the arm is about to do.

That is the backward half of bidirectional decoding (Liu et al. 2024): a policy that samples may change its mind from one
chunk to the next, left around an obstacle now and right then; nearest to the older chunk, it stays with what it began.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_SPEED = 0.01
"""Share of the fastest joint's speed: a joint that hardly ever moved must not decide by its noise."""


def nearest(
    drawn: np.ndarray, committed: np.ndarray, weights: np.ndarray, speeds: Sequence[float] | None
) -> int:
    """Index of the chunk with the least weighted squared distance; the first of equals.

    drawn: (N, T, A), committed: (<= T, A), of the same moments, weights: one per row of committed, as RTC's
    (`rtc.py`). speeds: of each joint in training, so that distances count in time to make up for them; None: all alike.
    """
    n = min(drawn.shape[1], len(committed), len(weights))
    scale = np.ones(drawn.shape[2]) if speeds is None else np.asarray(speeds, np.float64)
    scale = scale.clip(max(LEAST_SPEED * scale.max(), 1e-9))
    error = ((drawn[:, :n] - committed[:n]) / scale) ** 2
    distance = error.sum(axis=2) @ np.asarray(weights[:n], np.float64)
    return int(np.argmin(np.where(np.isfinite(distance), distance, np.inf)))
