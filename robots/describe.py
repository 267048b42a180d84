"""What the robot node tells of its robot: joints, cameras, rates, buses (`describe` of graphs.md 2.2)."""

from __future__ import annotations

import numpy as np

from edgevla.descriptions import AboutBus, AboutCamera, AboutJoint, AboutRobot

from .arm import Robot
from .profile import Joint, Profile

MID_RANGE = "mid_range"


def describe(profile: Profile, robot: Robot) -> AboutRobot:
    """min, max: what the servos can reach within the profile's limits, in the joint's unit."""
    low, high = robot.limits()
    return AboutRobot(
        node="robot",
        robot=profile.name,
        joints=tuple(_joint(robot, i, joint, low, high) for i, joint in enumerate(profile.joints)),
        cameras=tuple(
            AboutCamera(
                name=camera.name,
                source=camera.source,
                height=camera.height,
                width=camera.width,
                fps=camera.fps,
                locked_exposure=camera.has_locked_exposure,
                fit=camera.fit,
            )
            for camera in profile.cameras
        ),
        servo_hz=robot.max_hz,
        warnings=tuple(robot.warnings),
        buses=tuple(
            AboutBus(
                name=bus.name,
                protocol=bus.protocol,
                port=robot.ports[bus.name].name,
                baud=bus.baud,
                n_motors=len(bus.motors),
            )
            for bus in profile.buses
        ),
    )


def _joint(robot: Robot, i: int, joint: Joint, low: np.ndarray, high: np.ndarray) -> AboutJoint:
    ends = robot.range_deg(i)
    return AboutJoint(
        name=joint.name,
        unit=joint.unit,
        min=float(low[i]),
        max=float(high[i]),
        max_velocity=joint.max_velocity,
        is_gripper=joint.is_gripper,
        range_deg=None if ends is None else (float(ends[0]), float(ends[1])),
        zero=MID_RANGE if joint.unit in ("deg", "rad") else None,
    )
