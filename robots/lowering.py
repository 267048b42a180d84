"""How an arm is let down: the torque that is left to it falls to zero in small steps, and its joints are watched.

A fixed share of torque is no rule: at 40 % a strong arm stands as before, and falls from its full height when torque
goes off. Here every arm comes to the share at which it begins to sink, whatever its servos, its supply and its load.

    share of torque        park_torque ____
                                           \\____        a joint sinks too fast: not lowered until it is slow
                                                \\____
                                                     \\____ 0: nothing is left to drop

Used by the guardian, by endings and by whoever finds an arm with torque on. Moves nothing itself; no numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping

from .profile import Escalation

STEP_NS = 50_000_000
"""Between two shares: the arm must have had time to answer to the last one."""
LONGEST_STEP_NS = 2 * STEP_NS
"""Whoever was held up for longer than this does not make up for it by one deep step."""
TICKS_PER_TURN = 4096
FAST_TICKS_S = 284.0
"""25 degrees/s: a joint that moves faster sinks fast enough."""
FALLING_TICKS_S = 2 * FAST_TICKS_S
"""A joint this fast is falling, and gets back some of its torque."""
CATCHING = 4
"""Times as fast as it is lowered, the share of a falling arm goes up again."""
STILL_NS = 4 * STEP_NS
"""With no torque left, the arm has to be slow for this long: a fall takes time to begin."""
LONGEST_TIMES = 3
"""So many times `park_ms`, it is over whatever still moves: somebody may be holding the arm."""


class Lowering:
    """One arm being let down, by the profile's rule; begins now, at `rule.park_torque`.

    is_over: nothing is left of its torque and nothing falls, or its time has passed; torque can be switched off.
    """

    def __init__(self, rule: Escalation, now_ns: int) -> None:
        self.is_over = False
        self._began_ns = self._stepped_ns = self._moved_ns = now_ns
        self._most = rule.park_torque
        self._share: float | None = None
        self._time_ns = rule.park_ms * 1_000_000
        self._seen: dict[str, tuple[int, int]] = {}
        """Motor -> (tick, when it was there), as read at the last step that could read it."""

    def step(self, now_ns: int, ticks: Mapping[str, int]) -> float | None:
        """The share (0..1) of torque to set now, the first time at once; None while it stays as it is.

        ticks: raw positions by motor name, as far as they could be read; who is not read is not waited for.
        """
        if self.is_over:
            return None
        if self._share is None:
            share = self._most
        elif now_ns - self._stepped_ns < STEP_NS:
            return None
        else:
            share = self._next(now_ns, self._fastest(now_ns, ticks))
        self._stepped_ns = now_ns
        self._seen.update({motor: (tick, now_ns) for motor, tick in ticks.items()})
        if self._most <= 0.0 or now_ns - self._began_ns >= LONGEST_TIMES * self._time_ns:
            share, self.is_over = 0.0, True
        elif share <= 0.0 and now_ns - self._moved_ns >= STILL_NS:
            self.is_over = True
        last, self._share = self._share, share
        return None if share == last else share

    def _next(self, now_ns: int, fastest: float) -> float:
        assert self._share is not None
        step = self._most * min(now_ns - self._stepped_ns, LONGEST_STEP_NS) / self._time_ns
        if fastest > FAST_TICKS_S or self._share > 0.0:
            self._moved_ns = now_ns
        if fastest > FALLING_TICKS_S:
            return min(self._most, self._share + CATCHING * step)
        if fastest > FAST_TICKS_S:
            return self._share
        left = self._share - step
        return left if left > step * 1e-6 else 0.0

    def _fastest(self, now_ns: int, ticks: Mapping[str, int]) -> float:
        """Ticks/s of the joint that has moved fastest since it was read last."""
        speeds = [0.0]
        for motor, tick in ticks.items():
            if motor in self._seen:
                then, then_ns = self._seen[motor]
                away = (tick - then + TICKS_PER_TURN // 2) % TICKS_PER_TURN - TICKS_PER_TURN // 2
                speeds.append(abs(away) * 1e9 / max(1, now_ns - then_ns))
        return max(speeds)
