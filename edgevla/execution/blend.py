"""Overlap blend: a chunk that arrives begins as the chunk it replaces, and is itself a few actions later.

    share of  1 |                 _______
    the new     |            /----
              0 |______/----
                 old    1 ... n    new only        i-th of n blended actions: i / (n + 1)

Only the actions that are still to be played are blended, in the order in which they are played, each with the action
that the old chunk has for the same moment; behind the old chunk's last one there is nothing to blend with.
"""

from __future__ import annotations

import numpy as np


def blended(
    new: np.ndarray, old: np.ndarray, n: int, *, is_begun: bool = False, is_blended: np.ndarray | None = None
) -> np.ndarray:
    """float32 (T, D): `new` with its first actions blended into `old`.

    new: (T, D), old: (M, D), robot units; row i of both belongs to the same moment, row 0 to the next that is played.
    n: actions to blend, fewer where either chunk ends before. is_begun: the way from row 0 to row 1 is under way: both
    stay the old one's, and the n blended ones follow. is_blended: bool (D,), other joints are the new chunk's at once;
    None: all are blended.
    """
    mixed = np.array(new, np.float32)
    n_kept = 2 if is_begun else 0
    n_both = min(len(new), len(old))
    n = max(0, min(n, n_both - n_kept))
    rows = slice(0, min(n + n_kept, n_both))
    share = (np.arange(1, 1 + rows.stop) - n_kept).clip(0)[:, None] / (n + 1)
    values = (old[rows] + (new[rows] - old[rows]) * share).astype(np.float32)
    joints = slice(None) if is_blended is None else is_blended
    mixed[rows, joints] = values[:, joints]
    return mixed
