"""Insertion: the right arm picks up the peg, the left one the socket; they put them together in the air.

Both grasp from above across the long side, a little away from the middle so that the hands do not meet. The left arm
only brings the socket; the right one lines the peg up by looking at both, comes nearer the better it is in line, and
goes on until the peg touches the pin inside.
"""

from __future__ import annotations

import numpy as np

from .hands import CLOSED, DOWN, Funnel, Hand, ThingPoses, Wish, nearest_turn, share, yaw_rad

LEFT_MEETS_M = np.array([-0.07, 0.5, 0.2])
"""Where the left tool brings the socket."""
OUTWARDS_M = 0.012
"""How far from the middle of its thing each hand grasps."""
PEG_GRASP_M = np.array([OUTWARDS_M, 0.0, 0.012])
SOCKET_GRASP_M = np.array([-OUTWARDS_M, 0.0, 0.002])
PEG_HELD, SOCKET_HELD = 0.42, 0.70
"""Fingers closed on peg and socket stand at 0.353 and 0.656."""
BEFORE_M, INSIDE_M = 0.145, 0.096
"""From the socket's middle to the peg's: before it, and pressed against the pin (0.1 is where they touch)."""
HOVER_M = 0.08
ALONG = np.array([1.0, 0.0, 0.0])
FUNNEL = Funnel(HOVER_M, 0.01, 0.008, 0.01, beside_m=(0.006, 0.018), tilt_rad=(0.06, 0.3))


class Insertion:
    lifted: tuple[str, ...] = ("red_peg", "socket-1")
    noise_rad: float = 0.006

    def wishes(self, seen: ThingPoses) -> tuple[Wish, Wish]:
        peg, socket = seen.things[0], seen.things[1]
        has_socket = seen.left.has(socket[:3], SOCKET_HELD)
        bring, pick = self._bring, self._pick
        left = bring(seen.left, socket) if has_socket else pick(seen.left, socket, SOCKET_GRASP_M)
        if not seen.right.has(peg[:3], PEG_HELD):
            return left, self._pick(seen.right, peg, PEG_GRASP_M)
        return left, self._join(seen.right, peg, socket, has_socket)

    def is_done(self, seen: ThingPoses) -> bool:
        peg, socket = seen.things[0, :3], seen.things[1, :3]
        return bool(np.linalg.norm(peg - socket) < 0.1) and float(min(peg[2], socket[2])) > 0.1

    def _pick(self, hand: Hand, thing: np.ndarray, grasp_m: np.ndarray) -> Wish:
        turned = nearest_turn(yaw_rad(thing[3:]), np.pi)
        c, s = np.cos(turned), np.sin(turned)
        grasp = thing[:3] + np.array([grasp_m[0] * c, grasp_m[0] * s, grasp_m[2]])
        return FUNNEL.descend(hand, grasp, hand.waist - turned)

    def _bring(self, left: Hand, socket: np.ndarray) -> Wish:
        return Wish(LEFT_MEETS_M, DOWN, left.waist + _straighten(left, socket), CLOSED)

    def _join(self, right: Hand, peg: np.ndarray, socket: np.ndarray, has_socket: bool) -> Wish:
        """The peg is led, not the hand: how it lies in the fingers is seen."""
        meets = LEFT_MEETS_M - SOCKET_GRASP_M
        ready = share(float(np.linalg.norm(socket[:3] - meets)), 0.06, 0.03) if has_socket else 0.0
        beside = float(np.linalg.norm((peg - socket)[1:3]))
        bent = abs(nearest_turn(yaw_rad(peg[3:]) - yaw_rad(socket[3:]), np.pi))
        in_line = 1.0 - max(share(beside, 0.005, 0.014), share(bent, 0.06, 0.2))
        if float(peg[0] - socket[0]) < 0.118:  # its tip is inside: the walls lead it
            in_line = max(in_line, 0.6)
        waits = meets + BEFORE_M * ALONG
        goes = socket[:3] + (BEFORE_M + in_line * (INSIDE_M - BEFORE_M)) * ALONG
        wanted = waits + ready * (goes - waits)
        return Wish(right.tool_m + (wanted - peg[:3]), DOWN, right.waist + _straighten(right, peg), CLOSED)


def _straighten(hand: Hand, thing: np.ndarray) -> float:
    """By how much to turn the hand against its waist so that what it holds comes to lie along x."""
    turned = nearest_turn(yaw_rad(thing[3:]), np.pi)
    return float(np.clip(hand.roll - hand.waist + turned, -0.3, 0.3)) * share(float(thing[2]), 0.04, 0.1)
