"""The scripted expert that demonstrates *follow the cube*.

It has no memory: its goal depends only on where the arm and the cube are, so what a policy sees is enough to
imitate it. Each 1/30 s it moves the goal 0.15 of the way from the present posture to the one above the cube, at
most 0.05 rad per joint. On the belt it aims where the cube will be, by exactly as much as such a step trails.
Demonstrations are disturbed (0.02 rad of noise on what is *executed*) while the labels stay clean: the policy sees
how to come back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..world.follow_cube.kinematics import gripper_rad, inverse
from ..world.follow_cube.places import OPEN_PERCENT, above, velocity

STEP_S = 1 / 30
NOISE_RAD = 0.02


@dataclass(frozen=True)
class Expert:
    """gain: share of the way per step. max_step_rad: per joint and step.

    lag_s: how long after a goal the arm is there (one step for an ideal arm); decides how far ahead to aim.
    """

    gain: float = 0.15
    max_step_rad: float = 0.05
    lag_s: float = STEP_S

    def postures(self, task: str, start_m: np.ndarray, n_steps: int) -> np.ndarray:
        """(n_steps, 6) radians: for each step of an episode the posture to move towards."""
        lead_s = self.lag_s / self.gain
        times = np.arange(n_steps) * STEP_S + lead_s
        path = above(start_m[None, :] + velocity(task)[None, :] * times[:, None])
        postures = inverse(path if velocity(task).any() else path[:1])
        postures[:, 5] = gripper_rad(np.array(OPEN_PERCENT))
        return np.broadcast_to(postures, (n_steps, 6)).copy()

    def goal(self, joint_rad: np.ndarray, posture: np.ndarray) -> np.ndarray:
        """The goal (6,) for this step."""
        step = self.gain * (posture - joint_rad)
        return joint_rad + np.clip(step, -self.max_step_rad, self.max_step_rad)
