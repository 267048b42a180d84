"""The evaluation itself: the flow's deeds, in one loop over keys, news and the clock.

    step:  listen to stage  ->  what the arm says  ->  the time  ->  ready?  ->  the person's keys  ->  tell what is new

A session outlives deployments: one that dies takes at most the open episode with it, and `attach` gives it the next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol

from edgevla.errors import UsageError
from edgevla.evaluation.on_arm.flow import Flow, FlowEvent, FlowState
from edgevla.evaluation.on_arm.journal import Journal
from edgevla.evaluation.on_arm.keys import Pressed
from edgevla.evaluation.on_arm.measures import Measures
from edgevla.evaluation.on_arm.rounds import Attempt, Rounds
from edgevla.messages import Action

NS = 1e9
LEARNT = 2
"""So many episodes tell how long one takes, with all that is around it."""


class StageLike(Protocol):
    """What a session needs of the running deployment (`stage.py`)."""

    mode: str
    is_home: bool
    spoilt: str
    measures: Measures | None
    counters: Mapping[str, int]

    def command(self, action: Action) -> None: ...
    def begin(self) -> None:
        """The policy drives from here on."""
        ...

    def freeze(self) -> None:
        """The arm stands still, under torque."""
        ...

    def want(self, policy: int) -> None:
        """Brings the policy of that number, while the arm stands still."""
        ...

    def step(self) -> None: ...
    def news(self) -> FlowEvent | None:
        """The next thing that happened, or None."""
        ...

    def missing(self) -> str:
        """What is not ready yet, in words; empty: nothing."""
        ...

    def reset_world(self, episode: int) -> None:
        """Puts a simulated world to the beginning of an episode; on a real arm a person does."""
        ...

    def verdict(self) -> dict[str, Any] | None: ...


class RolloutsLike(Protocol):
    """What it needs of the recorder (`rollouts.py`)."""

    def step(self, now_ns: int) -> None: ...
    def begin(self) -> None:
        """Records from here on."""
        ...

    def rest(self) -> None:
        """Records no more; the episode may still be kept or dropped."""
        ...

    def save(self) -> int | None:
        """Keeps the episode; its number, or None where there is none."""
        ...

    def drop(self) -> None:
        """Forgets the episode."""
        ...


Say = Callable[[str, str], None]
"""(severity, sentence) -> shown to the person."""


class ArmSession:
    """seconds: of an episode, at most. ring: a sound that the person hears, both hands full."""

    def __init__(
        self,
        journal: Journal,
        rounds: Rounds,
        seconds: float,
        say: Say,
        *,
        ring: Callable[[], None] = lambda: None,
        is_simulated: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.journal, self.rounds, self._seconds = journal, rounds, seconds
        self._say, self._ring, self._clock = say, ring, clock
        self._is_simulated = is_simulated
        self.flow = Flow(lambda deed: getattr(self, f"_{deed}")(), self._waits_for)
        self.stage: StageLike | None = None
        self.rollouts: RolloutsLike | None = None
        self.must_start = False
        """Whether the person wants another deployment after one that has ended."""
        self._told: FlowState | None = None
        self._why = ""
        self._is_open = False
        self._began_ns = self._halted_ns = 0
        self._unsaved: int | None = None
        """Verdict whose rollout is saved when the arm is at home: saving takes a moment."""
        self._periods_ns: list[int] = []
        self._last_judged_ns = 0

    # -- deployments come and go -------------------------------------------------------------------------------------

    def attach(self, stage: StageLike, rollouts: RolloutsLike) -> None:
        """Another deployment, its arm held: it goes home first."""
        self.stage, self.rollouts, self.must_start = stage, rollouts, False
        self.flow.state, self._told = FlowState.WAITING, None
        self._go_home()

    def detach(self, why: str) -> None:
        """The deployment ends, or has ended: what runs is void."""
        self._save_rollout()
        self._why = why
        self._void()
        self.stage = self.rollouts = None

    def lose(self) -> None:
        """It has ended though nobody asked: what now is the person's to say."""
        self.must_start = False
        self.flow.fire(FlowEvent.LOST)

    @property
    def is_complete(self) -> bool:
        """Whether every turn has its verdict."""
        return self.turn is None

    @property
    def turn(self) -> Attempt | None:
        """The next one; None: all are judged."""
        return next(iter(self._left_turns()), None)

    @property
    def n_left(self) -> int:
        """Turns without a verdict."""
        return len(self._left_turns())

    def _left_turns(self) -> list[Attempt]:
        done = self.journal.verdicts
        return [t for t in self.rounds.turns() if (t.round, t.place) not in done]

    # -- the loop ------------------------------------------------------------------------------------------------------

    def step(self, pressed: Sequence[Pressed]) -> bool:
        """One turn; whether the deployment shall end."""
        now_ns = self._clock()
        if self.stage is not None and self.rollouts is not None:
            self.stage.step()
            self.rollouts.step(now_ns)
            self._hear(self.stage)
            self._settle(self.stage)
        self._tell()
        for event, notice in pressed:
            self._press(event, notice)
            self._tell()
        return self.flow.state is FlowState.OVER

    def _hear(self, stage: StageLike) -> None:
        if (news := stage.news()) is not None:
            self._why = "the emergency stop was pressed"
            self.flow.fire(news)
        if self.flow.state is FlowState.RUNNING:
            if stage.spoilt:
                self._why = stage.spoilt
                self.flow.fire(FlowEvent.SPOILT)
            elif self._clock() - self._began_ns >= self._seconds * NS:
                self.flow.fire(FlowEvent.TIME_OVER)

    def _settle(self, stage: StageLike) -> None:
        """Whether the next episode may begin: the arm at home, its policy there, the last rollout saved."""
        turn = self.turn
        if self.flow.state is FlowState.WAITING and turn is not None:
            stage.want(turn.policy)
        if self.flow.state in (FlowState.WAITING, FlowState.READY, FlowState.FINISHED) and stage.is_home:
            self._save_rollout()
        is_settled = stage.is_home and not (turn and stage.missing())
        if not is_settled or (self.flow.state is FlowState.FINISHED and turn is not None):
            self.flow.fire(FlowEvent.UNSETTLED)
        elif turn is None:
            self.flow.fire(FlowEvent.ALL_JUDGED)
        else:
            self.flow.fire(FlowEvent.SETTLED)

    def _press(self, event: FlowEvent | None, notice: str) -> None:
        if event is not None:
            self._why = f"key {event.value}"
            notice = self.flow.fire(event)
        if notice:
            self._say("warning", notice)

    def _waits_for(self) -> str:
        assert self.stage is not None
        if not self.stage.is_home:
            return "the arm is still moving home; Enter when it is there"
        return f"{self.stage.missing() or 'not ready yet'}; Enter when it is there"

    # -- deeds --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self.stage is not None
        assert self.rollouts is not None
        turn = self._turn()
        self.stage.reset_world(turn.round)
        self.rollouts.begin()
        self.stage.begin()
        self._is_open, self._began_ns = True, self._clock()

    def _halt(self) -> None:
        """The arm holds where it is; what it does from here on is nobody's."""
        assert self.stage is not None
        assert self.rollouts is not None
        self._halted_ns = self._clock()
        self.rollouts.rest()
        self.stage.command("pause")

    def _go_home(self) -> None:
        assert self.stage is not None
        self.stage.command("home")

    def _freeze(self) -> None:
        assert self.stage is not None
        self.stage.freeze()

    def _clear(self) -> None:
        assert self.stage is not None
        self.stage.command("clear_stop")

    def _leave(self) -> None:
        """The supervisor brings the arm to rest."""

    def _start_again(self) -> None:
        self.must_start = True

    def _succeed(self) -> None:
        self._judge(True)

    def _fail(self) -> None:
        self._judge(False)

    def _judge(self, success: bool) -> None:
        if not self._is_open:
            raise UsageError("this episode is judged already; u takes it back")
        turn, stage = self._turn(), self.stage
        figures = (
            stage.measures.figures(stage.counters) if stage is not None and stage.measures is not None else {}
        )
        seconds = (self._halted_ns - self._began_ns) / NS
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        simulated = None if stage is None else stage.verdict()
        made = self.journal.judge((turn.round, turn.place), success, seconds, at, figures, simulated)
        self._is_open, self._unsaved = False, made.verdict
        self._say("info", f"{self._name(turn)}: {_word(success)} after {seconds:.1f} s; u takes it back")
        if simulated is not None:
            said = bool(simulated["is_success"])
            agrees = "says so, too" if said == success else f"says {_word(said)}"
            self._say("info", f"the simulated world's judge {agrees} ({simulated['outcome']})")
        now = self._clock()
        self._periods_ns += [now - self._last_judged_ns] if self._last_judged_ns else []
        self._last_judged_ns = now

    def _void(self) -> None:
        """It does not count; its turn comes again."""
        if not self._is_open:
            return
        self._is_open = False
        if self.rollouts is not None:
            self.rollouts.drop()
        turn = self._turn()
        with contextlib.suppress(OSError):  # what is not there is not judged either
            self.journal.void((turn.round, turn.place), self._why)
        self._say("warning", f"{self._name(turn)} does not count ({self._why}); it is run again")

    def _look_back(self) -> None:
        if self.journal.last is None:
            raise UsageError("no episode was judged yet")

    def _correct_to_success(self) -> None:
        self._correct(True)

    def _correct_to_failure(self) -> None:
        self._correct(False)

    def _correct(self, success: bool) -> None:
        made = self.journal.correct(success)
        self._say("info", f"{self._place(made.round, made.place)}: now {_word(success)}")

    def _take_back(self) -> None:
        taken = self.journal.take_back()
        if self._unsaved == taken.verdict and self.rollouts is not None:
            self.rollouts.drop()
            self._unsaved = None
        self._say("info", f"{self._place(taken.round, taken.place)} is run again")

    def _save_rollout(self) -> None:
        verdict, self._unsaved = self._unsaved, None
        if verdict is None or self.rollouts is None:
            return
        episode = self.rollouts.save()
        if episode is not None:
            try:
                self.journal.keep_rollout(verdict, episode)
            except OSError as error:
                self._say(
                    "error",
                    f"{error.filename}: {error.strerror}; the rollout lies in the dataset as {episode}",
                )

    # -- what the person sees ------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        state = self.flow.state
        if state is self._told:
            return
        self._told = state
        if text := self._words(state):
            self._say("info", text)
        if state in (FlowState.READY, FlowState.ASKING, FlowState.GONE, FlowState.FINISHED):
            self._ring()

    def _words(self, state: FlowState) -> str:
        if state is FlowState.READY:
            return self._prompt()
        if state is FlowState.WAITING:
            return "the arm moves home" if self.stage is not None and not self.stage.is_home else ""
        if state is FlowState.ASKING:
            over = (self._halted_ns - self._began_ns) / NS >= self._seconds
            why = f"{self._seconds:g} s are over" if over else "held"
            return f"{why}, the arm holds. Success? s or y: yes, f or n: no, u: it does not count"
        if state is FlowState.CORRECTING:
            last = self.journal.last
            assert last is not None
            what = f"{self._place(last.round, last.place)} was judged {_word(last.success)}"
            return f"{what}. s: success, f: failure, r: run it again, u: leave it as it is"
        return {
            FlowState.RUNNING: f"it runs, at most {self._seconds:g} s. s: success, f: failure, Enter: hold, e: stop",
            FlowState.HALTED: "the arm holds where it is; Enter moves it home, q ends",
            FlowState.FROZEN: "EMERGENCY STOP: the arm is frozen. ctrl+r clears it, e again lets the arm go, q ends",
            FlowState.FINISHED: "all episodes are judged. Enter ends, u takes the last verdict back",
            FlowState.OVER: "ending: the arm moves to rest and is released" if self.stage is not None else "",
        }.get(state, "")

    def _prompt(self) -> str:
        turn = self._turn()
        how = "put everything back"
        if self.rounds.n_policies > 1:
            first = "put everything to its place, and remember it"
            how = first if turn.place == 0 else "put everything back exactly as it was for the first policy"
        if self._is_simulated:
            how = "the world puts its things to their places"
        return f"{self._name(turn)}: {how}; Enter when ready{self._left()}"

    def _left(self) -> str:
        """How long it will take, by how long it has taken."""
        if len(self._periods_ns) < LEARNT:
            return ""
        minutes = self.n_left * sum(self._periods_ns) / len(self._periods_ns) / NS / 60
        return f" ({self.n_left} left, about {max(1, round(minutes))} min)"

    def _turn(self) -> Attempt:
        turn = self.turn
        assert turn is not None
        return turn

    def _name(self, turn: Attempt) -> str:
        return self._place(turn.round, turn.place)

    def _place(self, number: int, place: int) -> str:
        if self.rounds.n_policies == 1:
            return f"episode {number + 1} of {self.rounds.n}"
        return f"round {number + 1} of {self.rounds.n}, {('first', 'second')[place]} policy"


def _word(success: bool) -> str:
    return "success" if success else "failure"
