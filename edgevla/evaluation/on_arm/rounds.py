"""Which policy runs when. Every round gives each policy one turn; in which order is drawn, and nobody is told.

Of every two rounds one begins with the one policy and one with the other, so that whatever changes over an evening
(light, a tired person, a warm gripper) meets both alike. The order follows from a seed: a later session goes on with it,
and episodes.jsonl need not hold what would spoil the blindness.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """round: from 0; each is one placement of the scene. place: within the round, from 0. policy: index; hidden."""

    round: int
    place: int
    policy: int


class Rounds:
    """n: rounds. n_policies: 1 or 2. The turns of a smaller n are the first of a larger one."""

    def __init__(self, n: int, n_policies: int, seed: int) -> None:
        self.n, self.n_policies, self.seed = n, n_policies, seed

    def turns(self) -> list[Attempt]:
        """All of them, in the order in which they are run."""
        return [
            Attempt(r, place, policy) for r in range(self.n) for place, policy in enumerate(self.order(r))
        ]

    def order(self, number: int) -> tuple[int, ...]:
        """Indices of policies in the order of one round."""
        forward = tuple(range(self.n_policies))
        drawn = random.Random(f"{self.seed} rounds {number // 2}").random() < 0.5
        return forward if drawn == (number % 2 == 0) else forward[::-1]
