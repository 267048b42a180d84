"""gym-aloha's two tasks: the right arm takes the cube and hands it to the left; peg and socket are put together.

Scenes, places, start pose, time and rewards are gym-aloha's (see assets/aloha): the reward 0 to 4 is read once per
policy step from who touches what, and 4 is success. What differs is who moves the arms: emulated servos, see `joints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevla import messages
from edgevla.clock import NS_PER_S
from edgevla.messages import Thing
from edgevla.simulated import Task

from ...profile import Profile, load_profile
from ...units import finger_rad
from ..contract import SUCCESS, Painter, Verdict
from .engine import ASSETS, load
from .episodes import Episodes
from .joints import Drive

START_ARM_RAD = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
START_FINGER_M = 0.02239
HEIGHT_M = 0.05
"""Of a thing's centre when an episode begins; it falls on the table."""
FINGER_FULL_FORCE_N = 43.0
"""Per finger. gym-aloha's grippers push with at most 7.2 N; that is what the profile's current limit leaves of this."""
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
SIDES = ("left", "right")
REAL_CAMERAS = {
    "cam_high": "top", "cam_low": "front_close", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist",
}  # fmt: skip
"""A camera of the robot's profile -> the one of the scene that stands for it."""
Box = tuple[tuple[float, float], tuple[float, float]]
"""Ranges of x and y, metres."""


@dataclass(frozen=True)
class AlohaScene:
    """file: below the assets. things: free bodies in the order of qpos, with where they begin. code: part of the place's
    random seed."""

    file: str
    things: Mapping[str, Box]
    code: int


SCENES = {
    "aloha/transfer_cube": AlohaScene(
        "bimanual_viperx_transfer_cube.xml", {"box": ((0.0, 0.2), (0.4, 0.6))}, 1
    ),
    "aloha/insertion": AlohaScene(
        "bimanual_viperx_insertion.xml",
        {"peg": ((0.1, 0.2), (0.4, 0.6)), "socket": ((-0.2, -0.1), (0.4, 0.6))},
        2,
    ),
}


def place(task: str, seed: int, episode: int) -> np.ndarray:
    """float64 (things, 2): x and y where they lie when the episode begins; the same for the same three numbers."""
    rng = np.random.default_rng([seed, episode, SCENES[task].code])
    ranges = np.array(list(SCENES[task].things.values()))
    return rng.uniform(ranges[..., 0], ranges[..., 1])


def drives(profile: Profile) -> list[Drive]:
    """One per joint of the profile: six of each arm and its gripper, left first."""
    found = []
    for joint in profile.joints:
        side, _, name = joint.name.partition("_")
        arm = f"vx300s_{side}"
        if joint.gripper is not None:
            fingers = (f"{arm}/left_finger", f"{arm}/right_finger")
            found.append(Drive(fingers, (1, -1), FINGER_FULL_FORCE_N, joint.gripper))
        else:
            found.append(Drive((f"{arm}/{name}",)))
    return found


Touching = set[tuple[str, str]]
FINGER = {side: f"vx300s_{side}/10_{side}_gripper_finger" for side in SIDES}
SOCKET = ("socket-1", "socket-2", "socket-3", "socket-4")


def transfer_reward(touching: Touching) -> int:
    """1 touched by the right gripper, 2 lifted, 3 touched by the left, 4 held by it."""
    on_table = ("red_box", "table") in touching
    if ("red_box", FINGER["left"]) in touching:
        return 3 if on_table else 4
    if ("red_box", FINGER["right"]) in touching:
        return 1 if on_table else 2
    return 0


def insertion_reward(touching: Touching) -> int:
    """1 both touched, 2 both lifted, 3 peg and socket touch each other in the air, 4 the peg touches the pin inside."""
    in_air = ("red_peg", "table") not in touching and not any((part, "table") in touching for part in SOCKET)
    if ("red_peg", "pin") in touching:
        return 4
    if in_air and any(("red_peg", part) in touching for part in SOCKET):
        return 3
    left = any((part, FINGER["left"]) in touching for part in SOCKET)
    if left and ("red_peg", FINGER["right"]) in touching:
        return 2 if in_air else 1
    return 0


@dataclass(frozen=True)
class Rules:
    """reward: of who touches whom. lies: which pairs mean that a thing lies on the table.

    failures: by the highest reward; what was lifted and lies at the end was dropped.
    """

    reward: Any
    lies: Touching
    failures: tuple[str, str, str, str]


RULES = {
    "aloha/transfer_cube": Rules(
        transfer_reward,
        {("red_box", "table")},
        ("not reached", "not grasped", "not handed over", "not handed over"),
    ),
    "aloha/insertion": Rules(
        insertion_reward,
        {("red_peg", "table"), *((part, "table") for part in SOCKET)},
        ("not reached", "not grasped", "not brought together", "not inserted"),
    ),
}
BEST = 4


class AlohaJudge:
    """Counts one episode's rewards, once per policy step."""

    def __init__(self, task: Task, rules: Rules, at: np.ndarray) -> None:
        self._rules, self._place = rules, tuple(float(v) for v in at.ravel())
        self._step_ns = round(NS_PER_S / task.fps)
        self._n_steps = round(task.episode_s * task.fps)
        self.rewards: list[int] = []
        self._is_dropped = False

    @property
    def is_over(self) -> bool:
        """At the first success, as gym-aloha ends it, or when all steps are done."""
        return len(self.rewards) >= self._n_steps or BEST in self.rewards[-1:]

    @property
    def due_ns(self) -> int:
        """When, since the episode began, it wants to look again."""
        return (len(self.rewards) + 1) * self._step_ns

    def see(self, touching: Touching) -> None:
        self.rewards.append(self._rules.reward(touching))
        self._is_dropped = max(self.rewards) >= 2 and bool(self._rules.lies & touching)

    def verdict(self) -> Verdict:
        best = max(self.rewards, default=0)
        is_success = best == BEST
        took_s = len(self.rewards) * self._step_ns / NS_PER_S if is_success else None
        failure = "dropped" if self._is_dropped else self._rules.failures[min(best, 3)]
        outcome = SUCCESS if is_success else failure
        return Verdict(is_success, took_s, best, sum(self.rewards), self._place, outcome)


class AlohaWorld(Episodes):
    """One table with two arms."""

    _judge: AlohaJudge

    def __init__(self, task: Task, seed: int, episode_s: float | None = None) -> None:
        self._scene = SCENES[task.name]
        profile = load_profile("aloha")
        super().__init__(task, seed, episode_s, load(ASSETS / "aloha" / self._scene.file), drives(profile))
        self._gripper = next(joint.gripper for joint in profile.joints if joint.gripper is not None)
        self._names = [self.model.geom(k).name for k in range(self.model.ngeom)]
        self.lay_out()
        self.physics.refresh()

    def start(self, episode: int) -> np.ndarray:
        g = self._gripper
        opened = (finger_rad(START_FINGER_M, g) - g.closed_rad) / (g.open_rad - g.closed_rad)
        return np.array([*START_ARM_RAD, opened] * len(SIDES))

    def lay_out(self) -> None:
        at = place(self.task.name, self.seed, self.episode)
        self._judge = AlohaJudge(self.task, RULES[self.task.name], at)
        for name, (x, y) in zip(self._scene.things, at, strict=True):
            self.put_thing(name, (x, y, HEIGHT_M, 1, 0, 0, 0))

    def look(self) -> None:
        self._judge.see(self.touching())

    def touching(self) -> Touching:
        """Pairs of geoms in contact, by name, in MuJoCo's order."""
        pairs = self.data.contact.geom[: self.data.ncon].tolist()
        return {(self._names[a], self._names[b]) for a, b in pairs}

    def message(self) -> messages.World:
        things = []
        for name in self._scene.things:
            body = self.model.body(name).id
            w, x, y, z = self.data.xquat[body]
            yaw = float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
            things.append(Thing(name, self.data.xpos[body].astype("<f4"), yaw))
        tools = [self.data.body(f"vx300s_{side}/camera_focus").xpos for side in SIDES]
        return messages.World(
            joint_rad=self.physics.angle_rad.astype("<f4"),
            gripper_m=np.concatenate(tools).astype("<f4"),
            objects=tuple(things),
            qpos=self.data.qpos.astype("<f4"),
            episode=self.episode,
            sim_ns=self.sim_ns,
        )


def make_world(task: Task, seed: int, episode_s: float | None) -> AlohaWorld:
    """See `world/contract.py`."""
    return AlohaWorld(task, seed, episode_s)


def make_painter(task: Task) -> Painter:
    """See `world/contract.py`."""
    from .painter import MujocoPainter  # OpenGL, which servos do not need

    return MujocoPainter(ASSETS / "aloha" / SCENES[task.name].file, task, REAL_CAMERAS)
