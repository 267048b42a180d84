"""Real-time chunking of policies that were trained for it (arXiv 2512.05964): chunks that go on from committed actions.

A request says how many actions are decided until its chunk can begin; the chunk goes on from exactly those. One that
comes later than that would begin with actions that nothing before them leads to, so it is not used.
"""

from __future__ import annotations

import numpy as np

from edgevla.errors import BundleError, UsageError
from edgevla.execution.strategies import Execution, Rtc

REMEMBERED = 32
"""Requests whose chunk may still come."""


class Commitments:
    """How many actions each request committed. longest: the most that training has shown the policy."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._next: int | None = None
        self._of_request: dict[int, int | None] = {}

    def choose(self, expected: int, rest: int) -> int:
        """Actions that the next request commits: no more than there are, no more than were trained.

        expected: inference delay in steps; 0: none was measured yet. rest: actions that the old chunk still has.
        """
        n = min(expected or self.longest, self.longest, rest)
        self._next = n if rest else None
        return n

    def asked(self, request_id: int) -> None:
        self._of_request[request_id], self._next = self._next, None
        while len(self._of_request) > REMEMBERED:
            del self._of_request[next(iter(self._of_request))]

    def of(self, request_id: int) -> int | None:
        """What a request committed, asked for once; None: there was nothing to go on from, so any chunk will do."""
        return self._of_request.pop(request_id, 0)

    def clear(self) -> None:
        self._of_request.clear()


def check_commitment(weights: np.ndarray, longest: int) -> None:
    """The weights (T,) that a trained policy is given.

    Raises:
        BundleError: weights that are no beginning of ones, or a longer one than training has shown.
    """
    n = int((weights != 0).sum())
    if not np.array_equal(weights, np.arange(len(weights)) < n):
        raise BundleError(
            "this policy was trained for committed actions: its rtc weights are 1 for the first actions and 0 for the "
            "rest; ask with those"
        )
    if n > longest:
        raise BundleError(
            f"{n} actions are committed, but this policy was trained for at most {longest}; ask with fewer"
        )


def check_untrained_options(execution: Execution, longest: int | None) -> None:
    """
    Raises:
        UsageError: options of guidance for a policy that is not guided.
    """
    if longest is None or not isinstance(execution, Rtc):
        return
    plain = Rtc()
    for name, option in (
        ("guidance_end", "--guidance-end"),
        ("weights", "--rtc-weights"),
        ("max_guidance", "--max-guidance"),
    ):
        if getattr(execution, name) != getattr(plain, name):
            raise UsageError(
                f"{option} guides a policy that was not trained for real-time chunking; this one was, so leave it out"
            )


def future_words(most: int, fps: float) -> str:
    """What a policy of future states bears. most: steps, the farthest that training has shown it."""
    steps = "1 step" if most == 1 else f"{most} steps"
    return (
        f"with 'async' a new chunk begins where the arm will be when it comes, up to {steps} ahead (delays to "
        f"{1000 * most / fps:.0f} ms; what is later is skipped)"
    )


def rtc_words(mode: str | None, longest: int | None, fps: float) -> str:
    """What real-time chunking a bundle can do. mode: the manifest's, None: none. longest: actions, of a trained one."""
    if mode is None:
        return "none: this policy takes no committed actions"
    if mode == "trained" and longest is not None:
        steps = "1 committed action" if longest == 1 else f"{longest} committed actions"
        return f"trained: a new chunk goes on from up to {steps} (delays to {1000 * longest / fps:.0f} ms)"
    how = "guided towards" if mode == "guided" else "filled in with"
    return (
        f"{mode}: a new chunk is {how} what is committed; to go on from it exactly, train with "
        "--set rtc_training_max_delay=N"
    )
