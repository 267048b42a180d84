"""How a deployment is asked to end: presses of Ctrl-C, SIGTERM, a terminal that closes. And what it does not do when
asked: stop where it is while the arm goes on moving (Ctrl-Z, a job in the background that wants the terminal)."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

from edgevla.nodes.vitals import ENDS
from edgevla.presses import Presses

ONE_PRESS_NS = 150_000_000
"""A wrapper passes the Ctrl-C on that came to the whole terminal: the same press by another way, milliseconds later."""
REFUSED = (
    "Ctrl-Z is refused: the arm would go on moving with nobody to watch it. Ctrl-C stops in order; the monitor's "
    "space key pauses"
)


TO_REST = "the arm moves to rest and is released"
NOT_ON = "the arm has not been switched on"
SHADOW = "SHADOW: nothing is sent to the arm; in thought"
LED_SHADOW = "SHADOW: the leader moves the arm, gone to slowly first; in thought"
UNTOUCHED = "the arm was never touched, and is as it is"


class Steps:
    """The steps of Ctrl-C: 1 to rest, 2 frozen, 3 let go.

    Holding the keys down goes from 1 to 2, which harms nobody; only a new press, after a pause, lets go.
    """

    def __init__(self) -> None:
        self._presses = Presses()
        self.stepped_ns = 0
        self.step = 0

    def press(self, now_ns: int) -> int | None:
        """The step that this press makes; None where it is a repeat that makes none."""
        is_new = self._presses.press(now_ns)
        if self.step >= 2 and not is_new:
            return None
        if self.step == 1 and now_ns - self.stepped_ns < ONE_PRESS_NS:
            return None
        self.step, self.stepped_ns = min(3, self.step + 1), now_ns
        return self.step

    def latch(self) -> None:
        """The arm is frozen already, by whoever: the next new press lets go."""
        self.step = max(2, self.step)


class StopSignals:
    """Takes the process's signals. by: the name of the signal that asked first; empty while none has.

    on_step: (1, 2 or 3) -> None, for every step of Ctrl-C. say: (severity, source, sentence). is_on: whether the arm was
    switched on, as far as the one who is asked knows.
    """

    def __init__(
        self,
        on_step: Callable[[int], None],
        say: Callable[[str, str, str], None],
        is_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self.by = ""
        self.is_ending = False
        self.steps = Steps()
        self._on_step, self._say, self._is_on = on_step, say, is_on
        self._stops = Presses()

    def obey_signals(self) -> None:
        """From here on nothing that a terminal, a shell or systemd sends takes the process by surprise."""
        for number in ENDS - {signal.SIGTERM, signal.SIGHUP}:
            signal.signal(number, lambda number, _: self._guarded(lambda: self._end_by(number)))
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *_: self._guarded(self.press))
        signal.signal(
            signal.SIGTERM, lambda *_: self._guarded(lambda: self.end("SIGTERM", "asked to terminate"))
        )
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: it shall outlive the terminal
            signal.signal(
                signal.SIGHUP, lambda *_: self._guarded(lambda: self.end("SIGHUP", "the terminal has closed"))
            )
        signal.signal(signal.SIGTSTP, lambda *_: self._guarded(self._refuse))
        for number in (
            signal.SIGTTOU,
            signal.SIGTTIN,
        ):  # with a handler the system call would be tried for ever
            signal.signal(number, signal.SIG_IGN)

    @staticmethod
    def _guarded(act: Callable[[], None]) -> None:
        """A handler runs between any two lines of the program: what fails in it must not fail there."""
        with contextlib.suppress(Exception):
            act()

    def press(self) -> None:
        """Ctrl-C: the first stops in order, the second freezes the arm, the third lets go."""
        step = self.steps.press(time.monotonic_ns())
        if step is not None:
            self.by = self.by or "SIGINT"
            self._on_step(step)

    def end(self, by: str, words: str) -> None:
        """To rest, and no press: it comes from the kernel and from the shell, and as often as they like."""
        if self.by or self.is_ending:
            return
        self.by = by
        self.steps.press(time.monotonic_ns())
        self._say("info", "deploy", f"{words}: {TO_REST if self._is_on() else NOT_ON}")

    def _end_by(self, number: int) -> None:
        """By a signal that nobody sends on purpose: an orderly end all the same."""
        known = {int(s): s.name for s in signal.Signals}
        name = known.get(number, f"signal {number}")
        self.end(name, f"asked to end by {name}")

    def _refuse(self) -> None:
        if self._stops.press(time.monotonic_ns()):
            self._say("warning", "deploy", REFUSED)
