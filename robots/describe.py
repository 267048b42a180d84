"""What the robot node tells of its robot: joints, cameras, rates, buses (its `describe`)."""

from __future__ import annotations

import numpy as np

from edgevla.descriptions import AboutBus, AboutCamera, AboutJoint, AboutRobot

from .arm import Robot
from .profile import Camera, Joint, Profile

MID_RANGE = "mid_range"


def describe(profile: Profile, robot: Robot) -> AboutRobot:
    """min, max: what the servos can reach within the profile's limits, in the joint's unit."""
    low, high = robot.limits()
    return AboutRobot(
        node="robot",
        robot=profile.name,
        joints=tuple(_joint(robot, i, joint, low, high) for i, joint in enumerate(profile.joints)),
        cameras=tuple(about_camera(camera) for camera in profile.cameras),
        servo_hz=robot.max_hz,
        warnings=tuple(robot.warnings),
        lerobot_types=profile.lerobot_types,
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


def about_camera(camera: Camera) -> AboutCamera:
    """All that the profile says of it."""
    return AboutCamera(
        name=camera.name,
        source=camera.source,
        height=camera.height,
        width=camera.width,
        fps=camera.fps,
        locked_exposure=camera.has_locked_exposure,
        fit=camera.fit,
        fourcc=camera.fourcc,
        exposure=camera.exposure,
        gain=camera.gain,
        white_balance=camera.white_balance,
        rotation=camera.rotation,
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
