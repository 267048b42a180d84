"""An arm of your own: a TOML file, read and checked, and moved on emulated servos through the real driver and packets.

    python examples/own_arm.py examples/own_arm.toml

Before the real one moves: `edgevla emulate FILE`, `edgevla setup-motors --robot FILE`, `edgevla calibrate --robot FILE`,
`edgevla doctor --robot FILE`, and docs/safety.md.
"""

from __future__ import annotations

import sys

import numpy as np

from edgevla import load_profile
from edgevla.robots.trials.lockstep import LockstepArm

PERIOD_NS = 10_000_000
SECONDS = 2.0


def main(file: str) -> None:
    profile = load_profile(file)
    for joint in profile.joints:
        print(
            f"{joint.name:12} {joint.min:g} to {joint.max:g} {joint.unit}, at most {joint.max_velocity:g} per second"
        )

    arm = LockstepArm(profile)  # on a virtual clock: two seconds of the arm take no time
    start = np.array([joint.home for joint in profile.joints], np.float32)
    arm.put(start)
    goal = start.copy()
    goal[0] += 20.0  # degrees
    began = arm.clock.now_ns()
    for tick in range(int(SECONDS * 1e9) // PERIOD_NS):
        arm.wait_until(began + tick * PERIOD_NS)
        reading = arm.exchange(start + (goal - start) * min(1.0, tick * PERIOD_NS / 1e9))
    print(f"{profile.joints[0].name} went from {start[0]:g} to {reading.position[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
