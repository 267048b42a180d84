"""Postures in which the SO101 holds its jaws over a place: from above as far as its wrist turns, and turned as asked.

`kinematics.inverse` answers where the tool point is; a grasp also says which way the jaws point and close. The answer
is closed: pan and roll first, then the arm as two links in the plane that the pan chose,

    shoulder ---- elbow ---- wrist          jaws straight down: the wrist stands above the place
                       |                    wrist at its end:   elbow .. jaws is one stiff link, and the jaws lean
                      jaws                                      outwards

with the elbow up. So one grasp has one answer, and neighbours have neighbouring ones, which is what makes
demonstrations consistent. Everything is vectorised over leading axes.
"""

from __future__ import annotations

import numpy as np

from .follow_cube.kinematics import LIMITS_RAD, POSITION_M, frames

GRASP_M = np.array((0.0185, -0.0002, -0.0972))
"""Middle between the pads on the fingertips when they are 4 cm apart, in the gripper's frame (x: to the moving jaw)."""
WRIST_END_RAD = np.deg2rad(93.0)
"""Of wrist_flex: two degrees before its end."""
N_ROUNDS = 4
"""The way from the roll axis to the grasp point depends on how the jaws lean, which depends on where the axis is."""


def _in_plane(point_m: np.ndarray) -> np.ndarray:
    """Forward and up (2,) of a point (3,) of the arm at zero, where its plane is y = 0."""
    return point_m[[0, 2]]


_ORIGINS, _TURNS = frames(np.zeros(6))
_SHOULDER = _in_plane(_ORIGINS[1]) - np.array([POSITION_M[0, 0], 0.0])
_UPPER = _in_plane(_ORIGINS[2] - _ORIGINS[1])
_LOWER = _in_plane(_ORIGINS[3] - _ORIGINS[2])
_TWIST = float(np.arctan2(-_TURNS[4][1, 0], _TURNS[4][2, 0]))
"""By so much the jaws of a level hand at zero do not close straight upwards."""
_HAND = np.array([_ORIGINS[4][0] - _ORIGINS[3][0] - GRASP_M[2], 0.0])
"""From the wrist along the roll axis to the height of the grasp point; level at zero."""


def grasp_frame(joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grasp point (..., 3) in metres and the gripper's axes as columns (..., 3, 3): x closes, z points back."""
    origins, turns = frames(joint_rad)
    return origins[..., -1, :] + turns[..., -1, :, :] @ GRASP_M, turns[..., -1, :, :]


def grasp_posture(target_m: np.ndarray, yaw: np.ndarray | float = 0.0) -> np.ndarray:
    """Joint angles (..., 6) in radians with the grasp point at `target_m` (..., 3) and the jaws closing along y.

    yaw (...): the direction in which the jaws close is turned by so much, radians about z. The moving jaw is on the
    right: the other way round the wrist's camera would look from the arm's side. The gripper's angle is 0.
    Out of reach it stretches as far as it can.
    """
    target_m = np.asarray(target_m, float)
    yaw = np.broadcast_to(np.asarray(yaw, float), target_m.shape[:-1])
    across = np.stack((np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)), axis=-1)
    back = np.broadcast_to([0.0, 0.0, 1.0], target_m.shape)
    joints = np.zeros((*target_m.shape[:-1], 6))
    for _ in range(N_ROUNDS):
        closing = np.cross(across, back)
        closing /= np.linalg.norm(closing, axis=-1, keepdims=True)
        axis_m = target_m - GRASP_M[0] * closing - GRASP_M[1] * across
        heading = np.arctan2(axis_m[..., 1], axis_m[..., 0] - POSITION_M[0, 0])
        radius = np.hypot(axis_m[..., 0] - POSITION_M[0, 0], axis_m[..., 1])
        joints[..., 1:4] = _arm(np.stack((radius, axis_m[..., 2]), axis=-1) - _SHOULDER)
        pitch = joints[..., 1:4].sum(-1)
        ahead = -np.cos(pitch)
        back = np.stack((ahead * np.cos(heading), ahead * np.sin(heading), np.sin(pitch)), axis=-1)
    joints[..., 0] = -heading  # the pan axis points down
    sideways = np.stack((np.sin(heading), -np.cos(heading), np.zeros_like(heading)), axis=-1)
    upwards = np.cross(back, sideways)
    joints[..., 4] = _TWIST - np.arctan2((closing * sideways).sum(-1), (closing * upwards).sum(-1))
    return np.clip(joints, *LIMITS_RAD.T)


def _arm(reach: np.ndarray) -> np.ndarray:
    """Lift, elbow and wrist (..., 3) that bring the roll axis `reach` (..., 2: forward, up) from the shoulder.

    Straight down unless the wrist would have to turn beyond its end; then with the wrist there.
    """
    down, is_near = _two_links(reach + _HAND[::-1], _LOWER)
    down = np.concatenate((down, np.pi / 2 - down.sum(-1, keepdims=True)), axis=-1)
    stiff, _ = _two_links(
        reach, _LOWER + _HAND[0] * np.array([np.cos(WRIST_END_RAD), -np.sin(WRIST_END_RAD)])
    )
    stiff = np.concatenate((stiff, np.full_like(stiff[..., :1], WRIST_END_RAD)), axis=-1)
    return np.where((is_near & (down[..., 2] <= WRIST_END_RAD))[..., None], down, stiff)


def _two_links(end: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lift and elbow (..., 2), positive downwards, that bring the end of a `second` link to `end`; and whether they do.

    second: (2,) from the elbow to its end with both joints at zero.
    """
    upper, lower = np.hypot(*_UPPER), np.hypot(*second)
    distance = np.hypot(end[..., 0], end[..., 1])
    cosine = (upper**2 + distance**2 - lower**2) / (2 * upper * np.maximum(distance, 1e-9))
    elevation = np.arctan2(end[..., 1], end[..., 0]) + np.arccos(np.clip(cosine, -1, 1))
    rest = end - upper * np.stack((np.cos(elevation), np.sin(elevation)), axis=-1)
    lift = np.arctan2(_UPPER[1], _UPPER[0]) - elevation
    both = np.arctan2(second[1], second[0]) - np.arctan2(rest[..., 1], rest[..., 0])
    return np.stack((lift, both - lift), axis=-1), np.abs(cosine) <= 1
