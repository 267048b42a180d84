"""Several observations in one inference against each of them alone: the same graphs, the same runner, the same noise.

The two differ by what an engine rounds otherwise for another shape; more than the bundle's own tolerance against torch
is a graph that mixes its observations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevla.errors import EdgeVLAError
from edgevla.manifest_record import BatchParity
from edgevla.runner import Asked, BundlePolicy
from edgevla.train.policies.base import Policy

from .parity import action_parity
from .samples import PolicyInput

ROUNDS = 2
"""Batches that are compared: the largest, and one smaller."""


def compare_batches(
    policy: Policy, exported: BundlePolicy, samples: Sequence[PolicyInput], alone: np.ndarray
) -> BatchParity:
    """alone: float32 (n, T, A), the chunk of each sample by itself, its noise by its place in `samples`.

    Raises:
        EdgeVLAError: what `BundlePolicy.infer_batch` says of the batch, or of one of its observations.
    """
    most = exported.manifest.batch.max
    places = [i % len(samples) for i in range(ROUNDS * most - 1)]
    chunks = []
    for begin in range(0, len(places), most):
        chunks += _infer(exported, samples, places[begin : begin + most])
    actions, passed = action_parity(policy, exported.bundle, alone[places], np.stack(chunks))
    return BatchParity(most, len(places), actions, passed)


def _infer(exported: BundlePolicy, samples: Sequence[PolicyInput], places: Sequence[int]) -> list[np.ndarray]:
    asked = [
        Asked(s.observation, i, s.grid_index, past=s.past, rtc=s.rtc)
        for i, s in ((i, samples[i]) for i in places)
    ]
    chunks = []
    for result in exported.infer_batch(asked):
        if isinstance(result, EdgeVLAError):
            raise result
        chunks.append(result.actions)
    return chunks
