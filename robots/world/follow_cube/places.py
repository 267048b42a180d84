"""Where the cube is and goes, and where the arm begins: the same for the same task, seed and episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .kinematics import READY_RAD, gripper_rad, inverse

REST, CONVEYOR, JUMP, TWO = "follow_cube", "follow_cube/conveyor", "follow_cube/jump", "follow_cube/two"


@dataclass(frozen=True)
class Course:
    """What the cube of a task does. speed_m_s: along y, on a belt. jump_s: when it is suddenly elsewhere, between these.

    is_double: a second one lies opposite, and either may be followed.
    """

    sequence: int
    speed_m_s: float = 0.0
    jump_s: tuple[float, float] | None = None
    is_double: bool = False


COURSES = {
    REST: Course(0),
    CONVEYOR: Course(1, speed_m_s=0.08),
    "follow_cube/conveyor_slow": Course(2, speed_m_s=0.04),
    "follow_cube/conveyor_fast": Course(3, speed_m_s=0.12),
    JUMP: Course(4, jump_s=(1.2, 1.7)),
    TWO: Course(5, is_double=True),
}
"""sequence: no two tasks have the same places."""

CUBE_SIDE_M = 0.03
HOVER_M = 0.07
"""Height of the point above the cube that the tool shall reach: clear of the cube by 4 cm."""
RADIUS_M = (0.19, 0.33)
ANGLE_RAD = (-np.deg2rad(43.0), np.deg2rad(43.0))
APART_RAD = (np.deg2rad(18.0), np.deg2rad(40.0))
MIRRORED = np.array((1.0, -1.0, 1.0))
JUMP_M = 0.12
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
    course = COURSES[task]
    rng = np.random.default_rng([seed, episode, course.sequence])
    if course.speed_m_s:
        return np.array([rng.uniform(*BELT_X_M), rng.uniform(*BELT_START_Y_M), CUBE_SIDE_M / 2])
    if course.is_double:
        return _on_the_table(rng, APART_RAD)
    return _on_the_table(rng, ANGLE_RAD)


def _on_the_table(rng: np.random.Generator, angles_rad: tuple[float, float]) -> np.ndarray:
    radius, angle = rng.uniform(*RADIUS_M), rng.uniform(*angles_rad)
    return np.array([radius * np.cos(angle), radius * np.sin(angle), CUBE_SIDE_M / 2])


def cubes(task: str, seed: int, episode: int, sim_s: float) -> np.ndarray:
    """Centres (1 or 2, 3) of the cubes so long after the episode's beginning."""
    course = COURSES[task]
    first = place(task, seed, episode)
    if course.jump_s is not None:
        rng = np.random.default_rng([seed, episode, course.sequence, 1])
        if sim_s >= rng.uniform(*course.jump_s):
            first = _elsewhere(rng, first)
    if course.is_double:
        return np.stack((first, first * MIRRORED))
    return (first + velocity(task) * sim_s)[None]


def _elsewhere(rng: np.random.Generator, first: np.ndarray) -> np.ndarray:
    """At least `JUMP_M` away."""
    while True:
        found = _on_the_table(rng, ANGLE_RAD)
        if np.linalg.norm(found - first) >= JUMP_M:
            return found


def chosen(task: str, seed: int, episode: int) -> int:
    """Which of the cubes a demonstration goes to: of two equal ones, either, as a person might."""
    is_second = COURSES[task].is_double and np.random.default_rng([seed, episode, 5]).random() < 0.5
    return int(is_second)


def velocity(task: str) -> np.ndarray:
    """Of the cube, (3,) metres per second."""
    return np.array([0.0, COURSES[task].speed_m_s, 0.0])


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
        if COURSES[task].speed_m_s:  # where the last cube went: far from where the next one comes
            elsewhere = np.array([rng.uniform(*BELT_X_M), rng.uniform(0.0, 0.22), 0.0])
        elsewhere[2] = HOVER_M + rng.uniform(0.0, 0.06)
        posture[:5] = inverse(elsewhere)[:5]
        posture[5] = gripper_rad(np.array(OPEN_PERCENT))
    elif kind < 0.625:
        share = rng.uniform(0.0, 1.0)
        posture[1:4] *= share
        posture[5] += (1 - share) * (gripper_rad(np.array(HOME_PERCENT)) - posture[5])
    return posture
