"""The machine that a process trains on, where several processes of one job may run side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Machine:
    """One process alone on it.

    is_first_here: whether this is the one that does what is done once a machine. n_here: processes of the job on it.
    """

    is_first_here, n_here = True, 1

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process here; the others get the same, or its error. All must ask."""
        return make()


ALONE = Machine()
