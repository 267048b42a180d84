"""A simulated arm in one process on a virtual clock: real driver, real packets, emulated servos, no waiting.

Used to record demonstrations and to study closed loops exactly: an hour of the arm takes minutes, and the same
seeds give the same run on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevla.clock import NS_PER_MS, VirtualClock

from ..arm import Reading, Robot
from ..emulator.robot import EmulatedRobot
from ..profile import Profile, load_profile


class LockstepArm:
    """An arm whose servos, bus and driver share one virtual clock. Torque is on after construction.

    world: is stepped with the servos; one with physics moves their joints.
    """

    def __init__(self, profile: Profile | None = None, seed: int = 0, world: Any = None) -> None:
        self.profile = profile or load_profile("so101")
        self.clock = VirtualClock(1_000_000_000)
        self.emulated = EmulatedRobot(self.profile, self.clock, seed, world=world)
        self.robot = Robot(
            self.profile,
            ports=self.emulated.memory_ports(),
            calibration=self.emulated.calibration,
            clock=self.clock,
        )
        self.robot.connect()
        self.robot.set_torque(True)

    def put(self, position: np.ndarray) -> None:
        """Puts the arm somewhere as a person would by hand, and lets it hold there. position: (D,) robot units, as in
        `action`."""
        for joint, value in zip(self.profile.joints, position, strict=True):
            self.emulated.move_by_hand(joint.name, float(value))
        for _ in range(3):  # the driver believes a jump when it has seen it twice
            self.exchange(position)

    def wait_until(self, ns: int) -> None:
        """Time passes for servos and world."""
        self.clock.sleep_until(ns)
        self.emulated.step(self.clock.now_ns())

    def exchange(self, goal: np.ndarray | None) -> Reading:
        """One write and one read of the bus; takes a millisecond or two of virtual time."""
        goal = None if goal is None else np.asarray(goal, np.float32)
        return self.robot.exchange(goal, self.clock.now_ns() + 20 * NS_PER_MS)
