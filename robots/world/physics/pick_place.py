"""SO101 pick and place: a block shall be carried to a marked place of the table and let go there.

Places, block and what counts as placed are those of the package that the scene's facts come from (assets/so101), so that
figures can stand beside each other: carried means lifted by more than 3 cm, placed within 3 cm of the goal, with open
jaws and at rest. An episode is a success, and over, when that has held for half a second; pushing is no carrying.

Rewards count the stages as gym-aloha's do, once per policy step: 1 touched, 2 lifted, 3 lifted over the goal, 4 placed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevla import messages
from edgevla.clock import NS_PER_S
from edgevla.messages import Thing
from edgevla.simulated import Task

from ...profile import load_profile
from ..contract import SUCCESS, Painter, Verdict
from ..follow_cube.kinematics import gripper_percent
from ..grasp import grasp_frame
from .engine import ASSETS, load
from .episodes import Episodes
from .joints import Drive

SCENE = ASSETS / "so101" / "pick_place.xml"
REST_M = 0.02
"""Height of the block's centre on the table."""
BOX_M = ((0.15, 0.30), (-0.10, 0.10))
"""Where block and goal may be, x and y."""
APART_M = 0.08
SPREAD = np.array([6.0, 6.0, 6.0, 6.0, 10.0, 8.0])
"""How far from home an arm may begin, robot units either way."""
CODE = 3
"""Of this task's places in random seeds."""

CARRIED_M = 0.03
NEAR_M = 0.03
OPEN_PERCENT = 50.0
SPEED_M_S = 0.01
HELD_S = 0.5
BESIDE_M = 0.08
"""A block that was set down nearer than this was not lost on the way."""


def place(seed: int, episode: int) -> np.ndarray:
    """float64 (2, 2): x and y of block and goal; the same for the same two numbers."""
    rng = np.random.default_rng([seed, episode, CODE])
    low, high = np.array(BOX_M).T
    while True:
        both = rng.uniform(low, high, (2, 2))
        if np.linalg.norm(both[0] - both[1]) >= APART_M:
            return both


@dataclass(frozen=True)
class Look:
    """What the judge sees at one moment. off_m: of the block from the goal, level. rise_m: above where it stood on the
    table. jaws_percent: how far they are open."""

    off_m: float
    rise_m: float
    speed_m_s: float
    jaws_percent: float
    is_touched: bool

    @property
    def is_placed(self) -> bool:
        """By one that was carried."""
        lies = self.off_m < NEAR_M and self.rise_m < CARRIED_M / 2 and self.speed_m_s < SPEED_M_S
        return lies and self.jaws_percent > OPEN_PERCENT


class PickPlaceJudge:
    """Counts one episode's rewards, once per policy step."""

    def __init__(self, task: Task, at: np.ndarray) -> None:
        self._place = tuple(float(v) for v in at.ravel())
        self._fps, self._n_steps = task.fps, round(task.episode_s * task.fps)
        self._n_held, self._held = round(HELD_S * task.fps), 0
        self.rewards: list[int] = []
        self._was_carried = False
        self._last: Look | None = None
        self._off_m = float(np.linalg.norm(at[0] - at[1]))

    @property
    def is_success(self) -> bool:
        return self._held >= self._n_held

    @property
    def is_over(self) -> bool:
        return self.is_success or len(self.rewards) >= self._n_steps

    @property
    def due_ns(self) -> int:
        """When, since the episode began, it wants to look again."""
        return round((len(self.rewards) + 1) * NS_PER_S / self._fps)

    def see(self, look: Look) -> None:
        self._last, self._off_m = look, look.off_m
        is_lifted = look.rise_m > CARRIED_M
        self._was_carried |= is_lifted
        if self._was_carried and look.is_placed:
            reward = 4
        elif is_lifted:
            reward = 3 if look.off_m < NEAR_M else 2
        else:
            reward = int(look.is_touched)
        self._held = self._held + 1 if reward == 4 else 0
        self.rewards.append(reward)

    def verdict(self) -> Verdict:
        took_s = len(self.rewards) / self._fps if self.is_success else None
        return Verdict(
            self.is_success,
            took_s,
            max(self.rewards, default=0),
            sum(self.rewards),
            self._place,
            SUCCESS if self.is_success else self._failure(),
            {"goal_mm": self._off_m * 1e3},
        )

    def _failure(self) -> str:
        look = self._last
        if look is None or not any(self.rewards):
            return "not reached"
        if not self._was_carried:
            return "not grasped"
        if look.rise_m > CARRIED_M / 2:
            return "not put down"
        if look.off_m < NEAR_M:
            return "not let go"
        return "beside the goal" if look.off_m < BESIDE_M else "dropped"


class PickPlace(Episodes):
    """One table with one SO101."""

    _judge: PickPlaceJudge

    def __init__(self, task: Task, seed: int, episode_s: float | None = None) -> None:
        profile = load_profile("so101")
        super().__init__(
            task, seed, episode_s, load(SCENE), [Drive((joint.motor,)) for joint in profile.joints]
        )
        self._home = np.array([joint.home for joint in profile.joints])
        self._block = self.model.joint("block")
        self._goal = [self.model.joint(f"goal_{axis}").qposadr[0] for axis in "xy"]
        self._is_arm = self.model.geom_contype == self.model.geom("fixed_pad").contype
        self.lay_out()
        self.physics.refresh()

    @property
    def block_pose(self) -> np.ndarray:
        """(7,): centre in metres and quaternion, w first."""
        address = self._block.qposadr[0]
        return self.data.qpos[address : address + 7].copy()

    @property
    def block_yaw(self) -> float:
        """How the block is turned about the vertical, radians; of one that lies on another side, how its sides look."""
        w, x, y, z = self.block_pose[3:]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    @property
    def goal_m(self) -> np.ndarray:
        """(3,): where the block's centre shall come to rest."""
        return np.array([*self.data.qpos[self._goal], REST_M])

    def start(self, episode: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, episode, CODE, 1])
        return self._home + SPREAD * rng.uniform(-1, 1, len(SPREAD))

    def lay_out(self) -> None:
        block, goal = place(self.seed, self.episode)
        self._judge = PickPlaceJudge(self.task, np.array([block, goal]))
        self.put_thing("block", (*block, REST_M, 1, 0, 0, 0))
        self.data.qpos[self._goal] = goal

    def look(self) -> None:
        self._judge.see(self._seen())

    def _seen(self) -> Look:
        block, dof = self.block_pose[:3], self._block.dofadr[0]
        off = block - self.goal_m
        pairs = self.data.contact.geom[: self.data.ncon]
        touching = (pairs == self.model.geom("block").id).any(1) & self._is_arm[pairs].any(1)
        return Look(
            off_m=float(np.hypot(off[0], off[1])),
            rise_m=float(off[2]),
            speed_m_s=float(np.linalg.norm(self.data.qvel[dof : dof + 3])),
            jaws_percent=float(gripper_percent(self.physics.angle_rad[5])),
            is_touched=bool(touching.any()),
        )

    def message(self) -> messages.World:
        return messages.World(
            joint_rad=self.physics.angle_rad.astype("<f4"),
            gripper_m=grasp_frame(self.physics.angle_rad)[0].astype("<f4"),
            objects=(
                Thing("block", self.block_pose[:3].astype("<f4"), self.block_yaw),
                Thing("goal", self.goal_m.astype("<f4"), 0.0),
            ),
            qpos=self.data.qpos.astype("<f4"),
            episode=self.episode,
            sim_ns=self.sim_ns,
        )


def make_world(task: Task, seed: int, episode_s: float | None) -> PickPlace:
    """See `world/contract.py`."""
    return PickPlace(task, seed, episode_s)


def make_painter(task: Task) -> Painter:
    """See `world/contract.py`."""
    from .painter import MujocoPainter  # OpenGL, which servos do not need

    return MujocoPainter(SCENE, task, {})
