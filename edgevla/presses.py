"""Presses of a key that repeats while it is held down.

A keyboard repeats after 0.25 to 0.7 s, then thirty times a second; a paste or a line that stutters sends several at
once. Such a stream is one press: what lets go of an arm asks for a second one, after a pause. Without numpy, because
the guardian counts presses, too.
"""

from __future__ import annotations

QUIET_NS = 800_000_000
"""A pause this long ends a stream."""


class Presses:
    """How many presses there were. Every press that comes is handed to `press`, repeats as well."""

    def __init__(self, quiet_ns: int = QUIET_NS) -> None:
        self.n = 0
        self._quiet_ns = quiet_ns
        self._last_ns: int | None = None

    def press(self, now_ns: int) -> bool:
        """Whether this is a new press, rather than a repeat of the last one."""
        is_new = self._last_ns is None or now_ns - self._last_ns >= self._quiet_ns
        self._last_ns = now_ns
        self.n += is_new
        return is_new

    def forget(self) -> None:
        """The stop was cleared: the next press is a first one, unless it still belongs to the stream."""
        self.n = 0
