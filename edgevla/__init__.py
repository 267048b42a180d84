"""EdgeVLA: run a trained robot policy on the robot's own computer, on time, without PyTorch.

What a program of yours imports is `__all__`, and promised to stay; each name is fetched when it is first used, so that
`edgevla --help` imports none of it. See docs/python.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevla.bundle import Bundle as Bundle
    from edgevla.bundle import load_bundle as load_bundle
    from edgevla.cameras import CameraSettings as CameraSettings
    from edgevla.cameras import Picture as Picture
    from edgevla.cameras import open_source as open_source
    from edgevla.dataset import Dataset as Dataset
    from edgevla.dataset import DatasetWriter as DatasetWriter
    from edgevla.dataset import open_dataset as open_dataset
    from edgevla.errors import EdgeVLAError as EdgeVLAError
    from edgevla.predictor import InferenceResult as InferenceResult
    from edgevla.robots.profile import load_profile as load_profile
    from edgevla.runner import BundlePolicy as BundlePolicy
    from edgevla.types import Feature as Feature
    from edgevla.types import Observation as Observation

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundlePolicy",
    "CameraSettings",
    "Dataset",
    "DatasetWriter",
    "EdgeVLAError",
    "Feature",
    "InferenceResult",
    "Observation",
    "Picture",
    "load_bundle",
    "load_profile",
    "open_dataset",
    "open_source",
]

_HOME = {
    "Bundle": "bundle",
    "BundlePolicy": "runner",
    "CameraSettings": "cameras",
    "Dataset": "dataset",
    "DatasetWriter": "dataset",
    "EdgeVLAError": "errors",
    "Feature": "types",
    "InferenceResult": "predictor",
    "Observation": "types",
    "Picture": "cameras",
    "load_bundle": "bundle",
    "load_profile": "robots.profile",
    "open_dataset": "dataset",
    "open_source": "cameras",
}
"""Name -> the module below `edgevla` that has it."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgevla' has no attribute '{name}'")
    found = globals()[name] = getattr(importlib.import_module(f"edgevla.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
