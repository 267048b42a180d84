"""The scripted expert of the SO101's pick and place in physics.

It remembers nothing. What the arm should do follows from what can be seen: where block, goal and jaws are and how far
the jaws stand open (closed on the block they stand as wide as it is):

    block lies at the goal            open, then go up
    block is held                     lift, carry, lower: the height follows the distance that is left
    block is between the open jaws    close
    else                              above the block, then down over it with open jaws

Between those it moves in funnels: far off high, near low. Each step leads the arm a little from where it is measured
towards where it should be, so an arm that was disturbed, or has lost the block, comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevla.simulated import Task

from ...world.follow_cube.kinematics import radians, robot_units
from ...world.grasp import grasp_frame, grasp_posture
from ...world.physics.pick_place import PickPlace
from .contract import Manner
from .hands import nearest_turn, share

LEAD_M = 0.035
LEAD_RAD = 0.14
LEAD_PERCENT = 30.0
"""How far ahead of the measured arm the goal is, at most: of the grasp point, a joint, the jaws. The servos follow
by some 0.1 s, which makes a speed of it."""

OPEN, SQUEEZE = 80.0, 26.0
"""Percent. Closed on the block the jaws stand at 33, so they press with half of their force: all that the profile
leaves them."""
HELD = 38.0
"""Jaws that are closed on the block stand below this."""
FREE = 70.0
"""Jaws wider than this can be moved up and down past the block."""

UP = np.array([0.0, 0.0, 1.0])
GRASP_UP_M = 0.006
"""The pads' middle above the block's."""
CLEAR_M = 0.008
"""Between the fixed jaw and the block while the jaws are open; it goes as they close."""
HOVER_M = 0.07
CARRY_M = 0.06
SET_DOWN_M = 0.002
LIES_M = 0.006
"""A block not higher than this above its rest may be let go."""
AT_GOAL_M = 0.008
STAYS_M = 0.02
"""So near to the goal a block is let go; and so near one that stands free is left alone."""
NOISE_RAD = 0.02
NOISE_CORRELATION = 0.5
N_STEPS, N_AFTER = 240, 15
AWAY_M = 0.05
"""So far above the block the jaws have left it."""
ROOM_M = np.array([0.012, 0.012, 0.014])
"""By so much a block that is between the jaws may be off, in the gripper's frame."""


@dataclass(frozen=True)
class Sight:
    """What the expert sees. here_m: grasp point (3,). turned: the gripper's axes (3, 3). jaws: percent.

    block_m: centre (3,). yaw: of the block's sides, within an eighth of a turn. to_goal_m: (3,) from block to goal.
    """

    here_m: np.ndarray
    turned: np.ndarray
    jaws: float
    block_m: np.ndarray
    yaw: float
    to_goal_m: np.ndarray

    @property
    def off_goal_m(self) -> float:
        """How far the block is from the goal's middle, on the table."""
        return float(np.hypot(self.to_goal_m[0], self.to_goal_m[1]))

    @property
    def rise_m(self) -> float:
        return float(-self.to_goal_m[2])

    @property
    def grasp_m(self) -> np.ndarray:
        """Where the grasp point should be for the jaws to have the block between them as they stand now."""
        clear = CLEAR_M * share(self.jaws, HELD, FREE)
        closing = np.array([np.sin(self.yaw), -np.cos(self.yaw), 0.0])
        return self.block_m + GRASP_UP_M * UP - clear * closing

    @property
    def is_between(self) -> bool:
        """Open jaws must stand well for that; once they close they keep what they have."""
        off = self.turned.T @ (self.grasp_m - self.here_m)
        patience = 1.0 + share(self.jaws, FREE, HELD)
        return bool((np.abs(off) < ROOM_M * patience).all())

    @property
    def is_held(self) -> bool:
        """Whether the block is between the jaws and they are closed on it."""
        return self.is_between and self.jaws < HELD

    @property
    def is_done(self) -> bool:
        """Nothing is left to do for the block but to let go of it."""
        near = AT_GOAL_M if self.is_held else STAYS_M
        return self.rise_m < LIES_M and self.off_goal_m < near


@dataclass(frozen=True)
class GraspWish:
    """Where the grasp point should be, metres (3,), and how wide the jaws, percent."""

    point_m: np.ndarray
    jaws: float


def wish(sight: Sight) -> GraspWish:
    """What to do, from what is seen."""
    if sight.is_done:
        return let_go(sight)
    if sight.is_held:
        return carry(sight)
    if sight.is_between:
        return GraspWish(sight.grasp_m, SQUEEZE)
    return approach(sight)


def let_go(sight: Sight) -> GraspWish:
    """Open where it is, then straight up."""
    up = HOVER_M * share(sight.jaws, FREE - 10, FREE)
    return GraspWish(sight.grasp_m + up * UP, OPEN)


def carry(sight: Sight) -> GraspWish:
    """Up first, then across, and down over the goal."""
    height = SET_DOWN_M + CARRY_M * share(sight.off_goal_m, AT_GOAL_M - 0.002, 0.03)
    freely = share(sight.rise_m, 0.012, 0.04) if sight.off_goal_m > 0.015 else 1.0
    way = np.array([*freely * sight.to_goal_m[:2], height - sight.rise_m])
    return GraspWish(sight.here_m + way, SQUEEZE)


def approach(sight: Sight) -> GraspWish:
    """High while the jaws are off, closed or askew; not across the table while low."""
    way = sight.grasp_m - sight.here_m
    off = float(np.hypot(way[0], way[1]))
    closing = np.array([np.sin(sight.yaw), -np.cos(sight.yaw), 0.0])
    askew = 1.0 - float(sight.turned[:, 0] @ closing)
    unready = max(share(off, 0.007, 0.04), share(sight.jaws, FREE, FREE - 15), share(askew, 0.01, 0.1))
    freely = share(-way[2], 0.02, 0.05) if off > 0.015 else 1.0
    way[:2] *= freely
    return GraspWish(sight.here_m + way + HOVER_M * unready * UP, OPEN)


def step_towards(wanted: GraspWish, sight: Sight, state: np.ndarray) -> np.ndarray:
    """(6,) robot units: a little way from the measured arm towards `wanted`."""
    way = wanted.point_m - sight.here_m
    point = sight.here_m + way * min(1.0, LEAD_M / max(float(np.linalg.norm(way)), 1e-9))
    joints = radians(state)
    lead = grasp_posture(point, sight.yaw)[:5] - joints[:5]
    lead *= min(1.0, LEAD_RAD / max(float(np.abs(lead).max()), 1e-9))
    goal = robot_units(np.append(joints[:5] + lead, 0.0))
    goal[5] = state[5] + np.clip(wanted.jaws - state[5], -LEAD_PERCENT, LEAD_PERCENT)
    return goal


def see(world: PickPlace, state: np.ndarray) -> Sight:
    here_m, turned = grasp_frame(radians(state))
    block_m = world.block_pose[:3]
    yaw = nearest_turn(world.block_yaw, np.pi / 2)
    return Sight(here_m, turned, float(state[5]), block_m, yaw, world.goal_m - block_m)


class PickPlaceExpert:
    """See the module."""

    @property
    def manner(self) -> Manner:
        noise = np.append(np.rad2deg(np.full(5, NOISE_RAD)), 0.0)
        return Manner(noise, N_STEPS, NOISE_CORRELATION, is_graded=True, n_after=N_AFTER)

    def goal(self, world: PickPlace, state: np.ndarray) -> np.ndarray:
        sight = see(world, np.asarray(state, float))
        return step_towards(wish(sight), sight, state)

    def is_done(self, world: PickPlace, state: np.ndarray) -> bool:
        """The block lies at the goal and the jaws have left it."""
        sight = see(world, np.asarray(state, float))
        return sight.is_done and sight.here_m[2] - sight.grasp_m[2] > AWAY_M

    def went_well(self, world: PickPlace) -> bool:
        return world.verdict().is_success


def make_expert(task: Task) -> PickPlaceExpert:
    """See `experts/contract.py`."""
    return PickPlaceExpert()
