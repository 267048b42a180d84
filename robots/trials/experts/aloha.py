"""The scripted experts of ALOHA's two tasks in physics: transfer cube and insertion.

No expert here remembers anything. What an arm should do follows from what can be seen: where the things are, where the
tools are, and how far the fingers stand open (closed on a thing they stand as wide as it is). Each step moves the
goal a little from where the arm is measured towards where it should be, so an arm that was disturbed comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import viperx

LEFT, RIGHT = slice(0, 7), slice(7, 14)
"""Of state and goal: six joints and the gripper of each arm."""
BASES_M = np.array([[-0.469, 0.5, 0.0], [0.469, 0.5, 0.0]])
FACING = np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
"""The right arm faces the left one: half a turn about z."""
LEAD_M = 0.012
"""How far ahead of the tool the goal is, at most; the servos turn it into a speed of about a third of a metre/s."""
LEAD_RAD = np.array([0.12, 0.12, 0.12, 0.12, 0.06, 0.04])
LEAD_PITCH = 0.06

# Finger positions, as the state counts them: 0 closed, 1 open; empty fingers meet at 0.1.
OPEN, CLOSED = 0.97, 0.07


@dataclass(frozen=True)
class Wish:
    """Where one arm should be. tool_m: (3,) in the world; gripper: 0..1."""

    tool_m: np.ndarray
    pitch: float
    roll: float
    gripper: float


def tools_m(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both tools (3,) in the world. state: (14,)."""
    left, right = (viperx.tool_m(state[arm]) * FACING[k] + BASES_M[k] for k, arm in enumerate((LEFT, RIGHT)))
    return left, right


def step_towards(wish: Wish, joints: np.ndarray, arm: int) -> np.ndarray:
    """(7,) goal of one arm: a little way from its measured joints (7,) towards `wish`. arm: 0 left, 1 right."""
    here = viperx.tool_m(joints)
    there = (wish.tool_m - BASES_M[arm]) * FACING[arm]
    way = there - here
    point = here + way * min(1.0, LEAD_M / max(np.linalg.norm(way), 1e-9))
    pitch = viperx.pitch_rad(joints)
    pitch = pitch + np.clip(wish.pitch - pitch, -LEAD_PITCH, LEAD_PITCH)
    wanted = viperx.joints_at(point, pitch, wish.roll)
    step = np.clip(wanted - joints[:6], -LEAD_RAD, LEAD_RAD)
    return np.append(joints[:6] + step, wish.gripper)


def share(value: float, none: float, full: float) -> float:
    """How far `value` has come from `none` to `full`, 0..1."""
    return float(np.clip((value - none) / (full - none), 0.0, 1.0))


MEET_M = np.array([0.0, 0.5, 0.2])
DOWN, LEVEL = np.pi / 2, 0.0
GRASP_M = 0.004
"""The tool grasps the cube so much above its middle."""
TAKE_M = np.array([-0.008, 0.0, -0.008])
"""The left tool takes the cube with the tips, a little low, for the right arm's finger to have room."""
WAIT_M = np.array([-0.12, 0.5, 0.2])
AWAY_M = np.array([0.02, 0.5, 0.34])
HELD = 0.66
"""Fingers closed on the cube stand at 0.606."""


def yaw_rad(quaternion: np.ndarray) -> float:
    """How a thing is turned about the vertical; w first."""
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def quarter(yaw: float) -> float:
    """A square thing looks the same after a quarter turn: within an eighth of a turn of 0."""
    return (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4


class TransferCube:
    """The right arm picks the cube up from above, fingers fore and aft, and brings it to the middle; the left one takes
    it from the side, level, around the finger that is in between."""

    def goal(self, state: np.ndarray, things: np.ndarray) -> np.ndarray:
        """(14,) goal. state: (14,); things: (7,) pose of the cube."""
        left, right = tools_m(state)
        cube = things[:3]
        turned = quarter(yaw_rad(things[3:7]))
        wishes = self.left(state, left, right, cube), self.right(state, left, right, cube, turned)
        return np.concatenate([step_towards(w, state[a], k) for k, (w, a) in enumerate(zip(wishes, (LEFT, RIGHT)))])

    def _left_has(self, state: np.ndarray, left: np.ndarray, cube: np.ndarray) -> bool:
        return bool(np.linalg.norm(cube - left) < 0.03) and state[6] < HELD

    def _right_has(self, state: np.ndarray, right: np.ndarray, cube: np.ndarray) -> bool:
        return bool(np.linalg.norm(cube - right) < 0.03) and state[13] < HELD

    def right(self, state: np.ndarray, left: np.ndarray, right: np.ndarray, cube: np.ndarray, turned: float) -> Wish:
        if self._left_has(state, left, cube):
            free = share(state[13], 0.75, 0.9)
            return Wish(MEET_M + free * (AWAY_M - MEET_M), DOWN, np.pi / 2, OPEN)
        if self._right_has(state, right, cube):
            return Wish(MEET_M, DOWN, np.pi / 2 + state[7] * share(cube[2], 0.15, 0.05), CLOSED)
        grasp = cube + [0, 0, GRASP_M]
        roll = np.pi / 2 + state[7] - turned
        off = np.linalg.norm((grasp - right)[:2])
        near = 1.0 + share(state[13], 0.95, 0.7)  # once the fingers close they keep what they have
        is_there = off < 0.014 * near and abs(right[2] - grasp[2]) < 0.012 * near
        # A funnel: the tool comes down as it comes over the cube, upright, with open fingers.
        tilt = abs(viperx.pitch_rad(state[RIGHT]) - DOWN) + abs(state[12] - roll)
        unready = max(share(off, 0.008, 0.05), share(tilt, 0.1, 0.5))
        if off > 0.012:
            unready = max(unready, share(state[13], 0.9, 0.7))
        return Wish(grasp + [0, 0, 0.08 * unready], DOWN, roll, CLOSED if is_there else OPEN)

    def left(self, state: np.ndarray, left: np.ndarray, right: np.ndarray, cube: np.ndarray) -> Wish:
        if self._left_has(state, left, cube):
            return Wish(np.array([MEET_M[0], cube[1], MEET_M[2]]) + TAKE_M, LEVEL, 0.0, CLOSED)
        if not self._right_has(state, right, cube):
            return Wish(WAIT_M, LEVEL, 0.0, OPEN)
        ready = share(np.linalg.norm(right - MEET_M), 0.05, 0.02)
        off = np.abs(cube + TAKE_M - left)
        near = 1.0 + 2 * share(state[6], 0.95, 0.7)
        is_there = off[0] < 0.012 * near and off[1] < 0.005 * near and off[2] < 0.012 * near
        return Wish(WAIT_M + ready * (cube + TAKE_M - WAIT_M), LEVEL, 0.0, CLOSED if is_there else OPEN)
