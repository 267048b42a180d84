"""The joints of a MuJoCo scene behind emulated servos: set points go to position actuators, forces come back.

A joint is driven by one position actuator of the scene, a gripper by one per finger. The actuators keep the scene's own
stiffness and force limits while a servo may use its full force; below that, and where torque is off, they may push only
with that share. A joint that is stuck is given so much inertia that nothing moves it.

Time is stepped in halves: after `step` positions, velocities and contacts all belong to the same moment, as dm_control
has it, so a judge may read contacts at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevla.clock import NS_PER_S

from ...profile import GripperMap
from ...units import RAD_PER_TICK, finger_m, finger_rad
from .engine import mujoco

FULL_FORCE_TICKS = 250
"""A servo gives all it has when its goal is so far away; what a scene limits to less, it limits to less."""
IMMOVABLE = 1e6
"""Inertia (kg m2, kg) that a stuck joint gets."""


@dataclass(frozen=True)
class Drive:
    """What one servo moves in the scene.

    joints: names, each with an actuator; the first is the one that the servo's encoder sees. signs: the second finger
    goes the other way. full_force: newton (metres) at the servo's full torque, per actuator; None: what the actuator
    gives 250 ticks from its goal, or its limit. gripper: the linkage between a motor's angle and fingers in metres.
    """

    joints: tuple[str, ...]
    signs: tuple[int, ...] = (1,)
    full_force: float | None = None
    gripper: GripperMap | None = None


class MujocoJoints:
    """`Physics` of the emulator over one model and its data. drives: one per joint of the profile, in its order."""

    def __init__(self, model: Any, data: Any, drives: Sequence[Drive]) -> None:
        self.model, self.data = model, data
        self.step_ns = round(model.opt.timestep * NS_PER_S)
        self._of = np.array([k for k, drive in enumerate(drives) for _ in drive.joints])
        self._sign = np.array([sign for drive in drives for sign in drive.signs], float)
        joints = [model.joint(name) for drive in drives for name in drive.joints]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dof = np.array([joint.dofadr[0] for joint in joints])
        by_joint = {int(j): a for a, j in enumerate(model.actuator_trnid[:, 0])}
        self._actuator = np.array([by_joint[joint.id] for joint in joints])
        self._first = np.searchsorted(self._of, np.arange(len(drives)))
        self._n_of = np.bincount(self._of)
        self._grippers = [(k, drive.gripper) for k, drive in enumerate(drives) if drive.gripper is not None]
        self._full = np.array([self._full_force(drive, self._first[k]) for k, drive in enumerate(drives)])
        self._limited = model.actuator_forcelimited[self._actuator].copy()
        self._range = model.actuator_forcerange[self._actuator].copy()
        self._armature = model.dof_armature[self._dof].copy()
        self._strength, self._stuck = np.ones(len(drives)), np.zeros(len(drives), bool)
        self._effort = np.zeros(len(drives))
        self._refresh()

    def _full_force(self, drive: Drive, first: int) -> float:
        if drive.full_force is not None:
            return drive.full_force
        actuator = self._actuator[first]
        own = self.model.actuator_gainprm[actuator, 0] * FULL_FORCE_TICKS * RAD_PER_TICK
        limit = (
            self.model.actuator_forcerange[actuator, 1] if self.model.actuator_forcelimited[actuator] else own
        )
        return float(min(own, limit))

    @property
    def angle_rad(self) -> np.ndarray:
        return self._angle

    @property
    def effort(self) -> np.ndarray:
        return self._effort

    def put(self, angle_rad: np.ndarray) -> None:
        values = self._scene_values(angle_rad)
        self.data.qpos[self._qpos] = values
        self.data.qvel[self._dof] = 0.0
        self.data.ctrl[self._actuator] = values
        self.refresh()

    def step(self, wanted_rad: np.ndarray, strength: np.ndarray, is_stuck: np.ndarray) -> None:
        if not np.array_equal(strength, self._strength):
            self._allow(strength)
        if not np.array_equal(is_stuck, self._stuck):
            self._block(is_stuck)
        self.data.ctrl[self._actuator] = self._scene_values(wanted_rad)
        mujoco().mj_step2(self.model, self.data)
        mujoco().mj_step1(self.model, self.data)
        force = self.data.actuator_force[self._actuator] * self._sign
        share = np.bincount(self._of, force) / self._n_of / self._full
        allowed = np.where(self._strength > 0, self._strength, 1.0)
        self._effort = np.clip(share, -allowed, allowed)
        self._refresh()

    def refresh(self) -> None:
        """After positions were changed from outside: contacts and all else follow them."""
        mujoco().mj_step1(self.model, self.data)
        self._refresh()

    def _refresh(self) -> None:
        self._angle = self.data.qpos[self._qpos[self._first]].copy()
        for k, gripper in self._grippers:
            self._angle[k] = finger_rad(float(self._angle[k]), gripper)

    def _scene_values(self, angle_rad: np.ndarray) -> np.ndarray:
        """Of all actuators: radians, and metres of fingers."""
        values = np.array(angle_rad, float)
        for k, gripper in self._grippers:
            values[k] = finger_m(values[k], gripper)
        return self._sign * values[self._of]

    def _allow(self, strength: np.ndarray) -> None:
        """Less than full strength limits the actuators to that share; with all of it they are as in the scene."""
        self._strength = strength.copy()
        is_less = (strength < 1)[self._of]
        bound = (strength * self._full)[self._of]
        self.model.actuator_forcelimited[self._actuator] = np.where(is_less, 1, self._limited)
        less = np.stack((-bound, bound), axis=1)
        self.model.actuator_forcerange[self._actuator] = np.where(is_less[:, None], less, self._range)

    def _block(self, is_stuck: np.ndarray) -> None:
        self._stuck = is_stuck.copy()
        stuck = is_stuck[self._of]
        self.data.qvel[self._dof[stuck]] = 0.0
        self.model.dof_armature[self._dof] = np.where(stuck, IMMOVABLE, self._armature)
