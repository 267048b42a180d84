"""Whether the guardian must act: what the loop's lease, the presses and the pipes say together. No clock, no processes.

lease byte per tick:  running, stopping, parked, released        silence: longer than the byte allows
emergency stop:       the loop has OBEY_S to freeze, then STOPPING_S to let go, if pressed again
supervisor gone, or asked to end:  the loop has END_S to bring the arm to rest
"""

from __future__ import annotations

from edgevla.presses import QUIET_NS, Presses

from .links import PARKED, RELEASED, RUNNING, STOPPING

STOPPING_S = 2.0
"""A loop that switches torque talks to servos one by one, some of them perhaps gone: its ticks may be long."""
OBEY_S = 0.3
END_S = 60.0
TERMINATED_GRACE_S = 3.0
"""SIGTERM may come to a whole group at once: so long a living supervisor has time to begin the end in order."""
NEVER = float("inf")
SURE_QUIET_NS = QUIET_NS + 200_000_000
"""The loop counts presses, too. What is a second one here must be one there, or the loop would seem not to obey."""


class Lease:
    """The loop's promise. lease_s: how long a running loop may be silent. stall_s: a turn of the guardian that took
    longer says nothing about the loop: the machine stood still."""

    def __init__(self, lease_s: float, stall_s: float, now_s: float) -> None:
        self._allowed = {RUNNING: lease_s, STOPPING: STOPPING_S}
        self._stall_s, self._turned_s, self._silent_s = stall_s, now_s, 0.0
        self._obey_by = self._end_by = self._terminate_at = NEVER
        self._presses = Presses(SURE_QUIET_NS)
        self.last = RELEASED
        """The newest byte; before the first one torque is off."""

    @property
    def wants_release(self) -> bool:
        """Whether a person has pressed twice: whoever takes the bus lets go at once."""
        return self._presses.n > 1

    @property
    def is_at_rest(self) -> bool:
        """Whether the loop has left the arm so that nobody need look after it."""
        return self.last in (RELEASED, PARKED)

    def turn(self, now_s: float) -> None:
        """Time has passed."""
        self._silent_s += min(now_s - self._turned_s, self._stall_s)
        self._turned_s = now_s

    def heard(self, data: bytes) -> None:
        """Bytes of the loop, at least one."""
        self.last, self._silent_s = data[-1:], 0.0
        if self.last == RELEASED or (self.last == STOPPING and not self.wants_release):
            self._obey_by = NEVER
        if self.last in (RUNNING, PARKED) and self._obey_by == NEVER:
            self._presses.forget()  # the stop was cleared

    def press(self, now_s: float) -> bool:
        """An emergency stop; whether it is a new one, which the loop is to hear of, too."""
        if not self._presses.press(round(now_s * 1e9)):
            return False
        self._obey_by = now_s + (STOPPING_S if self.wants_release else OBEY_S)
        return True

    def must_end(self, now_s: float) -> None:
        """Nobody is left who could ask for anything, or we were told to end. The first time counts."""
        self._end_by = min(self._end_by, now_s + END_S)

    def terminate(self, at_s: float) -> None:
        """SIGTERM: obeyed at `at_s` unless the end in order has begun by then; at once when it comes again."""
        self._terminate_at = at_s if self._terminate_at == NEVER else self._turned_s

    def wants_end(self, now_s: float) -> bool:
        """Whether the loop is to be told that it must end."""
        if now_s >= self._terminate_at:
            self._terminate_at = NEVER
            if self.last != STOPPING:
                self.must_end(now_s)
        return self._end_by < NEVER

    def why(self, now_s: float) -> str:
        """Why the guardian must take the bus now; empty: it need not."""
        if self._silent_s > self._allowed.get(self.last, NEVER):
            return f"the control loop was silent for {self._silent_s * 1000:.0f} ms"
        if now_s > self._obey_by and self.last != RELEASED:
            return "the control loop did not obey the emergency stop"
        if now_s > self._end_by:
            return f"the control loop did not end within {END_S:.0f} s"
        return ""
