"""Features as a dataset describes them, and one value of one row: checked against its feature, in the declared type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgevla.dataset.layout import BOOKKEEPING, FeatureInfo, feature_info
from edgevla.errors import DatasetError


def with_bookkeeping(features: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Features as info.json describes them: tuples as lists, and the five columns that every dataset has."""
    counting = {
        name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
        for name in BOOKKEEPING
    }
    return {name: _plain(spec) for name, spec in {**features, **counting}.items()}


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = spec.get("names")
    names = list(names) if isinstance(names, (list, tuple)) else names
    return {**spec, "shape": [int(n) for n in spec["shape"]], "names": names}


def feature_infos(raw: Mapping[str, Mapping[str, Any]], path: Path) -> dict[str, FeatureInfo]:
    """path: the file they stand in, for the error."""
    return {name: feature_info(name, spec, path) for name, spec in raw.items()}


def checked_value(feature: FeatureInfo, value: Any, row: int) -> Any:
    """One cell, checked: numpy of the declared dtype (0-D for shape [1]), str, or a frame."""
    if feature.dtype == "string":
        return str(value)
    array = np.asarray(value)
    if feature.is_camera:
        if array.dtype != np.uint8 or array.shape != feature.hwc:
            raise DatasetError(
                f"frame {row}: camera '{feature.name}' gives {array.dtype} {array.shape}, expected uint8 {feature.hwc}",
                feature=feature.name,
            )
        return np.ascontiguousarray(array)
    array = array.astype(np.dtype("bool" if feature.dtype == "bool" else feature.dtype))
    if array.size == 1 and feature.shape == (1,):
        array = array.reshape(())
    elif array.shape != feature.shape:
        raise DatasetError(
            f"frame {row}: feature '{feature.name}' has shape {array.shape}, expected {feature.shape}",
            feature=feature.name,
        )
    if not np.isfinite(array).all():
        raise DatasetError(
            f"frame {row}: feature '{feature.name}' is not finite: {array}", feature=feature.name
        )
    return array


def png(frame: np.ndarray) -> bytes:
    """frame: uint8 (H, W, 3) RGB."""
    ok, encoded = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert ok, "OpenCV encodes any uint8 picture as PNG"
    return encoded.tobytes()
