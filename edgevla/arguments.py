"""What commands take with them: one dataclass per command that has arguments (docs/formats.md#types).

The asked node's socket reads them and refuses what does not fit, with the sentence as the answer; so a node gets its
arguments checked. Fields are added as `messages.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from edgevla.errors import UsageError
from edgevla.execution.strategies import KINDS, Execution
from edgevla.strict import Mismatch, OneOf, UInt, kind
from edgevla.words import check_task

ChosenExecution = Annotated[Execution, OneOf("kind", KINDS)]


@dataclass(frozen=True)
class Start:
    """The policy's grid, how to execute its chunks, and how fast training moved.

    fps: of the policy. trained_speed: per joint, per second; trained_range: lowest and highest; both in the robot's
    order and units. latency_ms: measured while warming up. max_hz: upper bound of the control loop's rate. is_held: the
    arm gets its torque and stays where it is, until `resume` or `home`. most_drawn: chunks that one inference can draw.
    trained_delay: actions, the most that `rtc` may commit; None: it guides. leader_ms: how long a leader arm takes to
    answer, which may take the policy's place; None: there is none. future_offset: steps, the farthest ahead that the
    policy takes a state from. is_shadow: the leader arm moves the arm all along, the policy is only compared with it.
    """

    fps: float
    chunk_size: UInt
    n_action_steps: UInt
    execution: ChosenExecution
    allowed: tuple[str, ...]
    task: str
    n_steps: UInt | None
    guidance_end: UInt
    max_guidance: float
    trained_speed: tuple[float, ...] | None
    trained_range: tuple[tuple[float, ...], ...] | None
    latency_ms: float
    max_hz: float | None
    is_held: bool = False
    most_drawn: UInt = 1
    trained_delay: UInt | None = None
    leader_ms: float | None = None
    future_offset: UInt = 0
    is_shadow: bool = False


@dataclass(frozen=True)
class SetTask:
    task: str


@dataclass(frozen=True)
class Record:
    """task: of the episode; None: the recorder's own."""

    task: str | None = None


@dataclass(frozen=True)
class _Nothing:
    """The other actions."""


Arguments = Start | SetTask | Record | Execution
ARGUMENTS: dict[str, Any] = {
    "start": Start,
    "set_task": SetTask,
    "set_execution": ChosenExecution,
    "record": Record,
}
"""Action -> annotation; the other actions take nothing."""


def arguments_to(action: str, arguments: Arguments | None) -> dict[str, Any]:
    """What `command` carries.

    Raises:
        UsageError: our own mistake: arguments that do not belong to the action, or hold what they must not.
    """
    if arguments is None and action not in ARGUMENTS:
        return {}
    try:
        written: dict[str, Any] = kind(ARGUMENTS.get(action, _Nothing)).write(arguments)
    except Mismatch as error:
        raise _refused(action, error) from None
    return written


def arguments_from(action: str, data: Mapping[str, Any]) -> Arguments | None:
    """The inverse of `arguments_to`.

    Raises:
        UsageError: what does not fit, in a sentence for whoever asked.
    """
    try:
        made = kind(ARGUMENTS.get(action, _Nothing)).read(data)
    except Mismatch as error:
        raise _refused(action, error) from None
    if isinstance(made, SetTask):
        return SetTask(check_task(made.task))
    return None if isinstance(made, _Nothing) else made


def _refused(action: str, error: Mismatch) -> UsageError:
    error.where = action
    return UsageError(str(error))
