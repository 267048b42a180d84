"""Normalisation as LeRobot defines it, as a module whose constants the exporter folds into the graph.

The formulas: docs/policies.md#normalisation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.types import ACTION

from ..policies.config import Features, PolicyConfig
from ..processors import Processors, Stats, Step, unflatten_stats

_NEEDS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


class Normalizer(nn.Module):
    """y = (x - offset) / divisor * gain + bias of one feature, and its inverse as the reference computes it.

    MEAN_STD: (x - mean) / (std + eps), inverse x * std + mean (without eps: not an exact inverse, as in LeRobot).
    MIN_MAX and the quantile modes map low..high to -1..1 without clipping; a zero range is replaced by eps.
    A feature without statistics passes unchanged. Shapes broadcast: vectors (..., D), images (..., 3, H, W).
    """

    a: Tensor | None
    b: Tensor | None
    fixed: Tensor | None
    """Dimensions without a range; None: all have one."""

    def __init__(
        self, mode: str, stats: dict[str, np.ndarray] | None, eps: float, *, feature: str, is_image: bool
    ):
        super().__init__()
        self.mode = mode if stats and mode != "IDENTITY" else "IDENTITY"
        self.eps = eps
        a = b = None
        has_fixed = False
        if self.mode != "IDENTITY":
            assert stats is not None
            if mode not in _NEEDS:
                raise CheckpointError(f"normalisation mode '{mode}' of feature '{feature}' is unknown")
            missing = [s for s in _NEEDS[mode] if s not in stats]
            if missing:
                raise CheckpointError(
                    f"feature '{feature}' is normalised by {mode}, but its statistics lack {', '.join(missing)}; "
                    "recompute them from the dataset"
                )
            low, high = (np.asarray(stats[s], np.float32) for s in _NEEDS[mode])
            a, b = torch.as_tensor(low), torch.as_tensor(high)
            has_fixed = bool((high == 0 if mode == "MEAN_STD" else low == high).any())
            if is_image and a.ndim == 1:
                a, b = a.reshape(-1, 1, 1), b.reshape(-1, 1, 1)
        # Not persistent: LeRobot keeps statistics in the pipeline files, not among the weights.
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)
        fixed = None
        if a is not None and b is not None:
            fixed = b == 0 if self.mode == "MEAN_STD" else a == b
        self.register_buffer("fixed", fixed if has_fixed else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.a is None or self.b is None:
            return x
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        if self.mode == "MEAN_STD":
            return (x - a) / (b + self.eps)
        return 2 * (x - a) / self._range(a, b) - 1

    def command(self, x: Tensor) -> Tensor:
        """As forward, but a dimension that never moved in training has the value it had there: what a robot was given
        differs from it by a rounding or a limit, which eps would make a million times larger."""
        y = self.forward(x)
        if self.fixed is None:
            return y
        return torch.where(self.fixed, torch.full_like(y, 0.0 if self.mode == "MEAN_STD" else -1.0), y)

    def inverse(self, y: Tensor) -> Tensor:
        """Normalised values back to the dataset's units, same shape."""
        if self.a is None or self.b is None:
            return y
        a, b = self.a.to(y.dtype), self.b.to(y.dtype)
        if self.mode == "MEAN_STD":
            return y * b + a
        return (y + 1) / 2 * self._range(a, b) + a

    def _range(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.where(high == low, torch.full_like(low, self.eps), high - low)


def normalizer(
    feature: str, kind: str, norm_map: dict[str, str], stats: Stats, eps: float = 1e-8
) -> Normalizer:
    """The normaliser of one feature. kind: its type (`STATE`, `VISUAL`, ...); a type absent from the map is IDENTITY."""
    return Normalizer(
        norm_map.get(kind, "IDENTITY"), stats.get(feature), eps, feature=feature, is_image=kind == "VISUAL"
    )


class Normalizers(nn.Module):
    """The normaliser of every feature of a policy, by feature name: `forward` in, `inverse` out.

    An observation that the pipeline's own lists do not name passes unchanged, as in LeRobot; the action needs no
    naming. The inverse takes the statistics of the post-processor, which may differ from the pre-processor's.
    """

    def __init__(self, config: PolicyConfig, processors: Processors) -> None:
        super().__init__()
        pre, post = processors.step("normalizer_processor"), processors.post_step("unnormalizer_processor")
        features = {**config.input_features, **config.output_features}
        self.forwards = _of_step(pre, features, config)
        self.inverses = _of_step(post, config.output_features, config)

    def forward(self, feature: str, x: Tensor) -> Tensor:
        return self.forwards[_module_name(feature)](x)

    def command(self, feature: str, x: Tensor) -> Tensor:
        normalizer: Normalizer = self.forwards[_module_name(feature)]  # type: ignore[assignment]
        return normalizer.command(x)

    def inverse(self, feature: str, y: Tensor) -> Tensor:
        """The same for one feature, by its name."""
        inverse: Normalizer = self.inverses[_module_name(feature)]  # type: ignore[assignment]
        return inverse.inverse(y)


def _of_step(step: Step | None, features: Features, config: PolicyConfig) -> nn.ModuleDict:
    modules = nn.ModuleDict()
    settings = step.config if step is not None else {}
    listed = settings.get("features") or {k: {"type": f.type} for k, f in features.items()}
    chosen = settings.get("normalize_observation_keys")
    norm_map = settings.get("norm_map") or config.normalization_mapping
    stats = unflatten_stats(step.state) if step is not None and step.state else {}
    for name in features:
        is_named = name in listed and (chosen is None or name in chosen)
        kind = "ACTION" if name == ACTION else str(listed[name]["type"]) if is_named else "IDENTITY"
        modules[_module_name(name)] = normalizer(
            name, kind, norm_map, stats, float(settings.get("eps", 1e-8))
        )
    return modules


def _module_name(feature: str) -> str:
    return feature.replace(".", "__")
