"""What may move the joints of an emulated robot instead of its shafts' own mechanics: outside physics.

The servos stay what they are: registers, torque, trajectory generator, heat. Once per step each joint's servo says where
its shaft shall be and how much of its force it may use; the physics says where the joints are and what that took.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Physics(Protocol):
    """Arrays are float64 (D,), in the profile's order; angles are the shafts', as `EmulatedRobot.joint_rad` has them.

    step_ns: length of one step. angle_rad: where the joints are. effort: -1..1 of each joint's full force, as it was used
    in the last step.
    """

    step_ns: int

    @property
    def angle_rad(self) -> np.ndarray: ...

    @property
    def effort(self) -> np.ndarray: ...

    def put(self, angle_rad: np.ndarray) -> None:
        """The joints are there, at rest, as by a person's hand."""
        ...

    def step(self, wanted_rad: np.ndarray, strength: np.ndarray, is_stuck: np.ndarray) -> None:
        """One step later. wanted_rad: set points. strength: share (0..1) of full force that may be used, 0: limp."""
        ...
