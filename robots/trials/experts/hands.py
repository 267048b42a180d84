"""What an expert of ALOHA's tasks sees, and what it can wish of an arm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import viperx

ARMS = (slice(0, 7), slice(7, 14))
"""Of state and goal: six joints and the gripper of each arm, left first."""
BASES_M = np.array([[-0.469, 0.5, 0.0], [0.469, 0.5, 0.0]])
FACING = np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
"""The right arm faces the left one: half a turn about z."""

OPEN, CLOSED = 0.97, 0.07
"""Fingers, as the state counts them: what the scene's actuators reach. Empty fingers meet at 0.1."""
UP = np.array([0.0, 0.0, 1.0])
DOWN, LEVEL = np.pi / 2, 0.0
"""Pitch."""


@dataclass(frozen=True)
class Wish:
    """Where one arm should be. tool_m: (3,) in the world. open: of the fingers, as the state counts them."""

    tool_m: np.ndarray
    pitch: float
    roll: float
    open: float


@dataclass(frozen=True)
class Hand:
    """arm: 0 left, 1 right. joints: (6,) radians. open: of the fingers, as the state counts them."""

    arm: int
    joints: np.ndarray
    open: float

    @cached_property
    def tool_m(self) -> np.ndarray:
        """(3,) in the world."""
        there: np.ndarray = viperx.tool_m(self.joints) * FACING[self.arm] + BASES_M[self.arm]
        return there

    @property
    def pitch(self) -> float:
        return float(viperx.pitch_rad(self.joints))

    @property
    def roll(self) -> float:
        return float(self.joints[5])

    @property
    def waist(self) -> float:
        return float(self.joints[0])

    def has(self, thing_m: np.ndarray, width: float, within_m: float = 0.03) -> bool:
        """The fingers stand no wider than closed on a thing of that width, which is between them."""
        return self.open < width and bool(np.linalg.norm(thing_m - self.tool_m) < within_m)


@dataclass(frozen=True)
class ThingPoses:
    """things: (n, 7), position and quaternion (w first) of each."""

    left: Hand
    right: Hand
    things: np.ndarray

    @property
    def hands(self) -> tuple[Hand, Hand]:
        """Left, right."""
        return self.left, self.right


def share(value: float, none: float, full: float) -> float:
    """How far `value` has come from `none` to `full`, 0..1."""
    return float(np.clip((value - none) / (full - none), 0.0, 1.0))


def yaw_rad(quaternion: np.ndarray) -> float:
    """How a thing is turned about the vertical; w first."""
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def nearest_turn(yaw: float, symmetry: float) -> float:
    """A thing that looks the same after a turn of `symmetry`: the smallest turn that it looks turned by."""
    return (yaw + symmetry / 2) % symmetry - symmetry / 2


@dataclass(frozen=True)
class Funnel:
    """How exact a hand must be while it comes down.

    off_m, above_m: so near it closes. early_m: fingers that are still closed stay up while they are farther off.
    beside_m, tilt_rad: between these lie none and all of the hover.
    """

    hover_m: float
    off_m: float
    above_m: float
    early_m: float
    beside_m: tuple[float, float]
    tilt_rad: tuple[float, float]

    def descend(self, hand: Hand, grasp_m: np.ndarray, roll: float) -> Wish:
        """The tool comes down as it comes over the thing, upright, turned as the thing is, with open fingers."""
        off = float(np.linalg.norm((grasp_m - hand.tool_m)[:2]))
        above = float(hand.tool_m[2] - grasp_m[2])
        near = 1.0 + share(hand.open, 0.95, 0.7)  # once the fingers close they keep what they have
        is_there = off < self.off_m * near and abs(above) < self.above_m * near
        tilt = abs(hand.pitch - DOWN) + abs(hand.roll - roll)
        is_early = share(hand.open, 0.9, 0.7) if off > self.early_m else 0.0
        hover = self.hover_m * max(share(off, *self.beside_m), share(tilt, *self.tilt_rad), is_early)
        return Wish(grasp_m + hover * UP, DOWN, roll, CLOSED if is_there else OPEN)
