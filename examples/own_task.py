"""A simulated task of your own: a world that judges, a painter that draws, an expert that shows how, a row in the table.

    python examples/own_task.py datasets/touch_mark

The tool of an SO101 shall stand above one of three marks for the last half second. Two demonstrations are recorded on
emulated servos, through driver, packets and safety filter. In the repository the row stands in `edgevla/simulated.py`
and the expert's in `robots/trials/experts/contract.py`; then every verb knows the task: `edgevla demo --task NAME`,
`edgevla eval BUNDLE --task NAME`, `edgevla deploy BUNDLE --robot so101 --sim --sim-task NAME`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgevla.messages import Thing, World
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
from edgevla.robots.trials.experts.contract import MODULES, Manner
from edgevla.robots.world.contract import SUCCESS, Painter, Verdict
from edgevla.robots.world.follow_cube import world as follow_cube
from edgevla.robots.world.follow_cube.kinematics import READY_RAD, forward, inverse, radians, robot_units
from edgevla.simulated import TASKS, Task

TASK = Task(
    name="touch_mark",
    world="so101",
    instruction="hold the tool above the mark",
    fps=30,
    episode_s=2.0,
    cameras=("front", "top", "wrist"),
    module="own_task",
)
MARKS_M = np.array([(0.25, -0.1, 0.01), (0.3, 0.0, 0.01), (0.25, 0.1, 0.01)])
HOVER_M = np.array((0.0, 0.0, 0.08))
NEAR_M = 0.03
HOLD_NS = 500_000_000


class TouchMark:
    """One mark on the table. Time comes in through `step`; episode n has mark n of three, whatever the seed."""

    physics = None  # the servos move the arm as they like

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.verdicts: list[Verdict] = []
        self.reset(0, 0)

    @property
    def mark_m(self) -> np.ndarray:
        return np.array(MARKS_M[self.episode % len(MARKS_M)])

    @property
    def sim_ns(self) -> int:
        return self._now_ns - self._begin_ns

    def start(self, episode: int) -> np.ndarray:
        return robot_units(READY_RAD)

    def reset(self, episode: int, now_ns: int) -> None:
        self.episode, self._begin_ns, self._now_ns = episode, now_ns, now_ns
        self._joint_rad = READY_RAD
        self._near_since_ns: int | None = None

    def step(self, now_ns: int, joint_rad: np.ndarray) -> None:
        self._now_ns, self._joint_rad = now_ns, np.asarray(joint_rad, float)
        is_near = np.linalg.norm(forward(self._joint_rad) - self.mark_m - HOVER_M) < NEAR_M
        self._near_since_ns = (self._near_since_ns or now_ns) if is_near else None

    def verdict(self) -> Verdict:
        since = self._near_since_ns
        is_success = since is not None and self._now_ns - since >= HOLD_NS
        return Verdict(
            is_success=is_success,
            time_to_success_s=(since - self._begin_ns) / 1e9 if since is not None and is_success else None,
            max_reward=float(is_success),
            sum_reward=float(is_success),
            place=tuple(self.mark_m[:2].tolist()),
            outcome=SUCCESS if is_success else "not held",
        )

    def is_decided(self) -> bool:
        return False  # what is held may be lost

    def message(self) -> World:
        return World(
            joint_rad=self._joint_rad.astype("<f4"),
            gripper_m=forward(self._joint_rad).astype("<f4"),
            objects=(Thing("cube", self.mark_m.astype("<f4"), 0.0),),  # the painter below knows cubes
            sim_ns=self.sim_ns,
            episode=self.episode,
        )


class TouchMarkExpert:
    """A tenth of the way at each step. It has no memory: what a policy sees is enough to imitate it."""

    manner = Manner(disturbance=np.array([0.5] * 5 + [0.0]), n_steps=60)  # degrees; the gripper's percent

    def goal(self, world: TouchMark, state: np.ndarray) -> np.ndarray:
        here = radians(state)
        return robot_units(here + 0.1 * (inverse(world.mark_m + HOVER_M) - here))

    def is_done(self, world: TouchMark, state: np.ndarray) -> bool:
        return False

    def went_well(self, world: TouchMark) -> bool:
        return world.verdict().is_success


def make_world(task: Task, seed: int, episode_s: float | None) -> TouchMark:
    return TouchMark(task, seed)


def make_painter(task: Task) -> Painter:
    return follow_cube.make_painter(task)


def make_expert(task: Task) -> TouchMarkExpert:
    return TouchMarkExpert()


def main(folder: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent))  # where the row below finds this module
    TASKS[TASK.name], MODULES[TASK.name] = TASK, "own_task"
    print(demonstrate(Path(folder), DemonstrationPlan(TASK.name, n_episodes=2)))


if __name__ == "__main__":
    main(sys.argv[1])
