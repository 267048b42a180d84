"""The scripted experts of ALOHA's tasks in physics.

No expert here remembers anything. What an arm should do follows from what can be seen: where the things are, where the
tools are, and how far the fingers stand open (closed on a thing they stand as wide as it is). Each step moves the
goal a little from where the arm is measured towards where it should be, so an arm that was disturbed comes back.

What a task is lives in `transfer_cube` and `insertion`: two wishes from what is seen. Here wishes become joint goals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgevla.simulated import Task

from ...profile import GripperMap, load_profile
from ...units import finger_rad
from . import viperx
from .contract import Manner
from .hands import ARMS, BASES_M, FACING, Hand, ThingPoses, Wish

LEAD_M = 0.012
"""How far ahead of the tool the goal is, at most; the servos turn it into a speed of about a fifth of a metre/s."""
LEAD_PITCH_RAD = 0.06
LEAD_RAD = np.array([0.12, 0.12, 0.12, 0.12, 0.06, 0.04])
"""The last two are light and quick: more would outrun their servos."""
LEAD_OPEN = 0.35
"""Fingers that shall open are led as well: a first goal far away would be approached slowly (see `safety`)."""
NOISE_CORRELATION = 0.5
N_AFTER = 10


class Script(Protocol):
    """One task. lifted: names of the geoms that must not lie on the table at the end. noise_rad: spread of
    the joints' disturbance, as much as the task forgives."""

    lifted: tuple[str, ...]
    noise_rad: float

    def wishes(self, seen: ThingPoses) -> tuple[Wish, Wish]:
        """Of the left and the right arm."""
        ...

    def is_done(self, seen: ThingPoses) -> bool: ...


@dataclass(frozen=True)
class AlohaExpert:
    script: Script
    gripper: GripperMap

    @property
    def manner(self) -> Manner:
        one = np.append(np.full(6, self.script.noise_rad), 0.0)
        return Manner(np.tile(one, 2), 400, NOISE_CORRELATION, is_graded=True, n_after=N_AFTER)

    def goal(self, world: Any, state: np.ndarray) -> np.ndarray:
        return self.goal_of(state, world.message().qpos[16:])

    def goal_of(self, state: np.ndarray, things: np.ndarray) -> np.ndarray:
        """(14,) robot units. state: (14,). things: (7,) or (14,), position and quaternion of each."""
        seen = _seen(state, things)
        goals = [
            self._step(wish, hand) for wish, hand in zip(self.script.wishes(seen), seen.hands, strict=True)
        ]
        return np.concatenate(goals)

    def is_done(self, world: Any, state: np.ndarray) -> bool:
        return self.script.is_done(_seen(state, world.message().qpos[16:]))

    def went_well(self, world: Any) -> bool:
        touching = world.touching()
        return world.verdict().is_success and not any(
            (name, "table") in touching for name in self.script.lifted
        )

    def _step(self, wish: Wish, hand: Hand) -> np.ndarray:
        """(7,): a little way from where the arm is towards its wish."""
        here = viperx.tool_m(hand.joints)
        there = (wish.tool_m - BASES_M[hand.arm]) * FACING[hand.arm]
        way = there - here
        point = here + way * min(1.0, LEAD_M / max(float(np.linalg.norm(way)), 1e-9))
        pitch = hand.pitch + np.clip(wish.pitch - hand.pitch, -LEAD_PITCH_RAD, LEAD_PITCH_RAD)
        wanted = viperx.joints_at(point, pitch, wish.roll)
        joints = hand.joints + np.clip(wanted - hand.joints, -LEAD_RAD, LEAD_RAD)
        return np.append(joints, self._motor(min(wish.open, hand.open + LEAD_OPEN)))

    def _motor(self, is_open: float) -> float:
        """What is 0..1 of the finger's way in the state is another 0..1, of the motor's, in the action."""
        g = self.gripper
        finger = g.closed_m + is_open * (g.open_m - g.closed_m)
        return (finger_rad(finger, g) - g.closed_rad) / (g.open_rad - g.closed_rad)


def _seen(state: np.ndarray, things: np.ndarray) -> ThingPoses:
    state, things = np.asarray(state, float), np.asarray(things, float)
    left, right = (Hand(k, state[arm][:6], float(state[arm][6])) for k, arm in enumerate(ARMS))
    return ThingPoses(left, right, things.reshape(-1, 7))


def make_expert(task: Task) -> AlohaExpert:
    """See `experts/contract.py`."""
    from .insertion import Insertion
    from .transfer_cube import TransferCube

    scripts: dict[str, Script] = {"aloha/transfer_cube": TransferCube(), "aloha/insertion": Insertion()}
    gripper = next(joint.gripper for joint in load_profile("aloha").joints if joint.gripper is not None)
    return AlohaExpert(scripts[task.name], gripper)
