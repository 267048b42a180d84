"""A gripper that pushes until its servo reports overload is let go a little, once; then the run ends.

Its goal goes back to where it is, give or take `RELIEF_SHARE` of its range (so that it still holds, lightly), and torque
is enabled again there, which clears the report of a Feetech servo. The goal stays there until the policy opens the
gripper. A report that does not go away, or comes back before that, ends the run: the fault catalogue's rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .profile import Joint
from .safety import OVERLOADS, Judgement, Level, Reason, ServoState, measured

RELIEF_SHARE = 0.02
STILL_MS = 1000
"""A report this long after letting go is not going away."""


@dataclass
class _Relieved:
    """goal: where the gripper was let go to, unit of `action`. push: sign of the direction in which it pushed, 0 where
    its goal was where it stood."""

    goal: float
    push: float
    since_ns: int
    has_arrived: bool = False
    is_cleared: bool = False


class GripRelief:
    """The grippers of one robot. low, high: float (D,), ends of every joint's range in the units of `action`."""

    def __init__(self, joints: Sequence[Joint], low: np.ndarray, high: np.ndarray) -> None:
        self._joint_of: Mapping[str, int] = {j.motor: k for k, j in enumerate(joints) if j.is_gripper}
        self._little = RELIEF_SHARE * np.abs(high - low)
        self._relieved: dict[int, _Relieved] = {}

    def look(
        self, servos: Sequence[ServoState], goal: np.ndarray, present: np.ndarray, now_ns: int
    ) -> list[Judgement]:
        """goal, present: float32 (D,) in the units of `action`: what was sent last, and where the arm is."""
        return [
            finding
            for servo in servos
            if (k := self._joint_of.get(servo.name)) is not None
            and (finding := self._one(servo, k, float(goal[k]), float(present[k]), now_ns)) is not None
        ]

    def _one(self, servo: ServoState, k: int, goal: float, present: float, now_ns: int) -> Judgement | None:
        relieved = self._relieved.get(k)
        said = set(servo.faults) - {"voltage"}
        if not said or not said <= OVERLOADS:  # `Watch` judges the rest
            if relieved is not None and relieved.has_arrived:
                relieved.is_cleared = True
            return None
        what = f"servo {servo.name} reports {', '.join(servo.faults)}{measured(servo)}"
        if servo.torque_on is False:
            text = f"{what} and has switched its torque off; take out what blocks it, then {servo.restart}"
            return Judgement(Level.STOP, "gripper_overload", text)
        if relieved is None:
            little = float(np.clip(goal - present, -self._little[k], self._little[k]))
            self._relieved[k] = _Relieved(present + little, float(np.sign(goal - present)), now_ns)
            text = (
                f"{what} at {present:.1f}, told to go to {goal:.1f}: it now holds lightly at {present + little:.1f} "
                "until the policy opens it; if it reports overload again, the run ends"
            )
            return Judgement(Level.WARN, "gripper_relieved", text)
        if relieved.is_cleared or now_ns - relieved.since_ns > STILL_MS * 1_000_000:
            again = "again" if relieved.is_cleared else "still"
            text = (
                f"{what} {again}, although its goal was taken back to {relieved.goal:.1f}; take out what blocks it, "
                f"then {servo.restart}"
            )
            return Judgement(Level.STOP, "gripper_overload", text)
        return None

    def bend(self, wanted: np.ndarray | None, last_goal: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """float32 (D,) goal in which no relieved gripper pushes on, uint16 (D,) reasons. Opening ends a relief.

        wanted: None keeps `last_goal`, and so does the None that may come back.
        """
        bits = np.zeros(len(last_goal), np.uint16)
        if not self._relieved:
            return wanted, bits
        wanted = last_goal if wanted is None else wanted
        if len(wanted) != len(last_goal):
            return wanted, bits
        bent = np.array(wanted, np.float32)
        for k, relieved in list(self._relieved.items()):
            away = wanted[k] - relieved.goal
            if away * relieved.push < 0 or (
                away and not relieved.push
            ):  # it stood at its goal: any way is open
                del self._relieved[k]
            else:
                bent[k] = relieved.goal
                bits[k] = Reason.SERVO
        return bent, bits

    def forget(self) -> None:
        """The goal is where the arm is: nothing pushes any more."""
        self._relieved.clear()

    def arrived(self, goal: np.ndarray) -> list[str]:
        """Motors whose goal has just come back to where they were let go: their torque is to be enabled again."""
        found = []
        for motor, k in self._joint_of.items():
            relieved = self._relieved.get(k)
            if relieved is not None and not relieved.has_arrived and abs(goal[k] - relieved.goal) < 1e-3:
                relieved.has_arrived = True
                found.append(motor)
        return found
