"""A policy that looks on while a person moves the arm by the leader (`deploy --shadow --leader`): it is asked at its own
moments, its goals are bent as if they were sent, and none is."""

from __future__ import annotations

import numpy as np

from edgevla.clock import Tick
from edgevla.execution import Goal

from .body import Body
from .rollout import Rollout


class Onlooker:
    """rollout: the policy's own. body: whose caps it would have had."""

    def __init__(self, rollout: Rollout, body: Body) -> None:
        self.rollout = rollout
        self._body, self._filter = body, body.filter_in_thought(rollout.plan)

    @property
    def last_goal(self) -> np.ndarray | None:
        """float32 (D,): what the arm would have been given last."""
        return self._filter.last_goal

    @property
    def is_approaching(self) -> bool:
        return self._filter.is_approaching

    def goal_at(self, tick: Tick, is_held: bool) -> tuple[Goal, np.ndarray]:
        """What the policy wants at a tick; uint16 (D,) what safety would have done to it. is_held: as in `Rollout`."""
        goal, silent_ns = self.rollout.goal_at(tick, is_held)
        if silent_ns:
            self.approach()
        _, bits = self._filter.allow(goal.wanted)
        return goal, bits

    def approach(self) -> None:
        """What it wants next begins where the arm is now."""
        self._filter.begin(self._body.robot.present_goal())
