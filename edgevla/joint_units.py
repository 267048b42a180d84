"""Joint units: between what a policy was trained on and what the robot speaks, one affine map per joint.

deg, rad       angle, zero at mid range (LeRobot's SO101 convention), not clamped
range100       -100..100 of the calibrated range;  percent  0..100 of it;  unit  0..1 of it
m              metres, converts to nothing else

Angles and shares of a range meet through the joint's calibrated range: share -1..1 = deg / half range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevla.descriptions import AboutJoint
from edgevla.errors import BundleError
from edgevla.types import Feature

_ANGLES = {"deg": 1.0, "rad": 180.0 / math.pi}
"""Unit -> degrees per unit."""
_SHARES = {"range100": (0.01, 0.0), "percent": (0.02, -1.0), "unit": (2.0, -1.0)}
"""Unit -> (scale, offset) to the share -1..1 of the calibrated range."""


@dataclass(frozen=True)
class Affine:
    """y = x * scale + offset."""

    scale: float = 1.0
    offset: float = 0.0

    def then(self, other: Affine) -> Affine:
        """This map, and the other after it."""
        return Affine(self.scale * other.scale, self.offset * other.scale + other.offset)

    def inverse(self) -> Affine:
        """The map back; `scale` must not be 0."""
        return Affine(1.0 / self.scale, -self.offset / self.scale)


def between(source: str, target: str, range_deg: tuple[float, float] | None, joint: str) -> Affine:
    """The map from one unit to another. range_deg: degrees at share -1 and 1 of the joint's calibrated range, for
    angle <-> share; falling where the servo's drive mode turns the share round.

    Raises:
        BundleError: units that do not convert, or a calibrated range that is needed and not known.
    """
    if source == target:
        return Affine()
    if source in _ANGLES and target in _ANGLES:
        return Affine(_ANGLES[source] / _ANGLES[target])
    if source in _SHARES and target in _SHARES:
        return Affine(*_SHARES[source]).then(Affine(*_SHARES[target]).inverse())
    if not {source, target} <= {*_ANGLES, *_SHARES}:
        raise BundleError(f"joint '{joint}': '{source}' cannot be converted to '{target}'")
    if range_deg is None or range_deg[1] == range_deg[0]:
        raise BundleError(
            f"joint '{joint}': '{source}' becomes '{target}' only with the joint's calibrated range, which the "
            "robot does not tell; calibrate it first (edgevla calibrate)"
        )
    half = (range_deg[1] - range_deg[0]) / 2
    if source in _ANGLES:
        return Affine(_ANGLES[source] / half).then(Affine(*_SHARES[target]).inverse())
    return Affine(*_SHARES[source]).then(Affine(half / _ANGLES[target]))


@dataclass(frozen=True)
class JointMap:
    """Order and units of one feature's joints, policy against robot. Arrays (A,): robot joint of each policy joint,
    and value_policy = value_robot * scale + offset.
    """

    index: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed: same order, same units."""
        return bool(
            np.array_equal(self.index, np.arange(len(self.index)))
            and np.all(self.scale == 1)
            and np.all(self.offset == 0)
        )

    def to_policy(self, robot: np.ndarray) -> np.ndarray:
        """(..., D) robot order and units -> float32 (..., A) policy order and units."""
        values = np.asarray(robot)[..., self.index]
        return (
            values.astype(np.float32)
            if self.is_identity
            else self._float32(values * self.scale + self.offset)
        )

    def to_robot(self, policy: np.ndarray) -> np.ndarray:
        """(..., A) policy order and units -> float32 (..., D) robot order and units."""
        out = np.empty(np.shape(policy), np.float32)
        out[..., self.index] = (
            policy if self.is_identity else (np.asarray(policy, np.float64) - self.offset) / self.scale
        )
        return out

    def speeds_to_robot(self, speeds: Sequence[float]) -> np.ndarray:
        """Speeds (A,), policy unit/s -> float32 (D,) robot unit/s, in robot order; also fits widths of ranges."""
        out = np.empty(len(self.index), np.float32)
        out[self.index] = np.abs(np.asarray(speeds, np.float64) / self.scale)
        return out

    @staticmethod
    def _float32(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32)


def joint_name(name: str) -> str:
    """A feature's element or a profile's joint without LeRobot's `.pos`."""
    return name.removesuffix(".pos")


def joint_map(feature: Feature, joints: Sequence[AboutJoint], robot: str) -> JointMap:
    """Matches a feature's elements with a robot's joints by name.

    Raises:
        BundleError: a joint that one side lacks, another zero, or units that do not convert.
    """
    position = {joint_name(j.name): i for i, j in enumerate(joints)}
    wanted = [joint_name(n) for n in feature.names]
    missing = [n for n in wanted if n not in position]
    spare = [n for n in position if n not in wanted]
    if missing or spare:
        sides = [f"{robot} lacks {', '.join(missing)}"] if missing else []
        sides += [f"'{feature.name}' lacks {', '.join(spare)}"] if spare else []
        raise BundleError(f"'{feature.name}' does not fit the joints of {robot}: {' and '.join(sides)}")
    affine = []
    for name, unit in zip(wanted, feature.units, strict=True):
        joint = joints[position[name]]
        zero = joint.zero
        if feature.zero is not None and zero is not None and zero != feature.zero and unit in _ANGLES:
            raise BundleError(
                f"joint '{name}': the policy counts from '{feature.zero}', {robot} from '{zero}'; "
                "use a profile with the policy's zero"
            )
        affine.append(between(joint.unit, unit, joint.range_deg, name))
    return JointMap(
        np.array([position[n] for n in wanted]),
        np.array([a.scale for a in affine]),
        np.array([a.offset for a in affine]),
    )
