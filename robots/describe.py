"""What the robot node tells of its robot: joints, cameras, rates, buses (`describe` of graphs.md 2.2)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .arm import Robot
from .profile import Camera, Joint, Profile

MID_RANGE = "mid_range"


def describe(profile: Profile, robot: Robot) -> dict[str, Any]:
    """Plain values. min, max: what the servos can reach within the profile's limits, in the joint's unit."""
    low, high = robot.limits()
    return {
        "node": "robot",
        "robot": profile.name,
        "lerobot_types": list(profile.lerobot_types),
        "joints": [_joint(robot, i, joint, low, high) for i, joint in enumerate(profile.joints)],
        "cameras": [describe_camera(camera) for camera in profile.cameras],
        "servo_hz": robot.max_hz,
        "warnings": list(robot.warnings),
        "buses": [
            {
                "name": bus.name,
                "protocol": bus.protocol,
                "port": robot.ports[bus.name].name,
                "baud": bus.baud,
                "n_motors": len(bus.motors),
            }
            for bus in profile.buses
        ],
    }


def describe_camera(camera: Camera) -> dict[str, Any]:
    """All that the profile says of it, as `CameraSettings.of_profile` takes it."""
    fields = dataclasses.asdict(camera)
    return {"locked_exposure": fields.pop("has_locked_exposure"), **fields}


def _joint(robot: Robot, i: int, joint: Joint, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """range_deg: ends of the calibrated range in degrees, by which angles and shares of the range convert."""
    ends = robot.range_deg(i)
    return {
        "name": joint.name,
        "unit": joint.unit,
        "min": float(low[i]),
        "max": float(high[i]),
        "max_velocity": float(joint.max_velocity),
        "is_gripper": joint.is_gripper,
        "range_deg": None if ends is None else [float(end) for end in ends],
        "zero": MID_RANGE if joint.unit in ("deg", "rad") else None,
    }
