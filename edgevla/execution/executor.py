"""From chunks to the goal of every tick. Time is counted in ticks; policy time in grid moments, R ticks each.

Grid moment n is tick n*R. Action j of a chunk anchored at n belongs to moment n + j; between moments goals are
interpolated. `sync` anchors a chunk where its execution begins (the arm waited for it); all others anchor it at
its observation, so that late actions are skipped by construction. A policy of future states is told where the arm will
be when its chunk can begin, and the chunk is anchored there. Nothing here knows a clock, a policy or a robot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgevla.execution.blend import blended
from edgevla.execution.commit import Commitments
from edgevla.execution.ensemble import ensemble
from edgevla.execution.rtc import rtc_weights
from edgevla.execution.strategies import (
    Async,
    Ensemble,
    Execution,
    Rtc,
    Sync,
    blended_by,
    drawn_by,
    launch_period,
)
from edgevla.types import ActionChunk

DELAYS_KEPT = 10


@dataclass(frozen=True)
class Goal:
    """What the chunks say about one tick.

    wanted: float32 (D,), robot units, or None when no chunk has begun. chunk_seq: of the newest chunk in it.
    action_index: position within that chunk, in steps. n_left: actions that follow. is_starved: past the last one.
    """

    wanted: np.ndarray | None
    chunk_seq: int | None = None
    action_index: float = 0.0
    n_left: int = 0
    is_starved: bool = False


@dataclass(frozen=True)
class Receipt:
    """What became of a chunk that arrived.

    reason: `taken`, `late` (nothing of it is left, or a newer one is there), `overdue` (later than the committed actions
    that it goes on from), `unasked`, `damaged`.
    grid_index: where action 0 stands. n_skipped: actions already past. delay_steps: observation to first usable action.
    """

    reason: str
    grid_index: int
    n_skipped: int = 0
    delay_steps: int = 0

    @property
    def is_taken(self) -> bool:
        return self.reason == "taken"


@dataclass(frozen=True)
class _Held:
    """A chunk on the grid: action j belongs to grid moment anchor + j; `n` of them may be used. seen: the moment that it
    was made from."""

    actions: np.ndarray
    anchor: int
    n: int
    seq: int
    seen: int


class Executor:
    """Chunks in, goals out.

    ticks_per_step: R. n_action_steps: the bundle's, for `sync`. fps: grid moments per second. is_gripper: per joint;
    grippers are not blended: half way between open and closed a gripper holds nothing.
    """

    def __init__(
        self,
        execution: Execution,
        *,
        ticks_per_step: int,
        chunk_size: int,
        n_action_steps: int,
        n_joints: int,
        fps: float,
        guidance_end: int = 0,
        max_guidance: float = 10.0,
        is_gripper: Sequence[bool] | None = None,
        trained_delay: int | None = None,
        future_offset: int = 0,
    ) -> None:
        """trained_delay: actions, the longest beginning that `rtc` may commit; None: the policy is guided instead.
        future_offset: steps, the farthest ahead that the policy takes a state from; 0: it takes the present one."""
        self.execution = execution
        self._commitments = None if trained_delay is None else Commitments(trained_delay)
        self.ticks_per_step, self.chunk_size, self.n_joints, self.fps = (
            ticks_per_step,
            chunk_size,
            n_joints,
            fps,
        )
        self._n_action_steps = min(n_action_steps, chunk_size)
        if isinstance(execution, Sync) and execution.n_action_steps:
            self._n_action_steps = min(execution.n_action_steps, chunk_size)
        self._guidance = (guidance_end, max_guidance)
        self._is_blended = None if is_gripper is None else ~np.asarray(is_gripper, bool)
        self._future_offset, self._ahead = future_offset, 0
        self._delays: deque[int] = deque(maxlen=DELAYS_KEPT)
        self._chunks: list[_Held] = []
        self._asked: dict[int, int] = {}
        self._last_asked: int | None = None
        self._lead_in: tuple[int, np.ndarray] | None = None

    # -- asking ---------------------------------------------------------------------------------------------

    @property
    def delay_steps(self) -> int:
        """Inference delay to expect: the worst of the last ten, in steps; 0 before the first."""
        return max(self._delays, default=0)

    @property
    def n_drawn(self) -> int:
        """Chunks of which the policy shall take the one nearest to what is committed."""
        return drawn_by(self.execution)

    def expect_delay(self, steps: int) -> None:
        """A delay measured before the rollout."""
        self._delays.append(steps)

    def wants_chunk(self, tick: int) -> bool:
        """Whether to ask now; only at grid moments, and one request at a time."""
        n, off_grid = divmod(tick, self.ticks_per_step)
        if off_grid or self._asked:
            return False
        if isinstance(self.execution, Sync):
            return not self._chunks or n >= self._chunks[-1].anchor + self._chunks[-1].n
        if self._last_asked is None or not self._chunks:
            return True
        # One request is out at a time, so the delay bounds the rate by itself: no need to add it here.
        return n - self._last_asked >= launch_period(self.execution, self.fps, 0)

    def asked(self, request_id: int, tick: int) -> None:
        """A request has left at a grid moment."""
        self._last_asked = tick // self.ticks_per_step
        self._asked[request_id] = self._last_asked
        if self._commitments is not None:
            self._commitments.asked(request_id)

    def give_up(self, request_id: int) -> None:
        """Its deadline has passed: the next grid moment may ask again."""
        self._asked.pop(request_id, None)

    def state_for(self, tick: int, measured: np.ndarray, sent: np.ndarray | None) -> tuple[int, np.ndarray]:
        """How many steps the next request looks ahead, and the state that it tells: where the arm will be then, which is
        the goal of the last action before. As far as the chunk is expected to take, as training knows, and as there are
        actions to execute meanwhile; 0 steps and the measured state otherwise, as where the arm waits for its chunks.

        measured, sent: float32 (D,), the position and the goal really sent at this tick.
        """
        self._ahead = 0
        if not isinstance(self.execution, Async) or not self._chunks:
            return 0, measured
        moment, last = tick // self.ticks_per_step, self._chunks[-1]
        self._ahead = max(0, min(self.delay_steps, self._future_offset, last.anchor + last.n - moment))
        if self._ahead == 0:
            return 0, measured
        if self._ahead == 1 and sent is not None:
            return 1, sent
        return self._ahead, self._at(moment + self._ahead - 1)

    def committed(self, tick: int, sent: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float] | None:
        """What the policy is told of what the arm will do: committed goals (T, D) in robot units, weights (T,), the
        guidance limit. With `select` the weights judge chunks, and nothing is guided. None without RTC and `select`.

        sent: the goal really sent at this tick, which safety may have changed.
        """
        if not isinstance(self.execution, Rtc) and self.n_drawn == 1:
            return None
        n = tick // self.ticks_per_step + self._ahead
        committed = np.zeros((self.chunk_size, self.n_joints), np.float32)
        rest = 0
        if self._chunks:
            old = self._chunks[-1]
            remaining = old.actions[max(0, n - old.anchor) : old.n]
            rest = len(remaining)
            committed[:rest] = remaining
            if rest and sent is not None and self._ahead == 0:
                committed[0] = sent
        if not isinstance(self.execution, Rtc):
            delay = max(0, self.delay_steps - self._ahead)
            return committed, rtc_weights("linear", delay, rest, rest, self.chunk_size), 0.0
        if self._commitments is not None:
            n_committed = self._commitments.choose(self.delay_steps, rest)
            return committed, (np.arange(self.chunk_size) < n_committed).astype(np.float32), 0.0
        end = self._guidance[0] if self.execution.guidance_end is None else self.execution.guidance_end
        limit = self._guidance[1] if self.execution.max_guidance is None else self.execution.max_guidance
        weights = rtc_weights(self.execution.weights, self.delay_steps, end, rest, self.chunk_size)
        return committed, weights, limit

    # -- receiving ------------------------------------------------------------------------------------------

    def receive(
        self, chunk: ActionChunk, request_id: int, tick: int, last_goal: np.ndarray | None
    ) -> Receipt:
        """A chunk arrived between two ticks; `tick` is the next to be decided.

        last_goal: what was sent last; `sync` leads in from it.
        """
        anchor = chunk.tick // self.ticks_per_step
        observed = anchor - chunk.ahead
        was_asked = self._asked.pop(request_id, None) is not None
        next_moment = -(-tick // self.ticks_per_step)
        delay = max(0, next_moment - observed)
        n_blend = blended_by(self.execution)
        if chunk.actions.shape[1:] != (self.n_joints,) or not np.isfinite(chunk.actions).all():
            return Receipt("damaged", anchor)
        if isinstance(self.execution, Sync):
            if not was_asked:
                return Receipt("unasked", anchor)
            self._delays.append(delay)
            n = min(self._n_action_steps, len(chunk.actions))
            actions = chunk.actions
            if n_blend and self._chunks:  # the arm waited where the old chunk's rest goes on
                old = self._chunks[-1]
                actions = blended(actions, old.actions[old.n :], n_blend, is_blended=self._is_blended)
            self._chunks = [_Held(actions, next_moment, n, chunk.seq, next_moment)]
            if last_goal is not None and tick % self.ticks_per_step:
                self._lead_in = (tick - 1, last_goal)
            return Receipt("taken", next_moment, 0, delay)
        held = _Held(chunk.actions, anchor, len(chunk.actions), chunk.seq, observed)
        n_skipped = max(0, next_moment - anchor)
        commitments = self._commitments if isinstance(self.execution, Rtc) else None
        n_committed = None if commitments is None else commitments.of(request_id)
        # A chunk without a beginning may be the first of all, slower than any after it.
        if was_asked and (commitments is None or n_committed is not None):
            self._delays.append(delay)
        if anchor + held.n <= next_moment or (self._chunks and observed <= self._chunks[-1].seen):
            return Receipt("late", anchor, min(n_skipped, held.n), delay)
        if n_committed is not None and delay > n_committed:
            return Receipt("overdue", anchor, 0, delay)
        moment = tick // self.ticks_per_step
        if n_blend and self._chunks:
            held = replace(held, actions=self._joined(held, max(moment, anchor), next_moment))
        # One that begins later leaves the arm with the old one until then.
        keep = self._chunks if isinstance(self.execution, Ensemble) or anchor > moment else []
        self._chunks = [c for c in keep if c.anchor + c.n > moment] + [held]
        return Receipt("taken", anchor, n_skipped, delay)

    def _joined(self, new: _Held, moment: int, next_moment: int) -> np.ndarray:
        """The new chunk's actions, from `moment`, which now is, on blended with what the old one still holds."""
        old, played = self._chunks[-1], moment - new.anchor
        following = [self._at(m) for m in range(moment, old.anchor + old.n)]
        rest = blended(
            new.actions[played:],
            np.stack(following) if following else old.actions[:0],
            blended_by(self.execution),
            is_begun=moment < next_moment,
            is_blended=self._is_blended,
        )
        return np.concatenate([new.actions[:played], rest])

    def reset(self) -> None:
        """Forgets all chunks and requests: pause, stop, a new task."""
        self._chunks.clear()
        self._asked.clear()
        if self._commitments is not None:
            self._commitments.clear()
        self._last_asked = None
        self._lead_in = None

    def switch(self, execution: Execution) -> None:
        """Another strategy from now on; the newest chunk is kept."""
        if isinstance(execution, Sync) and execution.n_action_steps:
            self._n_action_steps = min(execution.n_action_steps, self.chunk_size)
        if isinstance(self.execution, Ensemble):
            self._chunks = self._chunks[-1:]
        self.execution = execution
        if isinstance(execution, Async | Rtc | Ensemble):
            self._chunks = [replace(c, n=len(c.actions)) for c in self._chunks]

    # -- goals ----------------------------------------------------------------------------------------------

    def goal_at(self, tick: int) -> Goal:
        """The goal of one tick: interpolated between grid moments, held behind the last action."""
        if not self._chunks:
            return Goal(None)
        moment, part = divmod(tick, self.ticks_per_step)
        held, last = self._in_force(moment), self._chunks[-1]
        index = moment - held.anchor + part / self.ticks_per_step
        if index < 0:
            return self._lead(tick, held)
        wanted = self._at(moment)
        if part:
            following = self._at(moment + 1)
            share = part / self.ticks_per_step
            wanted = (wanted + (following - wanted) * share).astype(np.float32)
        # A chunk's last action is due for one whole step; only behind it the arm waits.
        is_starved = index >= held.n
        n_left = max(0, last.anchor + last.n - 1 - moment)
        return Goal(wanted, held.seq, float(min(index, held.n - 1)), n_left, is_starved)

    def _in_force(self, moment: int) -> _Held:
        """The newest chunk that has begun; where none has, the newest of all."""
        return next((c for c in reversed(self._chunks) if c.anchor <= moment), self._chunks[-1])

    def _at(self, moment: int) -> np.ndarray:
        """float32 (D,): what the chunks say about a grid moment; the last action where none covers it."""
        covering = [c for c in self._chunks if c.anchor <= moment < c.anchor + c.n]
        if isinstance(self.execution, Ensemble) and covering:
            rows = np.stack([c.actions[moment - c.anchor] for c in covering])
            return ensemble(rows, [c.anchor for c in covering], self.execution.decay)
        held = self._in_force(moment)
        return np.asarray(held.actions[min(max(0, moment - held.anchor), held.n - 1)], np.float32)

    def _lead(self, tick: int, newest: _Held) -> Goal:
        """`sync` between a chunk's arrival and its first grid moment: a straight line from the last goal."""
        if self._lead_in is None:
            return Goal(None, newest.seq, 0.0, newest.n)
        began, last_goal = self._lead_in
        due = newest.anchor * self.ticks_per_step
        share = (tick - began) / (due - began)
        wanted = last_goal + (newest.actions[0] - last_goal) * share
        return Goal(wanted.astype(np.float32), newest.seq, 0.0, newest.n)
