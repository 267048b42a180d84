"""What passes between the parts: features, observations, action chunks. Frozen, with shapes and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FeatureKind = Literal["camera", "absent_camera", "state", "environment_state", "action"]
JointUnits = Literal["degrees", "range100"]
"""How body joints of a LeRobot dataset are expressed: degrees from mid range, or -100..100 of the range."""

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"


@dataclass(frozen=True)
class Feature:
    """One named input or output of a policy, as the robot sees it.

    shape: (H, W, 3) for cameras, (D,) for vectors, () for an absent camera.
    names: one per element of a vector (`shoulder_pan.pos`), empty for cameras.
    units: one per element: `deg`, `rad`, `range100` (-100..100), `percent` (0..100), `unit` (0..1), `m`.
    zero: convention of angle zero, `mid_range` for LeRobot's SO101; None where it does not apply.
    camera: the robot's camera that feeds this feature; None: the one named like the last part of `name`.
    """

    name: str
    kind: FeatureKind
    shape: tuple[int, ...]
    dtype: str = "float32"
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    zero: str | None = None
    encoding: str | None = None
    camera: str | None = None

    @property
    def camera_name(self) -> str:
        """Name of the robot's camera that is bound to this feature."""
        return self.camera or self.name.rpartition(".")[2]


def named_features(data: Any) -> Any:
    """Features as files hold them, by name, with the name inside as `Feature` has it; anything else as it is."""
    if not isinstance(data, dict):
        return data
    return {
        name: {"shape": [], **feature, "name": name} if isinstance(feature, dict) else feature
        for name, feature in data.items()
    }


@dataclass(frozen=True)
class CameraAge:
    """How old a camera's frames were at their rows' moments while the training data were recorded, ms."""

    p50: float
    p99: float
    max: float


@dataclass(frozen=True)
class Observation:
    """Everything the policy sees at one grid moment.

    images: feature name -> uint8 (H, W, 3) RGB at the camera's declared size; a lost camera has no entry.
    state: float32 (S,), robot units, manifest order. task: the instruction, may be empty.
    """

    state: np.ndarray
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    environment_state: np.ndarray | None = None
    task: str = ""


@dataclass(frozen=True)
class ActionChunk:
    """Actions a policy predicted from one observation.

    actions: float32 (chunk_size, D), robot units, joints in profile order.
    tick: control tick of action 0; action j belongs to tick `tick + j * ticks_per_step`. ahead: steps from the
    observation to action 0; 0 but for policies of future states. seq: of the request that it answers.
    """

    actions: np.ndarray
    tick: int
    ticks_per_step: int = 1
    seq: int = 0
    ahead: int = 0
