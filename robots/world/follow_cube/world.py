"""*Follow the cube*: a table, a cube (at rest, on a conveyor, jumping once; or two equal ones), and a judge.

The world is kinematic: the cube goes where its task says, the arm goes where its servos are. Episodes follow each
other; place n of a seed is always the same place, so strategies can be compared on equal terms. Nothing here
reads a clock: time comes in through `step`.

*Follow the cube* is solved when the tool point was within 2 cm of the point above the cube for the whole last half
second of the episode; of two equal cubes, of one and the same.
"""

from __future__ import annotations

import numpy as np

from edgevla import messages
from edgevla.clock import NS_PER_S
from edgevla.messages import Thing
from edgevla.simulated import Task

from ..contract import SUCCESS, Painter, Verdict
from .kinematics import forward, robot_units
from .places import COURSES, above, chosen, cubes, first_posture

TOLERANCE_M = 0.02
HOLD_S = 0.5
SETTLE_S = 1.5
"""The arm may travel this long before share of time and RMS are counted."""
SHORTEST_STEP_NS = 4_000_000


class FollowCubeJudge:
    """Collects (time, distances) of one episode and gives the verdict.

    fps: how often success is counted for the rewards. place: x y of every cube when the episode began.
    """

    def __init__(self, fps: float, place: tuple[float, ...]) -> None:
        self.fps, self.place = fps, place
        self.times_ns: list[int] = []
        self.distances_m: list[np.ndarray] = []

    def see(self, sim_ns: int, tool_m: np.ndarray, cubes_m: np.ndarray) -> None:
        """sim_ns: time since the episode began. cubes_m: (N, 3) centres of the cubes, any of which will do."""
        self.times_ns.append(sim_ns)
        self.distances_m.append(np.linalg.norm(np.asarray(tool_m, float) - above(cubes_m), axis=-1))

    def verdict(self) -> Verdict:
        """figures: share_in_tolerance of the time after the first 1.5 s, and rms_mm of the distance in the same time."""
        times = np.array(self.times_ns) / NS_PER_S
        if len(times) == 0 or times[-1] < HOLD_S:
            return Verdict(False, None, 0.0, 0.0, self.place, "too short")
        all_m = np.array(self.distances_m)
        distances = all_m[:, all_m[times >= times[-1] - HOLD_S].mean(axis=0).argmin()]
        inside = distances <= TOLERANCE_M
        is_held = bool(inside[times >= times[-1] - HOLD_S].all())
        settled = times >= min(SETTLE_S, times[-1])
        outside = np.flatnonzero(~inside)
        since = times[outside[-1] + 1] if is_held and len(outside) else times[0]
        steps = np.searchsorted(times, np.arange(0.0, times[-1], 1 / self.fps))
        figures = {
            "share_in_tolerance": float(inside[settled].mean()),
            "rms_mm": float(np.sqrt(np.mean(distances[settled] ** 2)) * 1000),
        }
        return Verdict(
            is_success=is_held,
            time_to_success_s=float(since) if is_held else None,
            max_reward=float(inside.any()),
            sum_reward=float(inside[steps].sum()),
            place=self.place,
            outcome=SUCCESS if is_held else "not held" if inside.any() else "not reached",
            figures=figures,
        )


class FollowCube:
    """One table with one cube. `step` is called by whoever owns the arm (the emulator's server, or a lock-step run).

    episode_s: the cube is put somewhere else every so many seconds; None: the task's own length, 0: never.
    """

    physics = None

    def __init__(self, task: Task, seed: int = 0, episode_s: float | None = None) -> None:
        self.task, self.seed = task, seed
        self.episode_ns = int((task.episode_s if episode_s is None else episode_s) * NS_PER_S)
        self.verdicts: list[Verdict] = []
        self.joint_rad = np.zeros(6)
        self.tool_m = forward(self.joint_rad)
        self.reset(0, 0)
        self._begin_ns: int | None = None

    @property
    def cubes_m(self) -> np.ndarray:
        """Centres (1 or 2, 3) now."""
        return cubes(self.task.name, self.seed, self.episode, self.sim_ns / NS_PER_S)

    @property
    def cube_m(self) -> np.ndarray:
        """Centre (3,) of the cube that a demonstration goes to."""
        return np.asarray(self.cubes_m[chosen(self.task.name, self.seed, self.episode)])

    @property
    def sim_ns(self) -> int:
        return 0 if self._begin_ns is None else self._now_ns - self._begin_ns

    def start(self, episode: int) -> np.ndarray:
        return robot_units(first_posture(self.task.name, self.seed, episode))

    def reset(self, episode: int, now_ns: int) -> None:
        self.episode = episode
        self._begin_ns = self._now_ns = now_ns
        self.judge = FollowCubeJudge(self.task.fps, tuple(map(float, self.cubes_m[:, :2].ravel())))

    def step(self, now_ns: int, joint_rad: np.ndarray) -> None:
        """Moves the cube, judges, and begins the next episode when due."""
        if self._begin_ns is None:
            self._begin_ns = now_ns
        if 0 < now_ns - self._now_ns < SHORTEST_STEP_NS and self.judge.times_ns:
            return  # servos step much more often than a cube needs
        self._now_ns = now_ns
        self.joint_rad = np.asarray(joint_rad, float)
        self.tool_m = forward(self.joint_rad)
        self.judge.see(self.sim_ns, self.tool_m, self.cubes_m)
        if self.episode_ns and self.sim_ns >= self.episode_ns:
            self.verdicts.append(self.judge.verdict())
            self.reset(self.episode + 1, now_ns)

    def verdict(self) -> Verdict:
        return self.judge.verdict()

    def is_decided(self) -> bool:
        """Never before the end: what is held may be lost."""
        return False

    def message(self) -> messages.World:
        things = [Thing("cube", cube.astype("<f4"), 0.0) for cube in self.cubes_m]
        things += [Thing("belt", self._belt(), 0.0)] if COURSES[self.task.name].speed_m_s else []
        return messages.World(
            joint_rad=self.joint_rad.astype("<f4"),
            gripper_m=self.tool_m.astype("<f4"),
            objects=tuple(things),
            sim_ns=self.sim_ns,
            episode=self.episode,
        )

    def _belt(self) -> np.ndarray:
        """The middle of the conveyor: the line along y on which the cube rides."""
        return np.array([self.cubes_m[0, 0], 0.0, 0.0], "<f4")


def make_world(task: Task, seed: int, episode_s: float | None) -> FollowCube:
    """See `world/contract.py`."""
    return FollowCube(task, seed, episode_s)


def make_painter(task: Task) -> Painter:
    """See `world/contract.py`."""
    from .scene import ScenePainter  # OpenCV, which servos do not need

    return ScenePainter()
