"""The one rule by which an export is accepted: how far each joint may be from torch's, as a share of its range.

Judged are all actions of all chunks, joint by joint and in two ways: 99 of 100 (`usual`), and every single one (`most`).
A share of the range means the same for a shoulder in degrees and a gripper in percent; the cosine of a chunk, which
was the rule before, is bad for a chunk that hardly moves and says nothing of any joint. Needs no torch.

    fp32        rounding alone; more is another computation
    fp16, bf16  a servo's step (360 / 4096 = 0.09 deg of a joint that goes 100 deg); seldom what play in its gears hides
    int8, int4  drives as well as float32, with room: benchmarks/results/precision.md
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

USUAL_PERCENT = 99.0


@dataclass(frozen=True)
class Tolerance:
    """Shares of a joint's range. usual: 99 of 100 actions stay within it. most: every action does."""

    usual: float
    most: float


LIMITS = {
    "fp32": Tolerance(1e-5, 1e-5),
    "fp16": Tolerance(1e-3, 5e-3),
    "bf16": Tolerance(1e-3, 5e-3),
    "int8": Tolerance(2e-2, 6e-2),
    "int4": Tolerance(2e-2, 6e-2),
}


def worst_share(error: np.ndarray, width: np.ndarray, limits: Tolerance) -> float:
    """error: (n, T, A), absolute; width: (A,), each joint's range, both in robot units. The joint that is nearest to a
    limit, or farthest beyond it, as a multiple of that limit: up to 1 is accepted. Not finite: infinite.
    """
    shares = error / width
    if not np.isfinite(shares).all():
        return float("inf")
    return float(max(usual_error(shares).max() / limits.usual, shares.max() / limits.most))


def usual_error(error: np.ndarray) -> np.ndarray:
    """(n, T, A) -> (A,): what 99 of 100 actions of each joint stay within."""
    return np.percentile(error.reshape(-1, error.shape[-1]), USUAL_PERCENT, axis=0)


def is_lost(error: np.ndarray, n_planned: int, width: np.ndarray, limits: Tolerance) -> bool:
    """Whether no further chunk can save it. error: (n, T, A) of the first n chunks of `n_planned`."""
    shares = np.nan_to_num(error / width, nan=np.inf)
    if (shares > limits.most).any():
        return True
    allowed = (1 - USUAL_PERCENT / 100) * n_planned * error.shape[1] + 1
    return bool(((shares > limits.usual).sum(axis=(0, 1)) > allowed).any())


def percent(share: float) -> str:
    """`0.0031` as `0.31 %`."""
    return f"{100 * share:.2g} %"
