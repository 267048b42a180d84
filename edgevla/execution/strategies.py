"""The four ways to execute chunks, as one union, and whether a measured latency lets them work.

They differ only in when they ask for a chunk and in how chunks are merged (`executor.py`). Steps are grid
moments: one per 1/fps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from edgevla.errors import UsageError
from edgevla.strict import Mismatch, OneOf, Within
from edgevla.vocabulary import WeightKind

Steps = Annotated[int, Within(1, 100_000)]
"""Grid moments, or rows of a chunk."""
Blend = Annotated[int, Within(0, 100_000)]
MOST_DRAWN = 64
Drawn = Annotated[int, Within(1, MOST_DRAWN)]
LAUNCHES_PER_S = 10
"""Where `every` is not given, a new chunk is asked for at most this often: fresh enough, and a core stays free."""
HIGHEST_HZ = 1000
"""Control rates above it are not asked about."""


@dataclass(frozen=True)
class Sync:
    """Execute `n_action_steps` of a chunk, then hold the arm and ask. None: as many as the bundle says.

    blend: so many first actions of a chunk are blended with those that the one before it had left.
    """

    n_action_steps: Steps | None = None
    blend: Blend | None = None


@dataclass(frozen=True)
class Ensemble:
    """Average every chunk that covers a moment, weight exp(-decay * i), i = 0 for the oldest (ACT, Zhao et al. 2023).

    every: grid moments between two requests.
    """

    decay: Annotated[float, Within(-100, 100)] = 0.01
    every: Steps = 1


@dataclass(frozen=True)
class Async:
    """Ask while executing; the newest chunk replaces the older from its first action that is not past.

    every: grid moments between two requests; None: one after another, at most 10 per second. blend: so many first
    actions of a chunk are blended with what the older one still holds. select: so many chunks are drawn per inference,
    and the one nearest to what the older still holds is taken (bidirectional decoding, Liu et al. 2024).
    """

    every: Steps | None = None
    blend: Blend | None = None
    select: Drawn | None = None


@dataclass(frozen=True)
class Rtc:
    """As `Async`, and the new chunk is guided to agree with what will have been commanded meanwhile.

    guidance_end: step where guidance ends (LeRobot's `execution_horizon`); None: the bundle's. weights: how guidance
    fades from the inference delay to that step. max_guidance: None: the bundle's. blend: as for `Async`.
    """

    every: Steps | None = None
    guidance_end: Annotated[int, Within(0, 100_000)] | None = None
    weights: WeightKind = "linear"
    max_guidance: Annotated[float, Within(0, 1e6)] | None = None
    blend: Blend | None = None


Execution = Sync | Ensemble | Async | Rtc
KINDS: dict[str, type[Sync] | type[Ensemble] | type[Async] | type[Rtc]] = {
    "sync": Sync,
    "ensemble": Ensemble,
    "async": Async,
    "rtc": Rtc,
}
_READER = OneOf("kind", KINDS)
_WITHIN_CHUNK = ("n_action_steps", "every", "guidance_end", "blend")
WITHOUT_EFFECT = {
    ("ensemble", "blend"): "it averages all chunks that cover a moment, so no chunk takes over from another",
    ("ensemble", "select"): "it averages all chunks that cover a moment, so none is chosen",
    ("sync", "select"): "the chunk before is over when the next one is drawn, so none is nearest to it",
    ("rtc", "select"): "its chunks are guided to agree with the one before",
}
"""Kind and option that would say twice what is done, or nothing -> why."""


def execution_from(data: Mapping[str, Any]) -> Execution:
    """`{"kind": "sync", "n_action_steps": 100}` to `Sync(100)`.

    Raises:
        UsageError: an unknown kind, an option that this kind does not have, or a value out of range.
    """
    for (kind, option), why in WITHOUT_EFFECT.items():
        if data.get("kind") == kind and data.get(option):
            raise UsageError(
                f"--{option} {data[option]} has no effect on '{kind}': {why}; leave it out, or choose --execution async"
            )
    try:
        made: Execution = _READER.read(data)
    except Mismatch as error:
        error.where = f"execution '{data['kind']}'" if data.get("kind") in KINDS else "execution"
        raise UsageError(str(error)) from None
    return made


def check_chunk(execution: Execution, chunk_size: int, n_action_steps: int) -> None:
    """n_action_steps: what `sync` executes of a chunk where it does not say it itself.

    Raises:
        UsageError: the execution counts further than a chunk has actions, or there is never anything to blend with.
    """
    for name, value in execution_to(execution).items():
        if name in _WITHIN_CHUNK and value > chunk_size:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} must be at most {chunk_size}, the actions of this policy's chunks"
            )
    if isinstance(execution, Sync) and execution.blend:
        executed = execution.n_action_steps or n_action_steps
        if executed >= chunk_size:
            raise UsageError(
                f"--blend {execution.blend} has no effect: 'sync' executes all {chunk_size} actions of a chunk, "
                "so nothing is left to blend the next one with; let it execute fewer (n_action_steps), or choose 'async'"
            )


def execution_to(execution: Execution) -> dict[str, Any]:
    """The inverse of `execution_from`; options at None are left out."""
    written: dict[str, Any] = _READER.write(execution)
    return written


def kind_of(execution: Execution) -> str:
    return next(name for name, cls in KINDS.items() if type(execution) is cls)


def blended_by(execution: Execution) -> int:
    """Actions in which one chunk fades into the next."""
    return 0 if isinstance(execution, Ensemble) else execution.blend or 0


def drawn_by(execution: Execution) -> int:
    """Chunks that are drawn per inference."""
    return (execution.select or 1) if isinstance(execution, Async) else 1


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


def judge_latency(
    execution: Execution, *, chunk_size: int, fps: float, latency_ms: float, trained_delay: int | None = None
) -> LatencyVerdict:
    """Whether a strategy can work with a measured latency; if not, `sync` in its place, and a sentence that says so.

    The rule (docs/executions.md#the-rule): chunk >= 2 * delay + launch period, in steps. Below it chunks do not overlap
    any more and the arm waits; with delay >= chunk no action is left when a chunk arrives. trained_delay: steps, the
    longest that an `rtc` by training bears.
    """
    if isinstance(execution, Sync):
        return LatencyVerdict(execution, "info", "")
    delay = -int(-latency_ms * fps // 1000)  # rounded up
    period = launch_period(execution, fps, delay)
    kind = kind_of(execution)
    figures = f"inference takes {latency_ms:.0f} ms = {delay} steps at {fps:g} Hz, a chunk has {chunk_size}"
    given_up = [f"--{name}" for name in ("blend", "select") if execution_to(execution).get(name)]
    instead = "running 'sync' instead" + (f", without {' and '.join(given_up)}" if given_up else "")
    if delay >= chunk_size:
        return LatencyVerdict(
            Sync(),
            "error",
            f"'{kind}' cannot work: {figures}, so every action would be past when it arrives; {instead}. "
            f"Use a faster engine, fewer denoise steps or a longer chunk",
        )
    if isinstance(execution, Rtc) and 2 * delay > chunk_size:
        return LatencyVerdict(
            Sync(),
            "error",
            f"'rtc' cannot work: {figures}, and it needs delay <= chunk - delay; {instead}",
        )
    if isinstance(execution, Rtc) and trained_delay is not None and delay > trained_delay:
        return LatencyVerdict(
            Sync(),
            "error",
            f"'rtc' cannot work: {figures}, and this policy was trained for delays of at most {trained_delay}; running "
            "'sync' instead. Use a faster engine, or train with a larger rtc_training_max_delay",
        )
    if chunk_size < 2 * delay + period:
        return LatencyVerdict(
            execution,
            "warning",
            f"'{kind}' will wait between chunks: {figures}, but 2 x delay + launch period = {2 * delay + period}. "
            f"Use a faster engine or a longer chunk",
        )
    return LatencyVerdict(execution, "info", "")


def in_time(
    kinds: Iterable[str], *, chunk_size: int, fps: float, latency_ms: float, trained_delay: int | None = None
) -> tuple[str, ...]:
    """Of these executions, with their defaults, those whose arm never waits for a chunk: `sync` always does."""
    return tuple(kind for kind in kinds if _is_in_time(kind, chunk_size, fps, latency_ms, trained_delay))


def highest_hz(
    kind: str, *, chunk_size: int, latency_ms: float, trained_delay: int | None = None
) -> int | None:
    """The highest whole control rate at which an execution is in time; None: at none. `HIGHEST_HZ` means: or more."""
    rates = range(HIGHEST_HZ, 0, -1)
    return next((hz for hz in rates if _is_in_time(kind, chunk_size, hz, latency_ms, trained_delay)), None)


def _is_in_time(kind: str, chunk_size: int, fps: float, latency_ms: float, trained_delay: int | None) -> bool:
    execution = execution_from({"kind": kind})
    verdict = judge_latency(
        execution, chunk_size=chunk_size, fps=fps, latency_ms=latency_ms, trained_delay=trained_delay
    )
    return not isinstance(execution, Sync) and verdict.severity == "info"
