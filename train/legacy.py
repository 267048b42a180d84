"""Checkpoints before LeRobot 0.4: normalisation statistics among the weights, no pipeline files."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor

from edgevla.errors import CheckpointError

from .policies.config import PolicyConfig
from .processors import Stats
from .weight_files import PREFIXES


def split_legacy(weights: dict[str, Tensor], config: PolicyConfig) -> tuple[dict[str, Tensor], Stats]:
    """Weights without the old normaliser buffers, and the statistics that those held (empty for newer files).

    Feature names were written with underscores for dots; they are resolved against the config's own features.
    Statistics of others (SmolVLA's base has them per robot) and those that were never set (infinite) normalise
    nothing; that is said.

    Raises:
        CheckpointError: two sets of statistics of one feature that differ.
    """
    features = {name.replace(".", "_"): name for name in {**config.input_features, **config.output_features}}
    kept: dict[str, Tensor] = {}
    stats: Stats = {}
    useless: set[str] = set()
    for key, value in weights.items():
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            kept[key] = value
            continue
        written, _, stat = key.removeprefix(prefix).removeprefix("buffer_").rpartition(".")
        feature = features.get(written.replace(".", "_"))
        if feature is None:
            useless.add(f"'{written}' is no feature of config.json")
        elif not value.isfinite().all():
            useless.add(f"'{feature}' was never given any")
        else:
            held, new = stats.setdefault(feature, {}), value.float().numpy().astype(np.float32)
            if stat in held and not np.array_equal(held[stat], new):
                raise CheckpointError(
                    f"'{feature}' has two different statistics '{stat}' among the weights (the second in {key}); "
                    "which one the policy was trained with, nothing says; refused"
                )
            held[stat] = new
    if useless:
        warnings.warn(
            f"statistics among the weights that normalise nothing: {'; '.join(sorted(useless))} "
            f"(features: {', '.join(sorted(features.values()))})",
            stacklevel=3,
        )
    return kept, stats
