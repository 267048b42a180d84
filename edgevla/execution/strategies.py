"""The four ways to execute chunks, as one union, and whether a measured latency lets them work.

They differ only in when they ask for a chunk and in how chunks are merged (`executor.py`). Steps are grid
moments: one per 1/fps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from edgevla.errors import UsageError
from edgevla.strict import nearest

WeightKind = Literal["zeros", "ones", "linear", "exp"]
LAUNCHES_PER_S = 10
"""Where `every` is not given, a new chunk is asked for at most this often: fresh enough, and a core stays free."""


@dataclass(frozen=True)
class Sync:
    """Execute `n_action_steps` of a chunk, then hold the arm and ask. None: as many as the bundle says."""

    n_action_steps: int | None = None


@dataclass(frozen=True)
class Ensemble:
    """Average every chunk that covers a moment, weight exp(-decay * i), i = 0 for the oldest (ACT, Zhao et al. 2023).

    every: grid moments between two requests.
    """

    decay: float = 0.01
    every: int = 1


@dataclass(frozen=True)
class Async:
    """Ask while executing; the newest chunk replaces the older from its first action that is not past.

    every: grid moments between two requests; None: one after another, at most 10 per second.
    """

    every: int | None = None


@dataclass(frozen=True)
class Rtc:
    """As `Async`, and the new chunk is guided to agree with what will have been commanded meanwhile.

    guidance_end: step where guidance ends (LeRobot's `execution_horizon`); None: the bundle's. weights: how guidance
    fades from the inference delay to that step. max_guidance: None: the bundle's.
    """

    every: int | None = None
    guidance_end: int | None = None
    weights: WeightKind = "linear"
    max_guidance: float | None = None


Execution = Sync | Ensemble | Async | Rtc
KINDS: dict[str, type[Sync] | type[Ensemble] | type[Async] | type[Rtc]] = {
    "sync": Sync,
    "ensemble": Ensemble,
    "async": Async,
    "rtc": Rtc,
}
_LIMITS = {
    "n_action_steps": (1, 100_000),
    "every": (1, 100_000),
    "guidance_end": (0, 100_000),
    "decay": (-100, 100),
    "max_guidance": (0, 1e6),
}
_WITHIN_CHUNK = ("n_action_steps", "every", "guidance_end")


def execution_from(data: Mapping[str, Any]) -> Execution:
    """`{"kind": "sync", "n_action_steps": 100}` to `Sync(100)`.

    Raises:
        UsageError: an unknown kind, an option that this kind does not have, or a value out of range.
    """
    options = dict(data)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise UsageError(
            f"execution '{kind}' is unknown{nearest(str(kind), KINDS)}; choose {', '.join(KINDS)}"
        )
    known = {f.name for f in fields(KINDS[kind])}
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"execution '{kind}' has no option '{name}'; it has {', '.join(sorted(known))}")
        _check_option(kind, name, value)
    return KINDS[kind](**options)


def _check_option(kind: str, name: str, value: Any) -> None:
    if value is None:
        return
    if name == "weights":
        if value not in ("zeros", "ones", "linear", "exp"):
            raise UsageError(f"execution '{kind}': weights '{value}'; choose zeros, ones, linear or exp")
        return
    whole = name in ("n_action_steps", "every", "guidance_end")
    low, high = _LIMITS[name]
    if (
        isinstance(value, bool)
        or not isinstance(value, int if whole else (int, float))
        or not low <= value <= high
    ):
        expected = "a whole number" if whole else "a number"
        raise UsageError(f"execution '{kind}': {name} is {value!r}; expected {expected} from {low} to {high}")


def check_chunk(execution: Execution, chunk_size: int) -> None:
    """
    Raises:
        UsageError: the execution counts further than a chunk has actions.
    """
    for name, value in execution_to(execution).items():
        if name in _WITHIN_CHUNK and value > chunk_size:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} must be at most {chunk_size}, the actions of this policy's chunks"
            )


def execution_to(execution: Execution) -> dict[str, Any]:
    """The inverse of `execution_from`; options at None are left out."""
    return {"kind": kind_of(execution), **{k: v for k, v in asdict(execution).items() if v is not None}}


def kind_of(execution: Execution) -> str:
    return next(name for name, cls in KINDS.items() if type(execution) is cls)


def launch_period(execution: Execution, fps: float, delay_steps: int) -> int:
    """Grid moments between two requests. One request is out at a time, so never less than the delay."""
    if isinstance(execution, Sync):
        return 1
    every = execution.every if execution.every is not None else max(1, round(fps / LAUNCHES_PER_S))
    return max(every, delay_steps, 1)


@dataclass(frozen=True)
class LatencyVerdict:
    """execution: what shall run. sentence: what to tell the user, empty when all is well."""

    execution: Execution
    severity: Literal["info", "warning", "error"]
    sentence: str


def judge_latency(execution: Execution, *, chunk_size: int, fps: float, latency_ms: float) -> LatencyVerdict:
    """Whether a strategy can work with a measured latency; if not, `sync` in its place, and a sentence that says so.

    The rule (specs/closed_loop.md 3): chunk >= 2 * delay + launch period, in steps. Below it chunks do not overlap any
    more and the arm waits; with delay >= chunk no action is left when a chunk arrives.
    """
    if isinstance(execution, Sync):
        return LatencyVerdict(execution, "info", "")
    delay = -int(-latency_ms * fps // 1000)  # rounded up
    period = launch_period(execution, fps, delay)
    kind = kind_of(execution)
    figures = f"inference takes {latency_ms:.0f} ms = {delay} steps at {fps:g} Hz, a chunk has {chunk_size}"
    if delay >= chunk_size:
        return LatencyVerdict(
            Sync(),
            "error",
            f"'{kind}' cannot work: {figures}, so every action would be past when it arrives; running 'sync' instead. "
            f"Use a faster engine, fewer denoise steps or a longer chunk",
        )
    if isinstance(execution, Rtc) and 2 * delay > chunk_size:
        return LatencyVerdict(
            Sync(),
            "error",
            f"'rtc' cannot work: {figures}, and it needs delay <= chunk - delay; running 'sync' instead",
        )
    if chunk_size < 2 * delay + period:
        return LatencyVerdict(
            execution,
            "warning",
            f"'{kind}' will wait between chunks: {figures}, but 2 x delay + launch period = {2 * delay + period}. "
            f"Use a faster engine or a longer chunk",
        )
    return LatencyVerdict(execution, "info", "")
