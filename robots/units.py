"""Ticks of the servos to the units of state and action, and back, for a whole robot at once.

The SO101 formulas are LeRobot's to the tick (4095 per turn, `int` truncates towards zero, drive_mode is ignored in
degrees), so that datasets do not shift. ALOHA's gripper is two maps: the state normalises the finger's linear
position, the action the motor's angle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .calibration import Calibration
from .profile import GripperMap, Joint, Profile

TICKS_PER_DEGREE = 4095 / 360
OUTSIDE_TICKS = 114
"""10 degrees: a joint this far outside its range may come back by itself, slowly; farther, a person moves it."""
MANY_TICKS = 1 << 31
RAD_PER_TICK = 2 * np.pi / 4096
CENTRE = 2048


def finger_m(angle_rad: np.ndarray, gripper: GripperMap) -> np.ndarray:
    """Linear finger position of ALOHA's crank gripper from its motor's angle."""
    r, arm = gripper.horn_m, gripper.arm_m
    return r * np.sin(angle_rad) + np.sqrt(arm**2 - (r * np.cos(angle_rad)) ** 2)


def finger_rad(finger: float, gripper: GripperMap) -> float:
    """The motor's angle, -pi/2..pi/2, for a linear finger position in metres: the inverse of `finger_m`.

    Beyond what the crank reaches: of its ends.
    """
    r, arm = gripper.horn_m, gripper.arm_m
    finger = max(arm - r, min(arm + r, finger))
    return math.asin((r * r + finger * finger - arm * arm) / (2 * r * finger))


@dataclass(frozen=True)
class OutOfRange:
    """A joint that stands outside its range. by: how far, and limit: the end it is beyond, in units of `action`."""

    index: int
    motor: str
    by: float
    limit: float
    ticks: int
    unit: str

    def __str__(self) -> str:
        how_far = {
            "rad": f"{self.by:.2f} rad",
            "percent": f"{self.by:.0f} % of its range",
            "unit": f"{100 * self.by:.0f} % of its range",
        }.get(self.unit, f"{self.ticks / TICKS_PER_DEGREE:.0f} degrees")
        return f"{self.motor} is {how_far} outside its range"


@dataclass(frozen=True)
class JointUnits:
    """Vectors of one robot in its joints' order. low, high: int ticks; drive_mode: 0 or 1.

    least, most: int ticks, the goals that are sent: within `low` and `high`, and what the servos take by themselves.
    """

    joints: tuple[Joint, ...]
    low: np.ndarray
    high: np.ndarray
    drive_mode: np.ndarray
    least: np.ndarray = None  # type: ignore[assignment]
    most: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "least", self.low if self.least is None else self.least)
        object.__setattr__(self, "most", self.high if self.most is None else self.most)
        unit = np.array([joint.unit for joint in self.joints])
        index = {name: np.flatnonzero(unit == name) for name in ("deg", "range100", "percent", "rad", "unit")}
        object.__setattr__(self, "_index", index)
        maps = [joint.gripper for joint in self.joints if joint.unit == "unit"]
        object.__setattr__(self, "_grippers", maps)

    _index: dict[str, np.ndarray] = None  # type: ignore[assignment]
    _grippers: Sequence[GripperMap] = ()

    def state(self, ticks: np.ndarray) -> np.ndarray:
        """int (D,) present positions -> float32 (D,) in the units of `observation.state`."""
        out = self._common(ticks)
        for k, gripper in zip(self._index["unit"], self._grippers, strict=True):
            x = finger_m((ticks[k] - CENTRE) * RAD_PER_TICK, gripper)
            out[k] = (x - gripper.closed_m) / (gripper.open_m - gripper.closed_m)
        return out.astype(np.float32)

    def action(self, ticks: np.ndarray) -> np.ndarray:
        """int (D,) positions -> float32 (D,) in the units of `action`: differs from `state` for ALOHA's grippers."""
        out = self._common(ticks)
        for k, gripper in zip(self._index["unit"], self._grippers, strict=True):
            angle = (ticks[k] - CENTRE) * RAD_PER_TICK
            out[k] = (angle - gripper.closed_rad) / (gripper.open_rad - gripper.closed_rad)
        return out.astype(np.float32)

    def _common(self, ticks: np.ndarray) -> np.ndarray:
        t = np.asarray(ticks, dtype=np.float64)
        out = np.empty(t.shape)
        k = self._index["deg"]
        if k.size:
            out[k] = (t[k] - (self.low[k] + self.high[k]) / 2) * 360 / 4095
        for name, span, offset in (("range100", 200.0, -100.0), ("percent", 100.0, 0.0)):
            k = self._index[name]
            if k.size:
                low, high = self.low[k], self.high[k]
                value = (np.clip(t[k], low, high) - low) / (high - low) * span + offset
                flipped = -value if name == "range100" else 100.0 - value
                out[k] = np.where(self.drive_mode[k] == 1, flipped, value)
        k = self._index["rad"]
        if k.size:
            out[k] = (t[k] - CENTRE) * RAD_PER_TICK
        return out

    def ticks(self, action: np.ndarray, is_clamped: bool = True) -> np.ndarray:
        """float (D,) finite goals in the units of `action` -> int64 (D,) ticks, within `least` and `most` if clamped.

        LeRobot leaves the last clamp (degrees) to the servo's own limit registers; we do not.
        """
        v = np.asarray(action, dtype=np.float64)
        out = np.empty(v.shape)
        k = self._index["deg"]
        if k.size:
            out[k] = v[k] * 4095 / 360 + (self.low[k] + self.high[k]) / 2
        for name, span, offset in (("range100", 200.0, 100.0), ("percent", 100.0, 0.0)):
            k = self._index[name]
            if k.size:
                low, high = self.low[k], self.high[k]
                flip = self.drive_mode[k] == 1
                value = np.where(flip, -v[k] if name == "range100" else 100.0 - v[k], v[k])
                value = np.clip(value, -offset, 100.0)
                out[k] = (value + offset) / span * (high - low) + low
        k = self._index["rad"]
        if k.size:
            out[k] = np.rint(v[k] / RAD_PER_TICK) + CENTRE
        for k, gripper in zip(self._index["unit"], self._grippers, strict=True):
            angle = v[k] * (gripper.open_rad - gripper.closed_rad) + gripper.closed_rad
            out[k] = np.rint(angle / RAD_PER_TICK) + CENTRE
        low, high = (self.least, self.most) if is_clamped else (-MANY_TICKS, MANY_TICKS)
        return np.clip(np.trunc(out), low, high).astype(np.int64)  # what no integer holds is clipped before

    def scale(self) -> np.ndarray:
        """float64 (D,): units of `action` per tick, positive; for speeds and distances."""
        out = np.full(len(self.joints), 1.0)
        out[self._index["deg"]] = 1 / TICKS_PER_DEGREE
        out[self._index["rad"]] = RAD_PER_TICK
        for name, span in (("range100", 200.0), ("percent", 100.0)):
            k = self._index[name]
            out[k] = span / (self.high[k] - self.low[k])
        for k, gripper in zip(self._index["unit"], self._grippers, strict=True):
            out[k] = abs(RAD_PER_TICK / (gripper.open_rad - gripper.closed_rad))
        return out

    def outside(self, ticks: np.ndarray) -> list[OutOfRange]:
        """int (D,) present positions -> the joints from which the nearest goal that can be sent is away."""
        ends = np.clip(ticks, self.least, self.most)
        away, limit, scale = np.abs(ticks - ends), self.action(ends), self.scale()
        return [
            OutOfRange(
                int(k), joint.motor, float(away[k] * scale[k]), float(limit[k]), int(away[k]), joint.unit
            )
            for k, joint in enumerate(self.joints)
            if away[k]
        ]

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 (D,) lowest and highest action: the profile's limits within what the servos can reach."""
        ends = np.sort(np.stack((self.action(self.least), self.action(self.most))), axis=0)
        low = np.maximum(ends[0], [joint.min for joint in self.joints])
        high = np.minimum(ends[1], [joint.max for joint in self.joints])
        return low.astype(np.float32), high.astype(np.float32)


def joint_units(profile: Profile, calibration: Calibration | None) -> JointUnits:
    """The maps of a robot. `calibration` is needed where the profile has no `range_ticks`."""
    low, high, drive = [], [], []
    for joint in profile.joints:
        if joint.range_ticks is not None:
            (lo, hi), mode = joint.range_ticks, 0  # the servo itself turns the direction round
        else:
            assert calibration is not None, "checked when the calibration was loaded"
            entry = calibration.motors[joint.motor]
            lo, hi, mode = entry.range_min, entry.range_max, entry.drive_mode
        low.append(lo)
        high.append(hi)
        drive.append(mode)
    return JointUnits(profile.joints, np.array(low), np.array(high), np.array(drive))
