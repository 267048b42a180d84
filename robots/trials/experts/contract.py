"""What an expert is to those who record demonstrations or measure the best that can be done.

An expert has no memory: the same world and the same state give the same goal. So what a policy sees is enough to
imitate it, and a disturbed arm is shown the way back by labels that are clean.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgevla.errors import UsageError
from edgevla.simulated import Task

MODULES = {"follow_cube": ".follow_cube", "aloha": ".aloha", "so101": ".pick_place"}
"""First part of a task's name -> the module whose `make_expert` knows it; relative to this folder, or absolute."""


@dataclass(frozen=True)
class Manner:
    """How an expert is recorded. disturbance: (D,) robot units, the spread of what is executed about what is said.

    n_steps: of a demonstration, at most. correlation: of a disturbance with the one a step before. is_graded: every
    demonstration draws how much of the disturbance it gets, 0 to all of it. head_start_s: the world may run up to so
    long before every other demonstration begins. n_after: steps shown after the expert is done.
    """

    disturbance: np.ndarray
    n_steps: int
    correlation: float = 0.0
    is_graded: bool = False
    head_start_s: float = 0.0
    n_after: int = 0


class Expert(Protocol):
    @property
    def manner(self) -> Manner:
        """How it is disturbed while it demonstrates."""
        ...

    def goal(self, world: Any, state: np.ndarray) -> np.ndarray:
        """(D,) robot units as in `action`. state: (D,), as measured."""
        ...

    def is_done(self, world: Any, state: np.ndarray) -> bool:
        """Nothing is left to show."""
        ...

    def went_well(self, world: Any) -> bool:
        """At the end: worth imitating."""
        ...


def make_expert(task: Task) -> Expert:
    """
    Raises:
        UsageError: nobody has written one for this task.
    """
    module = MODULES.get(task.name.partition("/")[0])
    if module is None:
        raise UsageError(
            f"there is no scripted expert of '{task.name}' yet; there is one of: {', '.join(MODULES)}"
        )
    expert: Expert = importlib.import_module(module, __package__).make_expert(task)
    return expert
