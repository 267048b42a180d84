"""Temporal ensembling (Zhao et al. 2023, section IV-A): the average of every chunk that covers a moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ensemble_weights(anchors: Sequence[int] | np.ndarray, decay: float) -> np.ndarray:
    """float64 (n,), summing to one: exp(-decay * i), i = grid moments between the oldest chunk's anchor and this one's.

    anchors: grid index of action 0 of each covering chunk, any order. decay > 0 favours the oldest, 0 averages
    evenly, < 0 favours the newest. With one chunk per grid moment this is LeRobot's temporal ensembler.
    """
    ages = np.asarray(anchors, np.float64)
    exponents = -decay * (ages - ages.min())
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


def ensemble(predictions: np.ndarray, anchors: Sequence[int] | np.ndarray, decay: float) -> np.ndarray:
    """What the covering chunks say about one moment, averaged: (n, ...) -> (...), float32.

    predictions: one row per chunk, in any units that may be averaged (robot units while running).
    """
    weights = ensemble_weights(anchors, decay)
    return np.tensordot(weights, np.asarray(predictions, np.float64), axes=1).astype(np.float32)
