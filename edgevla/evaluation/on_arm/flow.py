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


class FlowState(str, Enum):
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


class FlowEvent(str, Enum):
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
    FlowEvent.GO,
    FlowEvent.HOLD,
    FlowEvent.SUCCESS,
    FlowEvent.FAILURE,
    FlowEvent.UNDO,
    FlowEvent.AGAIN,
    FlowEvent.QUIT,
    FlowEvent.STOP,
    FlowEvent.CLEAR,
)


@dataclass(frozen=True)
class FlowTransition:
    """deeds: done in this order. to: None stays. refusal: why not, and nothing else. repeats: the same event is then
    judged in the new state."""

    deeds: tuple[str, ...] = ()
    to: FlowState | None = None
    refusal: str = ""
    repeats: bool = False


def _no(words: str) -> FlowTransition:
    return FlowTransition(refusal=words)


STAY = FlowTransition()
NO_EPISODE = "no episode waits for a verdict; u takes the last one back"
_LEAVE = FlowTransition(("leave",), FlowState.OVER)
_HALT = FlowTransition(("halt",), FlowState.ASKING)
_JUDGE_AT_ONCE = FlowTransition(("halt",), FlowState.ASKING, repeats=True)
_VOID = FlowTransition(("halt", "void", "go_home"), FlowState.WAITING)
_ABORT = FlowTransition(("void", "leave"), FlowState.OVER)
_FREEZE = FlowTransition(("freeze",), FlowState.FROZEN)
_FREEZE_EPISODE = FlowTransition(("freeze", "void"), FlowState.FROZEN)
_REST_OF_HOME = FlowTransition(("halt",), FlowState.HALTED)
_LOST = FlowTransition(to=FlowState.GONE)
_CORRECT = FlowTransition(("look_back",), FlowState.CORRECTING)
_FROZEN = _no("the emergency stop is latched: ctrl+r clears it, e lets the arm go, q ends")
_HALTED = _no("the arm holds where it is; Enter moves it home, q ends")
_GONE = _no("the deployment has ended; Enter starts it again, q ends")
_SAY = _no("was it a success? s or y: yes, f or n: no, u: it does not count")
_SAY_WHAT = _no("s or f: the verdict that is right, r: run it again, u: leave it as it was")
WAIT = "wait"
"""A refusal whose reason changes: what is waited for."""

TABLE: dict[FlowState, dict[FlowEvent, FlowTransition]] = {
    FlowState.WAITING: {
        FlowEvent.GO: _no(WAIT),
        FlowEvent.HOLD: _REST_OF_HOME,
        FlowEvent.SUCCESS: _no(NO_EPISODE),
        FlowEvent.FAILURE: _no(NO_EPISODE),
        FlowEvent.UNDO: _CORRECT,
        FlowEvent.AGAIN: _no("r runs an episode again after u"),
        FlowEvent.QUIT: _LEAVE,
        FlowEvent.STOP: _FREEZE,
        FlowEvent.SETTLED: FlowTransition(to=FlowState.READY),
        FlowEvent.ALL_JUDGED: FlowTransition(to=FlowState.FINISHED),
        FlowEvent.FROZE: FlowTransition(to=FlowState.FROZEN),
        FlowEvent.LOST: _LOST,
    },
    FlowState.READY: {
        FlowEvent.GO: FlowTransition(("begin",), FlowState.RUNNING),
        FlowEvent.HOLD: _no("the arm holds at home already; Enter begins the episode"),
        FlowEvent.SUCCESS: _no(NO_EPISODE),
        FlowEvent.FAILURE: _no(NO_EPISODE),
        FlowEvent.UNDO: _CORRECT,
        FlowEvent.AGAIN: _no("r runs an episode again after u"),
        FlowEvent.QUIT: _LEAVE,
        FlowEvent.STOP: _FREEZE,
        FlowEvent.UNSETTLED: FlowTransition(to=FlowState.WAITING),
        FlowEvent.FROZE: FlowTransition(to=FlowState.FROZEN),
        FlowEvent.LOST: _LOST,
    },
    FlowState.RUNNING: {
        FlowEvent.GO: _HALT,
        FlowEvent.HOLD: _HALT,
        FlowEvent.SUCCESS: _JUDGE_AT_ONCE,
        FlowEvent.FAILURE: _JUDGE_AT_ONCE,
        FlowEvent.UNDO: _VOID,
        FlowEvent.AGAIN: _no("the episode runs; u takes it back"),
        FlowEvent.QUIT: _ABORT,
        FlowEvent.STOP: _FREEZE_EPISODE,
        FlowEvent.TIME_OVER: _HALT,
        FlowEvent.SPOILT: _VOID,
        FlowEvent.HELD: _HALT,
        FlowEvent.FROZE: FlowTransition(("void",), FlowState.FROZEN),
        FlowEvent.LOST: FlowTransition(("void",), FlowState.GONE),
    },
    FlowState.ASKING: {
        FlowEvent.GO: _SAY,
        FlowEvent.HOLD: _SAY,
        FlowEvent.SUCCESS: FlowTransition(("succeed", "go_home"), FlowState.WAITING),
        FlowEvent.FAILURE: FlowTransition(("fail", "go_home"), FlowState.WAITING),
        FlowEvent.UNDO: FlowTransition(("void", "go_home"), FlowState.WAITING),
        FlowEvent.AGAIN: _SAY,
        FlowEvent.QUIT: _ABORT,
        FlowEvent.STOP: _FREEZE_EPISODE,
        FlowEvent.FROZE: FlowTransition(("void",), FlowState.FROZEN),
        FlowEvent.LOST: FlowTransition(("void",), FlowState.GONE),
    },
    FlowState.CORRECTING: {
        FlowEvent.GO: _SAY_WHAT,
        FlowEvent.HOLD: _REST_OF_HOME,
        FlowEvent.SUCCESS: FlowTransition(("correct_to_success",), FlowState.WAITING),
        FlowEvent.FAILURE: FlowTransition(("correct_to_failure",), FlowState.WAITING),
        FlowEvent.UNDO: FlowTransition(to=FlowState.WAITING),
        FlowEvent.AGAIN: FlowTransition(("take_back",), FlowState.WAITING),
        FlowEvent.QUIT: _LEAVE,
        FlowEvent.STOP: _FREEZE,
        FlowEvent.FROZE: FlowTransition(to=FlowState.FROZEN),
        FlowEvent.LOST: _LOST,
    },
    FlowState.HALTED: {
        **dict.fromkeys(KEYS, _HALTED),
        FlowEvent.GO: FlowTransition(("go_home",), FlowState.WAITING),
        FlowEvent.QUIT: _LEAVE,
        FlowEvent.STOP: _FREEZE,
        FlowEvent.FROZE: FlowTransition(to=FlowState.FROZEN),
        FlowEvent.LOST: _LOST,
    },
    FlowState.FROZEN: {
        **dict.fromkeys(KEYS, _FROZEN),
        FlowEvent.CLEAR: FlowTransition(("clear",), FlowState.HALTED),
        FlowEvent.QUIT: _LEAVE,
        FlowEvent.STOP: FlowTransition(("freeze",)),
        FlowEvent.CLEARED: FlowTransition(to=FlowState.HALTED),
        FlowEvent.HELD: FlowTransition(to=FlowState.HALTED),
        FlowEvent.LOST: _LOST,
    },
    FlowState.GONE: {
        **dict.fromkeys(KEYS, _GONE),
        FlowEvent.GO: FlowTransition(("start_again",), FlowState.WAITING),
        FlowEvent.QUIT: _LEAVE,
    },
    FlowState.FINISHED: {
        **dict.fromkeys(KEYS, _no("all episodes are judged; Enter ends, u takes the last verdict back")),
        FlowEvent.GO: _LEAVE,
        FlowEvent.UNDO: _CORRECT,
        FlowEvent.QUIT: _LEAVE,
        FlowEvent.STOP: _FREEZE,
        FlowEvent.UNSETTLED: FlowTransition(to=FlowState.WAITING),
        FlowEvent.FROZE: FlowTransition(to=FlowState.FROZEN),
        FlowEvent.LOST: _LEAVE,
    },
    FlowState.OVER: dict.fromkeys(KEYS, _no("the evaluation ends")),
}
for _state, _row in TABLE.items():
    if _state not in (FlowState.FROZEN, FlowState.OVER, FlowState.GONE):
        _row.setdefault(FlowEvent.CLEAR, _no("no emergency stop is latched"))


class Flow:
    """do: carries out a deed; EdgeVLAError or OSError: it was not done, and the state stays. waits_for: in words."""

    def __init__(self, do: Callable[[str], None], waits_for: Callable[[], str]) -> None:
        self._do, self._waits_for = do, waits_for
        self.state = FlowState.WAITING

    def fire(self, event: FlowEvent) -> str:
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


def draw(table: Mapping[FlowState, Mapping[FlowEvent, FlowTransition]] = TABLE) -> str:
    """The table in Markdown: a row per key, a column per state; `-` is heard and changes nothing, `no` is refused."""
    states = [state for state in FlowState if state is not FlowState.OVER]

    def words(state: FlowState, event: FlowEvent) -> str:
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
