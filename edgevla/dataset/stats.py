"""Statistics of a dataset's features: read, merged over episodes, rebuilt from the data, distrusted.

Vectors reduce over rows to (D,); cameras over frames and pixels to (3, 1, 1) in [0, 1] units. `std` is the
population's. Merged quantiles are no quantiles of the whole (until August 2026 LeRobot took weighted means of the
episodes', since then the outermost): `vector_stats` computes the true ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import DatasetError

Stats = dict[str, dict[str, np.ndarray]]
"""Feature -> statistic (`min max mean std count q01 q10 q50 q90 q99`) -> float64 array (`count`: int64 (1,))."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
BASIC = ("min", "max", "mean", "std", "count")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of pictures in 0..1, per channel RGB: what torchvision's trunks and Florence-2 were trained with."""


def read_stats(path: Path) -> Stats:
    """`meta/stats.json`.

    Raises:
        DatasetError: not JSON, or a statistic that is not numeric.
    """
    try:
        return as_stats(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise DatasetError(
            f"{path} is not readable as statistics: {error}", file="meta/stats.json"
        ) from error


def as_stats(raw: Mapping[str, Mapping[str, Any]]) -> Stats:
    """Nested lists (with nulls as NaN) to arrays."""
    return {
        feature: {
            name: np.atleast_1d(np.array(value, dtype=np.int64 if name == "count" else np.float64))
            for name, value in by_name.items()
            if value is not None
        }
        for feature, by_name in raw.items()
    }


def to_json(stats: Stats) -> dict[str, dict[str, Any]]:
    """Statistics as `meta/stats.json` has them: lists in place of arrays."""
    return {feature: {name: a.tolist() for name, a in by.items()} for feature, by in stats.items()}


def vector_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """All statistics of (N, ...) rows, true quantiles included; shape of one row, or (1,) for scalars."""
    rows = np.asarray(values, np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    with np.errstate(invalid="ignore"):  # infinities give NaN; checking the dataset names them
        stats = {
            "min": rows.min(0),
            "max": rows.max(0),
            "mean": rows.mean(0),
            "std": rows.std(0),
            "count": np.array([len(rows)], np.int64),
        }
        stats.update(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True))
    return stats


class ImageCounter:
    """Counts the 256 levels of each channel over frames: from that every statistic follows exactly."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)
        self.n_frames = 0

    def add(self, frame: np.ndarray) -> None:
        """frame: uint8 (H, W, 3). Large frames are thinned to about 150 pixels, as LeRobot does."""
        longer = max(frame.shape[:2])
        step = longer // 150 if longer >= 300 else 1
        for channel, pixels in enumerate(np.moveaxis(frame[::step, ::step], -1, 0)):
            self.counts[channel] += np.bincount(pixels.ravel(), minlength=256)
        self.n_frames += 1

    def stats(self) -> dict[str, np.ndarray]:
        """Statistics (3, 1, 1) in [0, 1]; `count` is the number of frames."""
        levels = np.arange(256) / 255.0
        total = self.counts.sum(1, keepdims=True)
        mean = (self.counts * levels).sum(1, keepdims=True) / total
        std = np.sqrt((self.counts * (levels - mean) ** 2).sum(1, keepdims=True) / total)
        present = self.counts > 0
        below = self.counts.cumsum(1) / total
        found = {
            "min": levels[present.argmax(1)],
            "max": levels[255 - present[:, ::-1].argmax(1)],
            "mean": mean,
            "std": std,
        }
        found.update({name: levels[(below >= q).argmax(1)] for name, q in QUANTILES.items()})
        shaped = {name: np.asarray(a).reshape(3, 1, 1) for name, a in found.items()}
        return {**shaped, "count": np.array([self.n_frames], np.int64)}


def sample_rows(n_rows: int) -> np.ndarray:
    """LeRobot's choice of frames for image statistics: n^0.75 of them, at least 100, evenly spread."""
    n = n_rows if n_rows < 100 else min(max(int(n_rows**0.75), 100), 10_000)
    return np.unique(np.round(np.linspace(0, max(0, n_rows - 1), n)).astype(np.int64))


def merge(parts: Sequence[Stats]) -> Stats:
    """Statistics of the union. Exact but for quantiles, of which the outermost are taken, as LeRobot does."""
    merged: Stats = {}
    for feature in dict.fromkeys(name for part in parts for name in part):
        having = [p[feature] for p in parts if all(s in p.get(feature, {}) for s in BASIC)]
        if any(p["count"].size != 1 for p in having):
            raise ValueError(f"'{feature}' has a count of other than one number")
        having = [p for p in having if p["count"].any()]  # an episode without frames adds nothing
        if having:
            merged[feature] = _merge_feature(having)
    return merged


def _merge_feature(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    counts = np.array([float(p["count"].ravel()[0]) for p in parts])
    if counts.min() < 0:
        raise ValueError(f"counts of {counts.min():g}")
    shape = (len(parts),) + (1,) * parts[0]["mean"].ndim
    weight = counts.reshape(shape) / counts.sum()
    means, stds = np.stack([p["mean"] for p in parts]), np.stack([p["std"] for p in parts])
    mean = (weight * means).sum(0)
    merged = {
        "min": np.stack([p["min"] for p in parts]).min(0),
        "max": np.stack([p["max"] for p in parts]).max(0),
        "mean": mean,
        "std": np.sqrt((weight * (stds**2 + (means - mean) ** 2)).sum(0)),
        "count": np.array([int(counts.sum())], np.int64),
    }
    for name, q in QUANTILES.items():
        if all(name in p for p in parts):
            each = np.stack([p[name] for p in parts])
            merged[name] = each.min(0) if q <= 0.5 else each.max(0)
    return merged


def weighted_quantile(parts: Sequence[Stats], feature: str, name: str) -> np.ndarray | None:
    """The mean of the parts' quantiles by their counts, as LeRobot merged them until August 2026; None: not in all."""
    having = [p[feature] for p in parts if "count" in p.get(feature, {}) and p[feature]["count"].any()]
    if not having or not all(name in by for by in having):
        return None
    counts = np.array([float(by["count"].ravel()[0]) for by in having])
    return np.average(np.stack([by[name].ravel() for by in having]), axis=0, weights=counts)


def is_bad_image_std(stats: Mapping[str, np.ndarray]) -> bool:
    """LeRobot 0.4.0 to 0.5.1 squared uint8 pixels without widening: std near 0 though the picture varies."""
    if not all(name in stats for name in ("std", "min", "max")):
        return False
    return bool(np.any((stats["std"] < 0.01) & (stats["max"] - stats["min"] > 0.2)))
