"""What `start` says to the robot node (the policy's grid, how to execute its chunks, how fast training moved), and that
plan while it is carried out: which requests are out, and what the chunks say about a tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevla.arguments import Start
from edgevla.clock import NS_PER_MS, NS_PER_S, Tick
from edgevla.errors import ConfigError
from edgevla.execution import Async, Execution, Executor, Goal, Receipt, Sync
from edgevla.messages import Chunk, Message
from edgevla.types import ActionChunk


@dataclass(frozen=True)
class Plan:
    """The arguments of `start`, checked. `ticks_per_step` is R: the largest whole multiple of fps the buses carry."""

    fps: float
    chunk_size: int
    n_action_steps: int
    execution: Execution
    allowed: tuple[str, ...]
    task: str
    n_steps: int | None
    guidance_end: int
    max_guidance: float
    trained_speed: np.ndarray | None
    trained_range: np.ndarray | None
    latency_ms: float
    ticks_per_step: int
    most_drawn: int
    trained_delay: int | None = None
    leader_ms: float | None = None
    future_offset: int = 0
    is_shadow: bool = False

    @property
    def step_ns(self) -> int:
        return self.period_ns * self.ticks_per_step

    @property
    def period_ns(self) -> int:
        return round(NS_PER_S / (self.fps * self.ticks_per_step))

    def executor(self, is_gripper: Sequence[bool]) -> Executor:
        """is_gripper: per joint."""
        made = Executor(
            self.execution,
            ticks_per_step=self.ticks_per_step,
            chunk_size=self.chunk_size,
            n_action_steps=self.n_action_steps,
            n_joints=len(is_gripper),
            fps=self.fps,
            guidance_end=self.guidance_end,
            max_guidance=self.max_guidance,
            is_gripper=is_gripper,
            trained_delay=self.trained_delay,
            future_offset=self.future_offset,
        )
        made.expect_delay(-int(-self.latency_ms * self.fps // 1000))
        return made


def plan_from(start: Start, servo_hz: float, n_joints: int) -> Plan:
    """
    Raises:
        ConfigError: what `start` says cannot be done by this robot, with the value.
    """
    fps, max_hz = start.fps, start.max_hz
    if not 0 < fps <= servo_hz:
        raise ConfigError(
            f"the policy runs at {fps:g} Hz, this robot's buses carry {servo_hz:.3g} Hz at most (its profile, or a slow "
            "USB adapter)"
        )
    if max_hz is not None and max_hz < fps:
        raise ConfigError(f"--servo-hz {max_hz:g} is slower than the policy's {fps:g} Hz")
    if not 1 <= start.n_action_steps <= start.chunk_size:
        raise ConfigError(
            f"n_action_steps {start.n_action_steps} is not within the chunk of {start.chunk_size}"
        )
    if start.is_shadow and start.leader_ms is None:
        raise ConfigError(
            "a leader arm shall move the arm beside the policy, and none belongs to this deployment"
        )
    limit_hz = servo_hz if max_hz is None else min(servo_hz, max_hz)
    return Plan(
        fps=fps,
        chunk_size=start.chunk_size,
        n_action_steps=start.n_action_steps,
        execution=start.execution,
        allowed=tuple(start.allowed),
        task=start.task,
        n_steps=start.n_steps,
        guidance_end=start.guidance_end,
        max_guidance=start.max_guidance,
        trained_speed=_per_joint("trained_speed", start.trained_speed, (n_joints,)),
        trained_range=_per_joint("trained_range", start.trained_range, (2, n_joints)),
        latency_ms=start.latency_ms,
        ticks_per_step=max(1, int(limit_hz / fps + 1e-6)),
        most_drawn=start.most_drawn,
        trained_delay=start.trained_delay,
        leader_ms=start.leader_ms,
        future_offset=start.future_offset,
        is_shadow=start.is_shadow,
    )


def led(plan: Plan, leader_ms: float) -> Plan:
    """The same grid with a leader arm in the policy's place, followed as in teleoperation: the profile's caps alone."""
    return replace(
        plan,
        chunk_size=held_actions(plan.fps),
        n_action_steps=1,
        execution=Async(every=1),
        allowed=("async",),
        trained_speed=None,
        trained_range=None,
        latency_ms=leader_ms,
        most_drawn=1,
        trained_delay=None,
        future_offset=0,
    )


def held_actions(fps: float) -> int:
    """Actions of a chunk that holds a leader's pose."""
    return max(2, round(HOLD_S * fps))


def _per_joint(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """float32 of `shape`; None where it is not known."""
    if values is None:
        return None
    if np.shape(values) != shape:
        raise ConfigError(f"{name} has the shape {np.shape(values)}; this robot has {shape[-1]} joints")
    return np.asarray(values, np.float32)


HOLD_S = 0.5
"""Length of a leader's chunk: longer than any hiccup, shorter than anybody would want a lost leader to be followed."""
LEAST_DEADLINE_NS = NS_PER_S
"""A request is given at least this long; else four times what an inference took while warming up."""
SILENT_NS, SILENT_SYNC_NS = NS_PER_S // 5, NS_PER_S // 2
"""Longer without actions, and the source was silent. `sync` waits for every chunk, so it is given more time."""


class Rollout:
    """One plan on one grid. `restart` begins a new grid: chunks and requests of before are nobody's.

    answered_ns: when the last chunk came; 0: none yet.
    """

    def __init__(self, plan: Plan, is_gripper: Sequence[bool], first_request: int = 0) -> None:
        """is_gripper: per joint. first_request: requests count on from one rollout to the next, so that no late chunk is
        mistaken."""
        self.plan, self.task = plan, plan.task
        self.executor = plan.executor(is_gripper)
        self.answered_ns = 0
        self._next_request = self._first_request = first_request
        self._pending: dict[int, int] = {}
        self._starved_from_ns: int | None = None
        self._has_flowed = False

    def restart(self, first_request: int = 0) -> None:
        """first_request: where another rollout has counted on meanwhile."""
        self._first_request = self._next_request = max(self._next_request, first_request)
        self._pending.clear()
        self.answered_ns = 0
        self.forget()

    def forget(self) -> None:
        """The arm goes elsewhere: no chunk counts any more."""
        self.executor.reset()
        self._starved_from_ns, self._has_flowed = None, False

    # -- asking ---------------------------------------------------------------------------------------------------

    def give_up_late_requests(self, now_ns: int) -> int:
        """How many requests have passed their deadline without a chunk; the next grid moment may ask again."""
        late = [request for request, deadline in self._pending.items() if now_ns > deadline]
        for request in late:
            del self._pending[request]
            self.executor.give_up(request)
        return len(late)

    @property
    def next_request(self) -> int:
        return self._next_request

    def deadline_ns(self, now_ns: int) -> int:
        """Of a request that leaves now."""
        return now_ns + max(LEAST_DEADLINE_NS, int(4 * self.plan.latency_ms * NS_PER_MS))

    def buffered_ns(self, tick: Tick) -> int:
        """How long there are still actions from a grid moment on."""
        goal = self.executor.goal_at(tick.number)
        has_action = goal.wanted is not None and not goal.is_starved
        return (goal.n_left + 1) * self.plan.step_ns if has_action else 0

    def has_asked(self, tick: Tick, deadline_ns: int) -> None:
        """The request `next_request` has left."""
        self.executor.asked(self._next_request, tick.number)
        self._pending[self._next_request] = deadline_ns
        self._next_request += 1

    # -- receiving ------------------------------------------------------------------------------------------------

    def take(self, message: Message[Chunk], tick: Tick, last_goal: np.ndarray | None) -> Receipt | None:
        """What became of a chunk; None when it answers a request of another grid."""
        answer, request = message.body, message.body.request_id
        self._pending.pop(request, None)
        if request < self._first_request:
            return None
        steps = self.plan.ticks_per_step
        actions = message.payloads[0][: answer.n_valid]
        chunk = ActionChunk(actions, answer.grid_index * steps, steps, request, answer.ahead)
        receipt = self.executor.receive(chunk, request, tick.number, last_goal)
        self.answered_ns = tick.deadline_ns
        return receipt

    # -- goals ----------------------------------------------------------------------------------------------------

    def goal_at(self, tick: Tick, is_held: bool = False) -> tuple[Goal, int]:
        """The goal of a tick; and how long there had been none before (ns), 0 unless there is one again now.

        is_held: the arm must not move now, whatever the chunks say; time goes on for them.
        """
        goal = Goal(None) if is_held else self.executor.goal_at(tick.number)
        if goal.wanted is None or goal.is_starved:
            if self._starved_from_ns is None:
                self._starved_from_ns = tick.deadline_ns
            return goal, 0
        was_silent = self._has_flowed and self._starved_from_ns is not None
        silent_ns = tick.deadline_ns - (self._starved_from_ns or 0) if was_silent else 0
        self._starved_from_ns, self._has_flowed = None, True
        return goal, silent_ns if silent_ns > self._patience_ns else 0

    @property
    def is_starved(self) -> bool:
        """Whether the last tick had no action."""
        return self._starved_from_ns is not None

    @property
    def _patience_ns(self) -> int:
        if isinstance(self.executor.execution, Sync):
            return max(SILENT_SYNC_NS, int(4 * self.plan.latency_ms * NS_PER_MS))
        return SILENT_NS
