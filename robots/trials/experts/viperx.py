"""Where the tool of one ViperX 300s is, and the joints that bring it somewhere: closed formulas, so one answer each.

The tool is the point between the finger tips. The experts keep the forearm from rolling, which leaves five numbers to
choose: where the tool is, how far it points down (pitch), and how the fingers are turned about its axis (roll). Lengths
are those of the ALOHA scenes. Frame: the arm's base, x forward, z up; metres and radians; last axis is the vector.
"""

from __future__ import annotations

import numpy as np

SHOULDER_M = 0.12705
"""Height of the shoulder's axis."""
UPPER_M = np.hypot(0.05955, 0.3)
UPPER_TILT_RAD = np.arctan2(0.05955, 0.3)
"""The upper arm's line leans forward by so much when the shoulder stands at 0."""
FOREARM_M = 0.3
WRIST_M = 0.069744
"""From the wrist's axis to the frame of the gripper."""
TIP_M = 0.135
"""From the gripper's frame to the middle of what the fingers grasp; their tips end at 0.154."""
HAND_M = WRIST_M + TIP_M


def tool_m(joints: np.ndarray) -> np.ndarray:
    """(..., 3): where the tool is. joints: (..., 6 or more) radians, waist first."""
    waist, shoulder, elbow, forearm, wrist = (joints[..., k] for k in range(5))
    along = shoulder + elbow  # pitch of the forearm
    # The hand in the forearm's frame: bent by the wrist, turned by the forearm's roll.
    x, up = HAND_M * np.cos(wrist), -HAND_M * np.sin(wrist)
    side, up = -up * np.sin(forearm), up * np.cos(forearm)
    lean = shoulder + UPPER_TILT_RAD
    reach = UPPER_M * np.sin(lean) + (FOREARM_M + x) * np.cos(along) + up * np.sin(along)
    height = SHOULDER_M + UPPER_M * np.cos(lean) - (FOREARM_M + x) * np.sin(along) + up * np.cos(along)
    c, s = np.cos(waist), np.sin(waist)
    return np.stack((reach * c - side * s, reach * s + side * c, height), axis=-1)


def pitch_rad(joints: np.ndarray) -> np.ndarray:
    """(...,): how far the tool points down; 0 is level."""
    return joints[..., 1] + joints[..., 2] + joints[..., 4]


def joints_at(point_m: np.ndarray, pitch: float, roll: float) -> np.ndarray:
    """(6,) radians that bring the tool to `point_m` (3,) with `pitch` and `roll`; the elbow is up.

    A point out of reach gives the stretched arm that points at it.
    """
    x, y, z = point_m
    waist = np.arctan2(y, x)
    reach = np.hypot(x, y) - HAND_M * np.cos(pitch)
    height = z - SHOULDER_M + HAND_M * np.sin(pitch)
    far = np.clip(np.hypot(reach, height), FOREARM_M - UPPER_M + 0.05, UPPER_M + FOREARM_M - 1e-4)
    # Triangle shoulder, elbow, wrist.
    at_shoulder = np.arccos(np.clip((far**2 + UPPER_M**2 - FOREARM_M**2) / (2 * far * UPPER_M), -1, 1))
    at_elbow = np.arccos(np.clip((UPPER_M**2 + FOREARM_M**2 - far**2) / (2 * UPPER_M * FOREARM_M), -1, 1))
    upper = np.arctan2(height, reach) + at_shoulder  # of the upper arm's line over the horizon
    forearm = upper - (np.pi - at_elbow)  # of the forearm over the horizon
    shoulder = np.pi / 2 - upper - UPPER_TILT_RAD
    elbow = -forearm - shoulder
    return np.array([waist, shoulder, elbow, 0.0, pitch - shoulder - elbow, roll])
