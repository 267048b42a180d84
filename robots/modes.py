"""What the robot node is and can become: one table, and the machine that walks it. No numpy, no robot, no clock.

              start                          no chunk, stale                       e, Ctrl-C
      idle -----------> running <---------------------------> holding    from every state: emergency
        ^               |  ^                 it flows again       |                 |        |
        |          pause|  |resume                                |            clear|   press|again
        |               v  |              home                    |                 v        v
        |              paused <--------------------- homing <-----+          where it was   ending
        |                             it is there                                          (release)
        |
        |       stop, a fault, nobody left               torque is off
        +-- any of these -----------------> ending ------------------> stopped --start--> running
                                     (rest | fault | release)
                                               \\----- not released ---> parked --start--> running

A cell of the table is what is done and what the machine becomes then, or why not: every command, signal and finding
has an answer in every state. `draw()` writes the table; docs/modes.md holds it, and a test compares.

What holds whatever happens: torque is off in `idle` and `stopped`; nothing moves in `emergency`; an ending always ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgevla.arguments import Arguments
    from edgevla.messages import Mode


class NodeState(str, Enum):
    """What the robot node is.

    IDLE: torque off, nothing was started. HOLDING: as RUNNING, but no chunk or a stale joint. ENDING: comes to rest, by
    the stages of its kind (`ending.py`). EMERGENCY: frozen and latched (or off and latched). PARKED: ended, torque left
    on at the profile's share. STOPPED: ended, torque off.
    """

    IDLE = "idle"
    RUNNING = "running"
    HOLDING = "holding"
    PAUSED = "paused"
    HOMING = "homing"
    ENDING = "ending"
    EMERGENCY = "emergency"
    PARKED = "parked"
    STOPPED = "stopped"


class NodeEvent(str, Enum):
    """What may come. The first twelve are commands; then what happens to the processes, to the servos, and by itself."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    HOME = "home"
    RESET = "reset"
    LEAD = "lead"
    HAND_BACK = "hand_back"
    SET_TASK = "set_task"
    SET_EXECUTION = "set_execution"
    STOP = "stop"
    EMERGENCY_STOP = "emergency_stop"
    CLEAR_STOP = "clear_stop"
    NOBODY_LEFT = "nobody_left"
    FAULT = "fault"
    LINE_GONE = "line_gone"
    CUT_OFF = "cut_off"
    STALLED = "stalled"
    FLOWING = "flowing"
    ARRIVED = "arrived"
    RELEASED = "released"
    LEFT_PARKED = "left_parked"


class Deeds(Protocol):
    """What the table lets the machine do to the arm (`commands.py`). A deed may say another state than the table's:
    the one that the arm is really in now. EdgeVLAError: it was not done, and the machine stays where it is.
    """

    def __call__(self, deed: str, reason: str, arguments: Arguments | None) -> NodeState | None: ...


@dataclass(frozen=True)
class Transition:
    """deed: a method of `Commands`, empty: nothing is to be done. to: None stays. refusal: why not, and nothing else."""

    deed: str = ""
    to: NodeState | None = None
    refusal: str = ""


STAY = Transition()
WHY_NOT = {
    NodeState.IDLE: "nothing was started yet",
    NodeState.RUNNING: "it runs",
    NodeState.HOLDING: "it holds, and goes on by itself",
    NodeState.PAUSED: "it is paused",
    NodeState.HOMING: "it moves home",
    NodeState.ENDING: "it is coming to rest",
    NodeState.EMERGENCY: "the emergency stop is latched; clear it first",
    NodeState.PARKED: "it is parked at reduced torque; start it again",
    NodeState.STOPPED: "it has stopped; start it again",
}
UNDER_WAY = (NodeState.RUNNING, NodeState.HOLDING, NodeState.PAUSED, NodeState.HOMING)
"""Torque is on, and somebody may move the arm."""


def _row(words: str, cells: Mapping[NodeState, Transition]) -> dict[NodeState, Transition]:
    """Every state that has no cell refuses, and says why. words: "cannot ..."."""
    return {s: cells.get(s, Transition(refusal=f"cannot {words}: {WHY_NOT[s]}")) for s in NodeState}


def _all(states: tuple[NodeState, ...], cell: Transition) -> dict[NodeState, Transition]:
    return dict.fromkeys(states, cell)


def _driven_by(deed: str) -> dict[NodeState, Transition]:
    """Whoever drives from now on begins at once; a paused arm stays so."""
    return _all((NodeState.RUNNING, NodeState.HOLDING), Transition(deed, NodeState.RUNNING)) | {
        NodeState.PAUSED: Transition(deed)
    }


_BEGIN = Transition("begin", NodeState.RUNNING)
_CHANGE = Transition("change_plan", NodeState.RUNNING)
_HALT = Transition("halt", NodeState.PAUSED)
_GO_HOME = Transition("go_home", NodeState.HOMING)
_REST = Transition("come_to_rest", NodeState.ENDING)
_HARM = Transition("give_up", NodeState.ENDING)
_WORSEN = Transition("worsen")
_FREEZE = Transition("freeze", NodeState.EMERGENCY)
_EVERYWHERE = _all(tuple(NodeState), STAY)

TABLE: dict[NodeEvent, dict[NodeState, Transition]] = {
    NodeEvent.START: _row(
        "start",
        _all((NodeState.IDLE, NodeState.STOPPED, NodeState.PARKED), _BEGIN) | {NodeState.PAUSED: _CHANGE},
    ),
    NodeEvent.PAUSE: _row(
        "pause",
        _all((NodeState.RUNNING, NodeState.HOLDING, NodeState.HOMING), _HALT) | {NodeState.PAUSED: STAY},
    ),
    NodeEvent.RESUME: _row(
        "resume", {NodeState.PAUSED: Transition("resume", NodeState.RUNNING), NodeState.RUNNING: STAY}
    ),
    NodeEvent.HOME: _row(
        "move home",
        _all((NodeState.RUNNING, NodeState.HOLDING, NodeState.PAUSED), _GO_HOME) | {NodeState.HOMING: STAY},
    ),
    NodeEvent.RESET: _row(
        "begin anew",
        _all((NodeState.RUNNING, NodeState.HOLDING), Transition("restart")) | {NodeState.PAUSED: STAY},
    ),
    NodeEvent.SET_TASK: _row("change the task", _all(UNDER_WAY, Transition("set_task"))),
    NodeEvent.SET_EXECUTION: _row("change the execution", _all(UNDER_WAY, Transition("set_execution"))),
    NodeEvent.LEAD: _row("follow the leader", _driven_by("lead")),
    NodeEvent.HAND_BACK: _row("follow the policy", _driven_by("hand_back")),
    NodeEvent.STOP: _row(
        "stop",
        _all(UNDER_WAY, _REST)
        | _all((NodeState.ENDING, NodeState.PARKED, NodeState.STOPPED), STAY)
        | {NodeState.IDLE: Transition(to=NodeState.STOPPED)},
    ),
    NodeEvent.EMERGENCY_STOP: _row(
        "freeze",
        _all((NodeState.IDLE, NodeState.PARKED, NodeState.STOPPED, *UNDER_WAY), _FREEZE)
        | {
            NodeState.ENDING: Transition("freeze_ending", NodeState.EMERGENCY),
            NodeState.EMERGENCY: Transition("let_go", NodeState.ENDING),
        },
    ),
    NodeEvent.CLEAR_STOP: {
        s: Transition(refusal="no emergency stop is latched")
        for s in NodeState
        if s is not NodeState.EMERGENCY
    }
    | {NodeState.EMERGENCY: Transition("unfreeze")},
    NodeEvent.NOBODY_LEFT: _EVERYWHERE | _all((*UNDER_WAY, NodeState.EMERGENCY), _HARM),
    NodeEvent.FAULT: _EVERYWHERE
    | _all((*UNDER_WAY, NodeState.EMERGENCY), _HARM)
    | {NodeState.ENDING: _WORSEN},
    NodeEvent.LINE_GONE: _EVERYWHERE
    | _all((*UNDER_WAY, NodeState.EMERGENCY), _HARM)
    | _all((NodeState.IDLE, NodeState.STOPPED), Transition("abandon", NodeState.STOPPED))
    | {NodeState.ENDING: _WORSEN},
    NodeEvent.CUT_OFF: _all(tuple(NodeState), Transition("abandon", NodeState.STOPPED)),
    NodeEvent.STALLED: _EVERYWHERE | {NodeState.RUNNING: Transition(to=NodeState.HOLDING)},
    NodeEvent.FLOWING: _EVERYWHERE | {NodeState.HOLDING: Transition(to=NodeState.RUNNING)},
    NodeEvent.ARRIVED: _EVERYWHERE | {NodeState.HOMING: Transition(to=NodeState.PAUSED)},
    NodeEvent.RELEASED: _EVERYWHERE
    | _all((NodeState.ENDING, NodeState.PARKED), Transition(to=NodeState.STOPPED)),
    NodeEvent.LEFT_PARKED: _EVERYWHERE | {NodeState.ENDING: Transition(to=NodeState.PARKED)},
}
LAST_EVENTS = (NodeEvent.NOBODY_LEFT, NodeEvent.LINE_GONE, NodeEvent.CUT_OFF)
"""After these nobody can start anything any more: the process ends with the arm at rest."""
LOSSES = (NodeEvent.LINE_GONE, NodeEvent.CUT_OFF)
MODES: dict[NodeState, Mode] = {
    NodeState.IDLE: "idle",
    NodeState.RUNNING: "running",
    NodeState.HOLDING: "holding",
    NodeState.PAUSED: "paused",
    NodeState.HOMING: "homing",
    NodeState.EMERGENCY: "emergency",
    NodeState.PARKED: "stopped",
    NodeState.STOPPED: "stopped",
}
"""As the wire has them; an ending is `emergency` while the stop is latched, else `stopped`."""


class StateMachine:
    """One state, changed by `fire` and by nothing else.

    do: carries out a deed of the table. tell: (mode on the wire, reason), called when either changes what is shown.
    """

    def __init__(self, do: Deeds, tell: Callable[[Mode, str], None]) -> None:
        self._do, self._tell = do, tell
        self._state, self._reason = NodeState.IDLE, "waiting for start"
        self._must_end, self._has_failed, self._is_latched = False, False, False

    @property
    def state(self) -> NodeState:
        return self._state

    @property
    def reason(self) -> str:
        """Why it is in this state, for people; may be empty."""
        return self._reason

    @property
    def must_end(self) -> bool:
        """Whether nobody is left who could start anything."""
        return self._must_end

    @property
    def has_failed(self) -> bool:
        return self._has_failed

    @property
    def is_latched(self) -> bool:
        """Whether an emergency stop was pressed and neither cleared nor ended."""
        return self._is_latched

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do for this process."""
        is_last = self._must_end or self._has_failed
        return is_last and self._state in (NodeState.IDLE, NodeState.STOPPED, NodeState.PARKED)

    @property
    def mode(self) -> Mode:
        """The state as the wire has it."""
        if self._state is NodeState.ENDING:
            return "emergency" if self._is_latched else "stopped"
        return MODES[self._state]

    def fire(self, event: NodeEvent, reason: str = "", arguments: Arguments | None = None) -> str:
        """Does what the table says. Why not, or an empty string.

        Raises:
            EdgeVLAError: the deed was refused or failed; the state is as it was.
        """
        cell = TABLE[event][self._state]
        if event is NodeEvent.START and self._must_end:  # it may have come with the news that nobody is left
            return "the robot's processes are ending"
        if cell.refusal:
            return cell.refusal
        self._must_end = self._must_end or event in LAST_EVENTS
        shown = self.mode
        became = self._do(cell.deed, reason, arguments) if cell.deed else None
        after = became or cell.to
        is_change = after is not None or bool(cell.deed)
        self._has_failed = self._has_failed or event in LOSSES or (event is NodeEvent.FAULT and is_change)
        if event is NodeEvent.START:
            self._has_failed = False
        if after is not None:
            self._is_latched = after is NodeState.EMERGENCY or (
                self._is_latched and after is NodeState.ENDING
            )
            self._state, self._reason = after, reason
        if self.mode != shown:
            self._tell(self.mode, self._reason)
        return ""

    def rename(self, reason: str) -> None:
        """Another reason for the same state, without an event: how long it has been holding."""
        self._reason = reason


def draw() -> str:
    """The table in Markdown: a row per event, a column per state; `-` is heard and changes nothing, `no` is refused."""

    def words(cell: Transition) -> str:
        if cell.refusal:
            return "no"
        to = "" if cell.to is None else f"→ {cell.to.value}"
        return " ".join(part for part in (cell.deed.replace("_", " "), to) if part) or "-"

    lines = ["| | " + " | ".join(s.value for s in NodeState) + " |", "| --- " * (len(NodeState) + 1) + "|"]
    lines += [
        f"| **{event.value}** | " + " | ".join(words(TABLE[event][s]) for s in NodeState) + " |"
        for event in NodeEvent
    ]
    return "\n".join(lines)
