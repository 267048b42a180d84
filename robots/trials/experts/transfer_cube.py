"""Transfer cube: the right arm picks the cube up from above and brings it to the middle, the left one takes it.

The right arm grasps with its fingers fore and aft and holds the cube from above; the left one comes level, and its
fingers, left and right, close around the cube and the one finger that is in between. So each is out of the other's way,
and neither has to be exact.

    seen                                        right                       left
    left has the cube                           opens, then goes up         holds it where they met
    right has the cube                          carries it to the middle    comes to it, the nearer the nearer it is
    neither                                     down a funnel on the cube   waits beside the middle
"""

from __future__ import annotations

import numpy as np

from .hands import CLOSED, DOWN, LEVEL, OPEN, Funnel, Hand, ThingPoses, Wish, nearest_turn, share, yaw_rad

MEET_M = np.array([0.0, 0.5, 0.2])
WAIT_M = np.array([-0.12, 0.5, 0.2])
AWAY_M = np.array([0.04, 0.5, 0.3])
GRASP_M = np.array([0.0, 0.0, 0.004])
TAKE_M = np.array([-0.008, 0.0, -0.008])
"""Both grasp with the tips, and the left one a little low, so that the right arm's finger has room in the left's."""
HELD = 0.66
"""Fingers closed on the cube stand at 0.606."""
FORE_AND_AFT = np.pi / 2
HOVER_M = 0.08
FUNNEL = Funnel(HOVER_M, 0.014, 0.012, 0.012, beside_m=(0.01, 0.05), tilt_rad=(0.1, 0.5))


class TransferCube:
    lifted: tuple[str, ...] = ("red_box",)
    noise_rad: float = 0.015

    def wishes(self, seen: ThingPoses) -> tuple[Wish, Wish]:
        cube = seen.things[0, :3]
        turned = nearest_turn(yaw_rad(seen.things[0, 3:]), np.pi / 2)
        if seen.left.has(cube, HELD):
            hold = np.array([MEET_M[0], cube[1], MEET_M[2]]) + TAKE_M
            return Wish(hold, LEVEL, 0.0, CLOSED), self._let_go(seen.right)
        if seen.right.has(cube, HELD):
            return self._take(seen.left, seen.right, cube), self._carry(seen.right, cube)
        return Wish(WAIT_M, LEVEL, 0.0, OPEN), self._pick(seen.right, cube, turned)

    def is_done(self, seen: ThingPoses) -> bool:
        is_away = seen.right.tool_m[2] > AWAY_M[2] - 0.03
        return bool(is_away) and seen.left.has(seen.things[0, :3], HELD)

    def _pick(self, right: Hand, cube: np.ndarray, turned: float) -> Wish:
        return FUNNEL.descend(right, cube + GRASP_M, FORE_AND_AFT + right.waist - turned)

    def _carry(self, right: Hand, cube: np.ndarray) -> Wish:
        """Off the table the cube is turned straight on the way: in the middle the waist is straight as well."""
        low = share(float(cube[2]), 0.15, 0.05)
        return Wish(MEET_M, DOWN, FORE_AND_AFT + right.waist * low, CLOSED)

    def _take(self, left: Hand, right: Hand, cube: np.ndarray) -> Wish:
        ready = share(float(np.linalg.norm(right.tool_m - MEET_M)), 0.05, 0.02)
        off = np.abs(cube + TAKE_M - left.tool_m)
        near = 1.0 + 2 * share(left.open, 0.95, 0.7)
        is_there = off[0] < 0.012 * near and off[1] < 0.005 * near and off[2] < 0.012 * near
        return Wish(WAIT_M + ready * (cube + TAKE_M - WAIT_M), LEVEL, 0.0, CLOSED if is_there else OPEN)

    def _let_go(self, right: Hand) -> Wish:
        free = share(right.open, 0.75, 0.9)
        return Wish(MEET_M + free * (AWAY_M - MEET_M), DOWN, FORE_AND_AFT, OPEN)
