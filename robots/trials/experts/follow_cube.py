"""The scripted expert that demonstrates *follow the cube*.

It has no memory: its goal depends only on where the arm and the cube are, so what a policy sees is enough to
imitate it. Each 1/30 s it moves the goal 0.15 of the way from the present posture to the one above the cube, at
most 0.05 rad per joint. On the belt it aims where the cube will be, by exactly as much as such a step trails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevla.simulated import Task, task_named

from ...world.follow_cube.kinematics import gripper_rad, inverse, radians, robot_units
from ...world.follow_cube.places import COURSES, OPEN_PERCENT, above, velocity
from ...world.follow_cube.world import FollowCube
from .contract import Manner

STEP_S = 1 / 30
NOISE_RAD = 0.02
AT_REST_S = 55 / 30
"""A cube at rest is reached sooner than its episode ends."""
HEAD_START_S = 0.3
"""A demonstration on the belt begins up to so much later than an episode, so that its end is shown as well."""


@dataclass(frozen=True)
class FollowCubeExpert:
    """gain: share of the way per step. max_step_rad: per joint and step.

    lag_s: how long after a goal the arm is there (one step for an ideal arm); decides how far ahead to aim.
    """

    task: str
    gain: float = 0.15
    max_step_rad: float = 0.05
    lag_s: float = STEP_S

    @property
    def manner(self) -> Manner:
        disturbance = np.append(np.rad2deg(np.full(5, NOISE_RAD)), 0.0)
        is_moving = bool(velocity(self.task).any() or COURSES[self.task].jump_s)
        seconds = task_named(self.task).episode_s if is_moving else AT_REST_S
        head_start_s = HEAD_START_S if velocity(self.task).any() else 0.0
        return Manner(disturbance, round(seconds / STEP_S), head_start_s=head_start_s)

    def postures(self, cube_m: np.ndarray, n_steps: int) -> np.ndarray:
        """(n_steps, 6) radians: for this and the next steps the posture to move towards. cube_m: (3,), where it is."""
        lead_s = self.lag_s / self.gain
        times = np.arange(n_steps) * STEP_S + lead_s
        path = above(cube_m[None, :] + velocity(self.task)[None, :] * times[:, None])
        postures = inverse(path if velocity(self.task).any() else path[:1])
        postures[:, 5] = gripper_rad(np.array(OPEN_PERCENT))
        return np.broadcast_to(postures, (n_steps, 6)).copy()

    def step(self, joint_rad: np.ndarray, posture: np.ndarray) -> np.ndarray:
        """(6,) radians: one step from where the arm is towards a posture."""
        step = self.gain * (posture - joint_rad)
        return joint_rad + np.clip(step, -self.max_step_rad, self.max_step_rad)

    def goal(self, world: FollowCube, state: np.ndarray) -> np.ndarray:
        return robot_units(self.step(radians(state), self.postures(world.cube_m, 1)[0]))

    def is_done(self, world: FollowCube, state: np.ndarray) -> bool:
        """It follows until the last step."""
        return False

    def went_well(self, world: FollowCube) -> bool:
        """A kinematic arm cannot fail."""
        return True


def make_expert(task: Task) -> FollowCubeExpert:
    """See `experts/contract.py`."""
    return FollowCubeExpert(task.name)
