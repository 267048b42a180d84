"""Where the cube is and goes, and where the arm begins: the same for the same task, seed and episode."""

from __future__ import annotations

import numpy as np

from .kinematics import READY_RAD, gripper_rad, inverse

REST, CONVEYOR = "follow_cube", "follow_cube/conveyor"
SEQUENCE = {REST: 0, CONVEYOR: 1}
"""Which sequence of places a task has."""

CUBE_SIDE_M = 0.03
HOVER_M = 0.07
"""Height of the point above the cube that the tool shall reach: clear of the cube by 4 cm."""
RADIUS_M = (0.19, 0.33)
ANGLE_RAD = (-np.deg2rad(43.0), np.deg2rad(43.0))
BELT_SPEED_M_S = 0.08
BELT_X_M = (0.19, 0.27)
BELT_START_Y_M = (-0.19, -0.13)
START_SPREAD_RAD = np.array([0.25, 0.12, 0.12, 0.12, 0.0, 0.15])
OPEN_PERCENT = 60.0
"""The jaws open on the way, as if to grasp."""
HOME_PERCENT = 10.0
"""Of the jaws in the SO101 profile's home pose."""


def above(cube_m: np.ndarray) -> np.ndarray:
    """The point (..., 3) above a cube's centre that the tool shall reach."""
    point = np.array(cube_m, float)
    point[..., 2] = HOVER_M
    return point


def place(task: str, seed: int, episode: int) -> np.ndarray:
    """Where the cube's centre (3,) is when the episode begins, metres."""
    rng = np.random.default_rng([seed, episode, SEQUENCE[task]])
    height = CUBE_SIDE_M / 2
    if task == CONVEYOR:
        return np.array([rng.uniform(*BELT_X_M), rng.uniform(*BELT_START_Y_M), height])
    radius, angle = rng.uniform(*RADIUS_M), rng.uniform(*ANGLE_RAD)
    return np.array([radius * np.cos(angle), radius * np.sin(angle), height])


def velocity(task: str) -> np.ndarray:
    """Of the cube, (3,) metres per second."""
    return np.array([0.0, BELT_SPEED_M_S if task == CONVEYOR else 0.0, 0.0])


def start_posture(rng: np.random.Generator) -> np.ndarray:
    """Near the ready posture, a little different each time; (6,) radians."""
    return READY_RAD + START_SPREAD_RAD * rng.uniform(-1, 1, 6)


def first_posture(task: str, seed: int, episode: int) -> np.ndarray:
    """Where an episode begins (6,): near the ready posture, above some other place with open jaws as the last episode
    left it, or (one in eight) on the way from the profile's home pose, where a deployment finds the arm.

    The jaws matter: were they always half closed at first, a policy would read from them how far an episode is, and
    stay where it is when it finds them open.
    """
    rng = np.random.default_rng([seed, episode, 7])
    posture = start_posture(rng)
    kind = rng.random()
    if kind < 0.5:
        elsewhere = place(REST, seed + 1_000_003, episode)
        if task == CONVEYOR:  # where the last cube went: far from where the next one comes
            elsewhere = np.array([rng.uniform(*BELT_X_M), rng.uniform(0.0, 0.22), 0.0])
        elsewhere[2] = HOVER_M + rng.uniform(0.0, 0.06)
        posture[:5] = inverse(elsewhere)[:5]
        posture[5] = gripper_rad(np.array(OPEN_PERCENT))
    elif kind < 0.625:
        share = rng.uniform(0.0, 1.0)
        posture[1:4] *= share
        posture[5] += (1 - share) * (gripper_rad(np.array(HOME_PERCENT)) - posture[5])
    return posture
