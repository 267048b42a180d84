"""How chunks become goals: pure functions of ticks and chunks, the same for every policy and robot."""

from edgevla.execution.executor import Executor, Goal, Receipt
from edgevla.execution.strategies import (
    Async,
    Ensemble,
    Execution,
    Rtc,
    Sync,
    execution_from,
    execution_to,
    highest_hz,
    in_time,
    judge_latency,
)

__all__ = [
    "Async",
    "Ensemble",
    "Execution",
    "Executor",
    "Goal",
    "Receipt",
    "Rtc",
    "Sync",
    "execution_from",
    "execution_to",
    "highest_hz",
    "in_time",
    "judge_latency",
]
