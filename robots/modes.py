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


class State(str, Enum):
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


class Event(str, Enum):
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

    def __call__(self, deed: str, reason: str, arguments: Arguments | None) -> State | None: ...


@dataclass(frozen=True)
class Cell:
    """deed: a method of `Commands`, empty: nothing is to be done. to: None stays. refusal: why not, and nothing else."""

    deed: str = ""
    to: State | None = None
    refusal: str = ""


STAY = Cell()
WHY_NOT = {
    State.IDLE: "nothing was started yet",
    State.RUNNING: "it runs",
    State.HOLDING: "it holds, and goes on by itself",
    State.PAUSED: "it is paused",
    State.HOMING: "it moves home",
    State.ENDING: "it is coming to rest",
    State.EMERGENCY: "the emergency stop is latched; clear it first",
    State.PARKED: "it is parked at reduced torque; start it again",
    State.STOPPED: "it has stopped; start it again",
}
UNDER_WAY = (State.RUNNING, State.HOLDING, State.PAUSED, State.HOMING)
"""Torque is on, and somebody may move the arm."""


def _row(words: str, cells: Mapping[State, Cell]) -> dict[State, Cell]:
    """Every state that has no cell refuses, and says why. words: "cannot ..."."""
    return {s: cells.get(s, Cell(refusal=f"cannot {words}: {WHY_NOT[s]}")) for s in State}


def _all(states: tuple[State, ...], cell: Cell) -> dict[State, Cell]:
    return dict.fromkeys(states, cell)


def _driven_by(deed: str) -> dict[State, Cell]:
    """Whoever drives from now on begins at once; a paused arm stays so."""
    return _all((State.RUNNING, State.HOLDING), Cell(deed, State.RUNNING)) | {State.PAUSED: Cell(deed)}


_BEGIN = Cell("begin", State.RUNNING)
_CHANGE = Cell("change_plan", State.RUNNING)
_HALT = Cell("halt", State.PAUSED)
_GO_HOME = Cell("go_home", State.HOMING)
_REST = Cell("come_to_rest", State.ENDING)
_HARM = Cell("give_up", State.ENDING)
_WORSEN = Cell("worsen")
_FREEZE = Cell("freeze", State.EMERGENCY)
_EVERYWHERE = _all(tuple(State), STAY)

TABLE: dict[Event, dict[State, Cell]] = {
    Event.START: _row(
        "start", _all((State.IDLE, State.STOPPED, State.PARKED), _BEGIN) | {State.PAUSED: _CHANGE}
    ),
    Event.PAUSE: _row(
        "pause", _all((State.RUNNING, State.HOLDING, State.HOMING), _HALT) | {State.PAUSED: STAY}
    ),
    Event.RESUME: _row("resume", {State.PAUSED: Cell("resume", State.RUNNING), State.RUNNING: STAY}),
    Event.HOME: _row(
        "move home", _all((State.RUNNING, State.HOLDING, State.PAUSED), _GO_HOME) | {State.HOMING: STAY}
    ),
    Event.RESET: _row(
        "begin anew", _all((State.RUNNING, State.HOLDING), Cell("restart")) | {State.PAUSED: STAY}
    ),
    Event.SET_TASK: _row("change the task", _all(UNDER_WAY, Cell("set_task"))),
    Event.SET_EXECUTION: _row("change the execution", _all(UNDER_WAY, Cell("set_execution"))),
    Event.LEAD: _row("follow the leader", _driven_by("lead")),
    Event.HAND_BACK: _row("follow the policy", _driven_by("hand_back")),
    Event.STOP: _row(
        "stop",
        _all(UNDER_WAY, _REST)
        | _all((State.ENDING, State.PARKED, State.STOPPED), STAY)
        | {State.IDLE: Cell(to=State.STOPPED)},
    ),
    Event.EMERGENCY_STOP: _row(
        "freeze",
        _all((State.IDLE, State.PARKED, State.STOPPED, *UNDER_WAY), _FREEZE)
        | {
            State.ENDING: Cell("freeze_ending", State.EMERGENCY),
            State.EMERGENCY: Cell("let_go", State.ENDING),
        },
    ),
    Event.CLEAR_STOP: {
        s: Cell(refusal="no emergency stop is latched") for s in State if s is not State.EMERGENCY
    }
    | {State.EMERGENCY: Cell("unfreeze")},
    Event.NOBODY_LEFT: _EVERYWHERE | _all((*UNDER_WAY, State.EMERGENCY), _HARM),
    Event.FAULT: _EVERYWHERE | _all((*UNDER_WAY, State.EMERGENCY), _HARM) | {State.ENDING: _WORSEN},
    Event.LINE_GONE: _EVERYWHERE
    | _all((*UNDER_WAY, State.EMERGENCY), _HARM)
    | _all((State.IDLE, State.STOPPED), Cell("abandon", State.STOPPED))
    | {State.ENDING: _WORSEN},
    Event.CUT_OFF: _all(tuple(State), Cell("abandon", State.STOPPED)),
    Event.STALLED: _EVERYWHERE | {State.RUNNING: Cell(to=State.HOLDING)},
    Event.FLOWING: _EVERYWHERE | {State.HOLDING: Cell(to=State.RUNNING)},
    Event.ARRIVED: _EVERYWHERE | {State.HOMING: Cell(to=State.PAUSED)},
    Event.RELEASED: _EVERYWHERE | _all((State.ENDING, State.PARKED), Cell(to=State.STOPPED)),
    Event.LEFT_PARKED: _EVERYWHERE | {State.ENDING: Cell(to=State.PARKED)},
}
LAST_EVENTS = (Event.NOBODY_LEFT, Event.LINE_GONE, Event.CUT_OFF)
"""After these nobody can start anything any more: the process ends with the arm at rest."""
LOSSES = (Event.LINE_GONE, Event.CUT_OFF)
MODES: dict[State, Mode] = {
    State.IDLE: "idle",
    State.RUNNING: "running",
    State.HOLDING: "holding",
    State.PAUSED: "paused",
    State.HOMING: "homing",
    State.EMERGENCY: "emergency",
    State.PARKED: "stopped",
    State.STOPPED: "stopped",
}
"""As the wire has them; an ending is `emergency` while the stop is latched, else `stopped`."""


class Machine:
    """One state, changed by `fire` and by nothing else.

    do: carries out a deed of the table. tell: (mode on the wire, reason), called when either changes what is shown.
    """

    def __init__(self, do: Deeds, tell: Callable[[Mode, str], None]) -> None:
        self._do, self._tell = do, tell
        self._state, self._reason = State.IDLE, "waiting for start"
        self._must_end, self._has_failed, self._is_latched = False, False, False

    @property
    def state(self) -> State:
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
        return is_last and self._state in (State.IDLE, State.STOPPED, State.PARKED)

    @property
    def mode(self) -> Mode:
        """The state as the wire has it."""
        if self._state is State.ENDING:
            return "emergency" if self._is_latched else "stopped"
        return MODES[self._state]

    def fire(self, event: Event, reason: str = "", arguments: Arguments | None = None) -> str:
        """Does what the table says. Why not, or an empty string.

        Raises:
            EdgeVLAError: the deed was refused or failed; the state is as it was.
        """
        cell = TABLE[event][self._state]
        if event is Event.START and self._must_end:  # it may have come with the news that nobody is left
            return "the robot's processes are ending"
        if cell.refusal:
            return cell.refusal
        self._must_end = self._must_end or event in LAST_EVENTS
        shown = self.mode
        became = self._do(cell.deed, reason, arguments) if cell.deed else None
        after = became or cell.to
        is_change = after is not None or bool(cell.deed)
        self._has_failed = self._has_failed or event in LOSSES or (event is Event.FAULT and is_change)
        if event is Event.START:
            self._has_failed = False
        if after is not None:
            self._is_latched = after is State.EMERGENCY or (self._is_latched and after is State.ENDING)
            self._state, self._reason = after, reason
        if self.mode != shown:
            self._tell(self.mode, self._reason)
        return ""

    def rename(self, reason: str) -> None:
        """Another reason for the same state, without an event: how long it has been holding."""
        self._reason = reason


def draw() -> str:
    """The table in Markdown: a row per event, a column per state; `-` is heard and changes nothing, `no` is refused."""

    def words(cell: Cell) -> str:
        if cell.refusal:
            return "no"
        to = "" if cell.to is None else f"→ {cell.to.value}"
        return " ".join(part for part in (cell.deed.replace("_", " "), to) if part) or "-"

    lines = ["| | " + " | ".join(s.value for s in State) + " |", "| --- " * (len(State) + 1) + "|"]
    lines += [
        f"| **{event.value}** | " + " | ".join(words(TABLE[event][s]) for s in State) + " |"
        for event in Event
    ]
    return "\n".join(lines)
