"""Who is served next: the robot whose actions end first, and with it who may share its inference.

A pure table; one request per robot, the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Turn(Generic[T]):
    """One request. empty_ns: when its robot has no action left. expires_ns: when nobody wants the answer any more."""

    robot: Hashable
    what: T
    arrived_ns: int
    empty_ns: int
    expires_ns: int


class Turns(Generic[T]):
    def __init__(self) -> None:
        self._waiting: dict[Hashable, Turn[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, turn: Turn[T]) -> Turn[T] | None:
        """The request of the same robot whose place it takes: who asks again has given it up."""
        superseded = self._waiting.get(turn.robot)
        self._waiting[turn.robot] = turn
        return superseded

    def expire(self, now_ns: int) -> list[Turn[T]]:
        """Takes out what nobody waits for any more."""
        late = [turn for turn in self._waiting.values() if turn.expires_ns <= now_ns]
        for turn in late:
            del self._waiting[turn.robot]
        return late

    def next(
        self, joins: Callable[[Sequence[Turn[T]], Turn[T]], bool] = lambda taken, turn: False
    ) -> list[Turn[T]]:
        """Takes out the most urgent, of equal ones the first that came; then by urgency whoever joins those taken."""
        taken: list[Turn[T]] = []
        for turn in sorted(self._waiting.values(), key=lambda turn: (turn.empty_ns, turn.arrived_ns)):
            if not taken or joins(taken, turn):
                taken.append(self._waiting.pop(turn.robot))
        return taken

    def clear(self) -> list[Turn[T]]:
        """Takes out all."""
        all_of_them, self._waiting = list(self._waiting.values()), {}
        return all_of_them
