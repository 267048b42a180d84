"""Checkpoints before LeRobot 0.4: normalisation statistics among the weights, no pipeline files (common.md 4.3)."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor

from .policies.config import PolicyConfig
from .processors import Stats

PREFIXES = (
    "normalize_inputs.",
    "normalize_targets.",
    "unnormalize_outputs.",
    "normalize.",
    "unnormalize.",
    "input_normalizer.",
    "output_normalizer.",
    "unnormalize_targets.",
)


def split_legacy(weights: dict[str, Tensor], config: PolicyConfig) -> tuple[dict[str, Tensor], Stats]:
    """Weights without the old normaliser buffers, and the statistics that those held (empty for newer files).

    Feature names were written with underscores for dots; they are resolved against the config's own features.
    Statistics of others (SmolVLA's base has them per robot) and those that were never set (infinite) normalise
    nothing; that is said.
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
            stats.setdefault(feature, {})[stat] = value.float().numpy().astype(np.float32)
    if useless:
        warnings.warn(
            f"statistics among the weights that normalise nothing: {'; '.join(sorted(useless))} "
            f"(features: {', '.join(sorted(features.values()))})",
            stacklevel=3,
        )
    return kept, stats
