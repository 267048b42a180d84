"""What a person's keys and the arm's news mean in each state of an evaluation: one table, and the machine that walks it.

      waiting <---- Enter ---- halted <--- ctrl+r --- frozen <--- e, from everywhere
       |  ^                       ^
       |  |                       +-- space: the arm stops on its way home
       v  |
      ready --Enter--> running --Enter, space, time is over--> asking --s, f--> waiting
       |  ^                |                                      |
       u  s f r u          +-- s, f: asks, and has its answer --->+
       v  |
     correcting                     finished: all is judged         gone: the deployment has ended

Nothing here knows a terminal, a clock or an arm: deeds are done by who owns the machine (`session.py`). Whatever was not
judged is void, and its turn comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from edgevla.errors import EdgeVLAError


class State(str, Enum):
    """WAITING: the arm moves home, a policy is loaded. READY: the person resets the scene. ASKING: the episode is over,
    the arm holds where it is. CORRECTING: the last verdict is looked at again. HALTED: held between two places."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    ASKING = "asking"
    CORRECTING = "correcting"
    HALTED = "halted"
    FROZEN = "frozen"
    GONE = "gone"
    FINISHED = "finished"
    OVER = "over"


class Event(str, Enum):
    """The first nine are keys; then what the arm, its processes and the clock have to say."""

    GO = "Enter"
    HOLD = "space"
    SUCCESS = "s"
    FAILURE = "f"
    UNDO = "u"
    AGAIN = "r"
    QUIT = "q"
    STOP = "e"
    CLEAR = "ctrl+r"
    SETTLED = "settled"
    UNSETTLED = "unsettled"
    ALL_JUDGED = "all judged"
    TIME_OVER = "time over"
    SPOILT = "spoilt"
    HELD = "held"
    FROZE = "froze"
    CLEARED = "cleared"
    LOST = "lost"


KEYS = (
    Event.GO,
    Event.HOLD,
    Event.SUCCESS,
    Event.FAILURE,
    Event.UNDO,
    Event.AGAIN,
    Event.QUIT,
    Event.STOP,
    Event.CLEAR,
)


@dataclass(frozen=True)
class Cell:
    """deeds: done in this order. to: None stays. refusal: why not, and nothing else. repeats: the same event is then
    judged in the new state."""

    deeds: tuple[str, ...] = ()
    to: State | None = None
    refusal: str = ""
    repeats: bool = False


def _no(words: str) -> Cell:
    return Cell(refusal=words)


STAY = Cell()
NO_EPISODE = "no episode waits for a verdict; u takes the last one back"
_LEAVE = Cell(("leave",), State.OVER)
_HALT = Cell(("halt",), State.ASKING)
_JUDGE_AT_ONCE = Cell(("halt",), State.ASKING, repeats=True)
_VOID = Cell(("halt", "void", "go_home"), State.WAITING)
_ABORT = Cell(("void", "leave"), State.OVER)
_FREEZE = Cell(("freeze",), State.FROZEN)
_FREEZE_EPISODE = Cell(("freeze", "void"), State.FROZEN)
_REST_OF_HOME = Cell(("halt",), State.HALTED)
_LOST = Cell(to=State.GONE)
_CORRECT = Cell(("look_back",), State.CORRECTING)
_FROZEN = _no("the emergency stop is latched: ctrl+r clears it, e lets the arm go, q ends")
_HALTED = _no("the arm holds where it is; Enter moves it home, q ends")
_GONE = _no("the deployment has ended; Enter starts it again, q ends")
_SAY = _no("was it a success? s or y: yes, f or n: no, u: it does not count")
_SAY_WHAT = _no("s or f: the verdict that is right, r: run it again, u: leave it as it was")
WAIT = "wait"
"""A refusal whose reason changes: what is waited for."""

TABLE: dict[State, dict[Event, Cell]] = {
    State.WAITING: {
        Event.GO: _no(WAIT),
        Event.HOLD: _REST_OF_HOME,
        Event.SUCCESS: _no(NO_EPISODE),
        Event.FAILURE: _no(NO_EPISODE),
        Event.UNDO: _CORRECT,
        Event.AGAIN: _no("r runs an episode again after u"),
        Event.QUIT: _LEAVE,
        Event.STOP: _FREEZE,
        Event.SETTLED: Cell(to=State.READY),
        Event.ALL_JUDGED: Cell(to=State.FINISHED),
        Event.FROZE: Cell(to=State.FROZEN),
        Event.LOST: _LOST,
    },
    State.READY: {
        Event.GO: Cell(("begin",), State.RUNNING),
        Event.HOLD: _no("the arm holds at home already; Enter begins the episode"),
        Event.SUCCESS: _no(NO_EPISODE),
        Event.FAILURE: _no(NO_EPISODE),
        Event.UNDO: _CORRECT,
        Event.AGAIN: _no("r runs an episode again after u"),
        Event.QUIT: _LEAVE,
        Event.STOP: _FREEZE,
        Event.UNSETTLED: Cell(to=State.WAITING),
        Event.FROZE: Cell(to=State.FROZEN),
        Event.LOST: _LOST,
    },
    State.RUNNING: {
        Event.GO: _HALT,
        Event.HOLD: _HALT,
        Event.SUCCESS: _JUDGE_AT_ONCE,
        Event.FAILURE: _JUDGE_AT_ONCE,
        Event.UNDO: _VOID,
        Event.AGAIN: _no("the episode runs; u takes it back"),
        Event.QUIT: _ABORT,
        Event.STOP: _FREEZE_EPISODE,
        Event.TIME_OVER: _HALT,
        Event.SPOILT: _VOID,
        Event.HELD: _HALT,
        Event.FROZE: Cell(("void",), State.FROZEN),
        Event.LOST: Cell(("void",), State.GONE),
    },
    State.ASKING: {
        Event.GO: _SAY,
        Event.HOLD: _SAY,
        Event.SUCCESS: Cell(("succeed", "go_home"), State.WAITING),
        Event.FAILURE: Cell(("fail", "go_home"), State.WAITING),
        Event.UNDO: Cell(("void", "go_home"), State.WAITING),
        Event.AGAIN: _SAY,
        Event.QUIT: _ABORT,
        Event.STOP: _FREEZE_EPISODE,
        Event.FROZE: Cell(("void",), State.FROZEN),
        Event.LOST: Cell(("void",), State.GONE),
    },
    State.CORRECTING: {
        Event.GO: _SAY_WHAT,
        Event.HOLD: _REST_OF_HOME,
        Event.SUCCESS: Cell(("correct_to_success",), State.WAITING),
        Event.FAILURE: Cell(("correct_to_failure",), State.WAITING),
        Event.UNDO: Cell(to=State.WAITING),
        Event.AGAIN: Cell(("take_back",), State.WAITING),
        Event.QUIT: _LEAVE,
        Event.STOP: _FREEZE,
        Event.FROZE: Cell(to=State.FROZEN),
        Event.LOST: _LOST,
    },
    State.HALTED: {
        **dict.fromkeys(KEYS, _HALTED),
        Event.GO: Cell(("go_home",), State.WAITING),
        Event.QUIT: _LEAVE,
        Event.STOP: _FREEZE,
        Event.FROZE: Cell(to=State.FROZEN),
        Event.LOST: _LOST,
    },
    State.FROZEN: {
        **dict.fromkeys(KEYS, _FROZEN),
        Event.CLEAR: Cell(("clear",), State.HALTED),
        Event.QUIT: _LEAVE,
        Event.STOP: Cell(("freeze",)),
        Event.CLEARED: Cell(to=State.HALTED),
        Event.HELD: Cell(to=State.HALTED),
        Event.LOST: _LOST,
    },
    State.GONE: {
        **dict.fromkeys(KEYS, _GONE),
        Event.GO: Cell(("start_again",), State.WAITING),
        Event.QUIT: _LEAVE,
    },
    State.FINISHED: {
        **dict.fromkeys(KEYS, _no("all episodes are judged; Enter ends, u takes the last verdict back")),
        Event.GO: _LEAVE,
        Event.UNDO: _CORRECT,
        Event.QUIT: _LEAVE,
        Event.STOP: _FREEZE,
        Event.UNSETTLED: Cell(to=State.WAITING),
        Event.FROZE: Cell(to=State.FROZEN),
        Event.LOST: _LEAVE,
    },
    State.OVER: dict.fromkeys(KEYS, _no("the evaluation ends")),
}
for _state, _row in TABLE.items():
    if _state not in (State.FROZEN, State.OVER, State.GONE):
        _row.setdefault(Event.CLEAR, _no("no emergency stop is latched"))


class Flow:
    """do: carries out a deed; EdgeVLAError or OSError: it was not done, and the state stays. waits_for: in words."""

    def __init__(self, do: Callable[[str], None], waits_for: Callable[[], str]) -> None:
        self._do, self._waits_for = do, waits_for
        self.state = State.WAITING

    def fire(self, event: Event) -> str:
        """Does what the table says. Why not, or an empty string; news that mean nothing here change nothing."""
        cell = TABLE[self.state].get(event, STAY)
        if cell.refusal:
            return self._waits_for() if cell.refusal == WAIT else cell.refusal
        try:
            for deed in cell.deeds:
                self._do(deed)
        except EdgeVLAError as error:
            return str(error)
        except OSError as error:
            return (
                f"{error.filename or 'the disk'}: {error.strerror}; make room there, then press the key again"
            )
        self.state = cell.to or self.state
        return self.fire(event) if cell.repeats else ""


def draw(table: Mapping[State, Mapping[Event, Cell]] = TABLE) -> str:
    """The table in Markdown: a row per key, a column per state; `-` is heard and changes nothing, `no` is refused."""
    states = [state for state in State if state is not State.OVER]

    def words(state: State, event: Event) -> str:
        cell = table[state].get(event, STAY)
        if cell.refusal:
            return "no"
        to = "" if cell.to is None else f"→ {cell.to.value}"
        deeds = ", ".join(deed.replace("_", " ") for deed in cell.deeds)
        judged = " and judge" if cell.repeats else ""
        return " ".join(part for part in (deeds + judged, to) if part) or "-"

    lines = ["| | " + " | ".join(s.value for s in states) + " |", "| --- " * (len(states) + 1) + "|"]
    lines += [f"| **{key.value}** | " + " | ".join(words(s, key) for s in states) + " |" for key in KEYS]
    return "\n".join(lines)
