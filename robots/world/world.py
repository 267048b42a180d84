"""The simulated world: a table, a cube (at rest, or riding on a conveyor), and a judge.

The world is kinematic: the cube goes where its task says, the arm goes where its servos are. Episodes follow each
other; place n of a seed is always the same place, so strategies can be compared on equal terms. Nothing here
reads a clock: time comes in through `step`.

*Follow the cube* is solved when the tool point was within 2 cm of the point above the cube for the whole last half
second of the episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgevla import messages
from edgevla.clock import NS_PER_S
from edgevla.messages import Thing

from .kinematics import forward

Task = Literal["rest", "conveyor"]
TASKS: tuple[Task, ...] = ("rest", "conveyor")

CUBE_SIDE_M = 0.03
HOVER_M = 0.07
"""Height of the point above the cube that the tool shall reach: clear of the cube by 4 cm."""
RADIUS_M = (0.19, 0.33)
ANGLE_RAD = (-np.deg2rad(43.0), np.deg2rad(43.0))
BELT_SPEED_M_S = 0.08
BELT_X_M = (0.19, 0.27)
BELT_START_Y_M = (-0.19, -0.13)
TOLERANCE_M = 0.02
HOLD_S = 0.5
SETTLE_S = 1.5
"""The arm may travel this long before share of time and RMS are counted."""
SHORTEST_STEP_NS = 4_000_000
EPISODE_S = {"rest": 3.0, "conveyor": 130 / 30}


@dataclass(frozen=True)
class Verdict:
    """How one episode went. Distances are from the tool point to the point above the cube.

    share: of the time after the first 1.5 s that was within tolerance. rms_m: of the distance in the same time.
    time_to_success_s: when the tool came within tolerance for good; None unless it was a success.
    """

    is_success: bool
    share: float
    rms_m: float
    time_to_success_s: float | None


class Judge:
    """Collects (time, distance) of one episode and gives the verdict."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.distances_m: list[float] = []

    def see(self, sim_ns: int, tool_m: np.ndarray, cube_m: np.ndarray) -> None:
        """sim_ns: time since the episode began. cube_m: the cube's centre."""
        self.times_ns.append(sim_ns)
        self.distances_m.append(float(np.linalg.norm(np.asarray(tool_m, float) - above(cube_m))))

    def verdict(self, tolerance_m: float = TOLERANCE_M) -> Verdict:
        times = np.array(self.times_ns) / NS_PER_S
        distances = np.array(self.distances_m)
        if len(times) == 0 or times[-1] < HOLD_S:
            return Verdict(False, 0.0, float("inf"), None)
        inside = distances <= tolerance_m
        held = bool(inside[times >= times[-1] - HOLD_S].all())
        settled = times >= min(SETTLE_S, times[-1])
        outside = np.flatnonzero(~inside)
        since = times[outside[-1] + 1] if held and len(outside) else times[0]
        return Verdict(
            held,
            float(inside[settled].mean()),
            float(np.sqrt(np.mean(distances[settled] ** 2))),
            float(since) if held else None,
        )


def above(cube_m: np.ndarray) -> np.ndarray:
    """The point (..., 3) above a cube's centre that the tool shall reach."""
    point = np.array(cube_m, float)
    point[..., 2] = HOVER_M
    return point


def place(task: Task, seed: int, episode: int) -> np.ndarray:
    """Where the cube's centre (3,) is when the episode begins; the same for the same three numbers."""
    rng = np.random.default_rng([seed, episode, TASKS.index(task)])
    height = CUBE_SIDE_M / 2
    if task == "conveyor":
        return np.array([rng.uniform(*BELT_X_M), rng.uniform(*BELT_START_Y_M), height])
    radius, angle = rng.uniform(*RADIUS_M), rng.uniform(*ANGLE_RAD)
    return np.array([radius * np.cos(angle), radius * np.sin(angle), height])


def velocity(task: Task) -> np.ndarray:
    """Of the cube, (3,) metres per second."""
    return np.array([0.0, BELT_SPEED_M_S if task == "conveyor" else 0.0, 0.0])


class World:
    """One table with one cube. `step` is called by whoever owns the arm (the emulator's server, or a lock-step run).

    episode_s: the cube is put somewhere else every so many seconds; None: the task's own length, 0: never.
    """

    def __init__(self, task: Task = "rest", seed: int = 0, episode_s: float | None = None) -> None:
        self.task: Task = task
        self.seed = seed
        self.episode_ns = int((EPISODE_S[task] if episode_s is None else episode_s) * NS_PER_S)
        self.episode = 0
        self.judge = Judge()
        self.verdicts: list[Verdict] = []
        self.joint_rad = np.zeros(6)
        self.tool_m = forward(self.joint_rad)
        self._begin_ns: int | None = None
        self._now_ns = 0
        self._start_m = place(task, seed, 0)

    @property
    def cube_m(self) -> np.ndarray:
        """The cube's centre (3,) now."""
        return self._start_m + velocity(self.task) * (self.sim_ns / NS_PER_S)

    @property
    def sim_ns(self) -> int:
        """Time since the episode began."""
        return 0 if self._begin_ns is None else self._now_ns - self._begin_ns

    def reset(self, episode: int, now_ns: int) -> None:
        """Puts the cube to its place of `episode`; a running episode is dropped without a verdict."""
        self.episode, self.judge = episode, Judge()
        self._start_m = place(self.task, self.seed, episode)
        self._begin_ns = self._now_ns = now_ns

    def step(self, now_ns: int, joint_rad: np.ndarray) -> None:
        """The arm is at `joint_rad` (6,) at `now_ns`: moves the cube, judges, and begins the next episode when due."""
        if self._begin_ns is None:
            self._begin_ns = now_ns
        if 0 < now_ns - self._now_ns < SHORTEST_STEP_NS and self.judge.times_ns:
            return  # servos step much more often than a cube needs
        self._now_ns = now_ns
        self.joint_rad = np.asarray(joint_rad, float)
        self.tool_m = forward(self.joint_rad)
        self.judge.see(self.sim_ns, self.tool_m, self.cube_m)
        if self.episode_ns and self.sim_ns >= self.episode_ns:
            self.verdicts.append(self.judge.verdict())
            self.reset(self.episode + 1, now_ns)

    def message(self) -> messages.World:
        """As it is told. `sim_ns` starts again at 0 with every episode."""
        things = [Thing("cube", self.cube_m.astype("<f4"), 0.0)]
        things += [Thing("belt", self._belt(), 0.0)] if self.task == "conveyor" else []
        return messages.World(
            joint_rad=self.joint_rad.astype("<f4"),
            gripper_m=self.tool_m.astype("<f4"),
            objects=tuple(things),
            sim_ns=self.sim_ns,
        )

    def _belt(self) -> np.ndarray:
        """The middle of the conveyor: the line along y on which the cube rides."""
        return np.array([self._start_m[0], 0.0, 0.0], "<f4")
