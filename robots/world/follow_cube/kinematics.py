"""Where the SO101's links are: forward kinematics of the chain, and an inverse that gives one answer per target.

The chain is the public SO101 model (TheRobotStudio/SO-ARM100, Apache-2.0), "new calibration": angle zero is mid
range, so LeRobot's degrees are these radians times 180/pi. Frames follow MuJoCo: each joint sits in its parent's
frame at a position and a quaternion (w, x, y, z), then turns about its own z. x is forward, y left, z up, metres;
the table is z = 0. Everything is vectorised over leading axes; the gripper's angle moves no point here.
"""

from __future__ import annotations

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
N_CHAIN = 5
"""Joints that move the tool point; the sixth, the gripper, only opens the jaws."""

POSITION_M = np.array(
    [
        (0.0388353, 0.0, 0.0624),
        (-0.0303992, -0.0182778, -0.0542),
        (-0.11257, -0.028, 0.0),
        (-0.1349, 0.0052, 0.0),
        (0.0, -0.0611, 0.0181),
    ]
)
QUATERNION = np.array(
    [
        (0.0, 0.0, -1.0, 0.0),
        (0.5, -0.5, -0.5, -0.5),
        (0.7071, 0.0, 0.0, 0.7071),
        (0.7071, 0.0, 0.0, -0.7071),
        (0.0172091, -0.0172091, 0.706897, 0.706897),
    ]
)
TOOL_M = np.array((-0.0079, -0.000218, -0.0981274))

LIMITS_RAD = np.deg2rad(
    [(-110.0, 110.0), (-100.0, 100.0), (-96.8, 96.8), (-95.0, 95.0), (-157.2, 162.8), (-10.0, 100.0)]
)
"""(6, 2): joint ranges of the model (hardware limits of a real arm come from its calibration)."""

READY_RAD = np.deg2rad([0.0, -30.0, 20.0, 70.0, 0.0, 20.0])
"""The posture from which `inverse` starts: elbow up, jaws down, in the middle of the reachable annulus."""


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """(4,) w, x, y, z of any length -> (3, 3)."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ]
    )


_ROTATION = np.array([_rotation(q) for q in QUATERNION])


def frames(joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position (..., 5, 3) in metres and orientation (..., 5, 3, 3) of the frame after each joint of the chain.

    joint_rad: (..., 5 or more), radians, in the order of `JOINTS`.
    """
    joint_rad = np.asarray(joint_rad, float)
    origins = np.empty((*joint_rad.shape[:-1], N_CHAIN, 3))
    turns = np.empty((*joint_rad.shape[:-1], N_CHAIN, 3, 3))
    cos, sin = np.cos(joint_rad[..., :N_CHAIN]), np.sin(joint_rad[..., :N_CHAIN])
    origin, turn = np.zeros(3), np.eye(3)
    for j in range(N_CHAIN):
        origin = origin + turn @ POSITION_M[j]
        fixed = turn @ _ROTATION[j]
        x, y = fixed[..., 0], fixed[..., 1]
        c, s = cos[..., j, None], sin[..., j, None]
        turn = np.stack(
            (c * x + s * y, c * y - s * x, np.broadcast_to(fixed[..., 2], (c * x).shape)), axis=-1
        )
        origins[..., j, :], turns[..., j, :, :] = origin, turn
    return origins, turns


def forward(joint_rad: np.ndarray) -> np.ndarray:
    """Tool point (..., 3) in metres, between the tips of the jaws."""
    origins, turns = frames(joint_rad)
    return origins[..., -1, :] + turns[..., -1, :, :] @ TOOL_M


def link_points(joint_rad: np.ndarray) -> np.ndarray:
    """(..., 7, 3): base, the five joints, the tool point: the polyline that a camera draws."""
    origins, turns = frames(joint_rad)
    tool = origins[..., -1:, :] + (turns[..., -1, :, :] @ TOOL_M)[..., None, :]
    base = np.zeros_like(tool)
    base[..., :2] = origins[..., :1, :2]
    return np.concatenate((base, origins, tool), axis=-2)


def jacobian(joint_rad: np.ndarray) -> np.ndarray:
    """d tool point / d joint, (..., 3, 5), metres per radian: joint axis x lever arm."""
    origins, turns = frames(joint_rad)
    tool = origins[..., -1, :] + turns[..., -1, :, :] @ TOOL_M
    return np.swapaxes(np.cross(turns[..., :, 2], tool[..., None, :] - origins), -1, -2)


def inverse(
    target_m: np.ndarray, *, damping: float = 0.03, null_pull: float = 0.2, n_iterations: int = 40
) -> np.ndarray:
    """Joint angles (..., 6) in radians that bring the tool point to `target_m` (..., 3).

    Damped least squares from `READY_RAD` turned towards the target; what the task leaves free is pulled back to
    that posture, and wrist roll and gripper stay there. So one target has one answer, which is what makes
    demonstrations consistent. Within about 2 mm in the annulus .15 .. .36 m; beyond reach it stretches as far as it can.
    """
    target_m = np.asarray(target_m, float)
    rest = np.broadcast_to(READY_RAD, (*target_m.shape[:-1], 6)).copy()
    # The model's pan axis points down: turning left (towards +y) is a negative angle.
    rest[..., 0] = -np.arctan2(target_m[..., 1] - POSITION_M[0, 1], target_m[..., 0] - POSITION_M[0, 0])
    joints, free, limits = rest.copy(), slice(0, 4), LIMITS_RAD[:4]
    for _ in range(n_iterations):
        task = jacobian(joints)[..., :, free]  # (..., 3, 4)
        task_t = np.swapaxes(task, -1, -2)
        damped = task_t @ np.linalg.inv(task @ task_t + damping**2 * np.eye(3))  # (..., 4, 3)
        step = (damped @ (target_m - forward(joints))[..., None])[..., 0]
        null = np.eye(4) - damped @ task
        step = step + null_pull * (null @ (rest - joints)[..., free, None])[..., 0]
        joints[..., free] = np.clip(joints[..., free] + step, limits[:, 0], limits[:, 1])
    return joints


def gripper_percent(joint_rad: np.ndarray) -> np.ndarray:
    """Opening of the jaws in percent of their range, from the gripper's angle in radians."""
    low, high = LIMITS_RAD[5]
    return (np.asarray(joint_rad) - low) / (high - low) * 100.0


def gripper_rad(percent: np.ndarray) -> np.ndarray:
    """The gripper's angle in radians, from its opening in percent."""
    low, high = LIMITS_RAD[5]
    return low + np.asarray(percent) / 100.0 * (high - low)


def robot_units(joint_rad: np.ndarray) -> np.ndarray:
    """(..., 6) radians -> degrees and the gripper's percent: what LeRobot's SO101 datasets hold."""
    joint_rad = np.asarray(joint_rad, float)
    return np.concatenate((np.rad2deg(joint_rad[..., :5]), gripper_percent(joint_rad[..., 5:])), axis=-1)


def radians(robot_units: np.ndarray) -> np.ndarray:
    """The inverse of `robot_units`."""
    robot_units = np.asarray(robot_units, float)
    return np.concatenate((np.deg2rad(robot_units[..., :5]), gripper_rad(robot_units[..., 5:])), axis=-1)
