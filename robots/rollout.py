"""What `start` says to the robot node: the policy's grid, how to execute its chunks, and how fast training moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevla.clock import NS_PER_S
from edgevla.codec import check_fields
from edgevla.errors import ConfigError, WireError
from edgevla.execution import Execution, Executor, execution_from
from edgevla.messages import Optional_

START = {
    "fps": "float",
    "chunk_size": "uint",
    "n_action_steps": "uint",
    "execution": "map",
    "allowed": ["str"],
    "task": "str",
    "n_steps": Optional_("uint"),
    "guidance_end": "uint",
    "max_guidance": "float",
    "trained_speed": Optional_(["float"]),
    "trained_range": Optional_([["float"]]),
    "latency_ms": "float",
    "max_hz": Optional_("float"),
}
"""Arguments of `start`. trained_*: per joint, in the robot's order and units. latency_ms: measured while warming up."""


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


def plan_from(arguments: Mapping[str, Any], servo_hz: float, n_joints: int) -> Plan:
    """
    Raises:
        ConfigError: what `start` says cannot be done by this robot, with the value.
    """
    try:
        a = check_fields(arguments, START, "start")
    except WireError as error:
        raise ConfigError(str(error)) from error
    fps = a["fps"]
    if not 0 < fps <= servo_hz:
        raise ConfigError(
            f"the policy runs at {fps:g} Hz, this robot's buses carry {servo_hz:.3g} Hz at most (its profile, or a slow "
            "USB adapter)"
        )
    if a["max_hz"] is not None and a["max_hz"] < fps:
        raise ConfigError(f"--servo-hz {a['max_hz']:g} is slower than the policy's {fps:g} Hz")
    if not 1 <= a["n_action_steps"] <= a["chunk_size"]:
        raise ConfigError(
            f"n_action_steps {a['n_action_steps']} is not within the chunk of {a['chunk_size']}"
        )
    limit_hz = servo_hz if a["max_hz"] is None else min(servo_hz, a["max_hz"])
    speed, seen = a.pop("trained_speed"), a.pop("trained_range")
    for name, values, shape in (
        ("trained_speed", speed, (n_joints,)),
        ("trained_range", seen, (2, n_joints)),
    ):
        if values is not None and np.shape(values) != shape:
            raise ConfigError(f"{name} has the shape {np.shape(values)}; this robot has {n_joints} joints")
    del a["max_hz"]
    a["execution"], a["allowed"] = execution_from(a["execution"]), tuple(a["allowed"])
    return Plan(
        **a,
        trained_speed=None if speed is None else np.asarray(speed, np.float32),
        trained_range=None if seen is None else np.asarray(seen, np.float32),
        ticks_per_step=max(1, int(limit_hz / fps + 1e-6)),
    )
