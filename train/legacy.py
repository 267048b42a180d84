"""Checkpoints before LeRobot 0.4: normalisation statistics among the weights, no pipeline files (common.md 4.3)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from edgevla.errors import CheckpointError

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

    Raises:
        CheckpointError: statistics of a feature that the config does not name.
    """
    features = {name.replace(".", "_"): name for name in {**config.input_features, **config.output_features}}
    kept: dict[str, Tensor] = {}
    stats: Stats = {}
    for key, value in weights.items():
        prefix = next((p for p in PREFIXES if key.startswith(p + "buffer_")), None)
        if prefix is None:
            kept[key] = value
            continue
        written, _, stat = key.removeprefix(prefix + "buffer_").rpartition(".")
        if written not in features:
            raise CheckpointError(
                f"the weights hold statistics of '{written}', which is no feature of config.json; "
                f"known: {', '.join(sorted(features.values()))}"
            )
        stats.setdefault(features[written], {})[stat] = value.float().numpy().astype(np.float32)
    return kept, stats
