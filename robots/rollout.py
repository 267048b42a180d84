"""What `start` says to the robot node: the policy's grid, how to execute its chunks, and how fast training moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevla.arguments import Start
from edgevla.clock import NS_PER_S
from edgevla.errors import ConfigError
from edgevla.execution import Execution, Executor


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

    @property
    def step_ns(self) -> int:
        return self.period_ns * self.ticks_per_step

    @property
    def period_ns(self) -> int:
        return round(NS_PER_S / (self.fps * self.ticks_per_step))

    def executor(self, n_joints: int) -> Executor:
        made = Executor(
            self.execution,
            ticks_per_step=self.ticks_per_step,
            chunk_size=self.chunk_size,
            n_action_steps=self.n_action_steps,
            n_joints=n_joints,
            fps=self.fps,
            guidance_end=self.guidance_end,
            max_guidance=self.max_guidance,
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
    )


def _per_joint(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """float32 of `shape`; None where it is not known."""
    if values is None:
        return None
    if np.shape(values) != shape:
        raise ConfigError(f"{name} has the shape {np.shape(values)}; this robot has {shape[-1]} joints")
    return np.asarray(values, np.float32)
