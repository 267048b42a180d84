"""Presses of Ctrl-C: to rest, frozen, let go. Held down they never let go."""

import contextlib
import signal

import pytest

from edgevla.launch.asked import Steps, StopSignals
from edgevla.nodes.vitals import ENDS, STOPS

MS = 1_000_000
REPEAT_MS = 33
"""A keyboard repeats thirty times a second, after a first pause of 250 to 700 ms."""


def press(steps, *at_ms):
    """The steps that presses at these moments make."""
    return [step for at in at_ms if (step := steps.press(at * MS)) is not None]


def held(from_ms, first_pause_ms, until_ms):
    return [from_ms, *range(from_ms + first_pause_ms, until_ms, REPEAT_MS)]


def test_three_presses_are_three_steps():
    assert press(Steps(), 1000, 1500, 3000) == [1, 2, 3]


@pytest.mark.parametrize("first_pause_ms", [250, 500, 700])
def test_holding_the_keys_down_freezes_and_never_lets_go(first_pause_ms):
    assert press(Steps(), *held(1000, first_pause_ms, 20_000)) == [1, 2]


def test_letting_go_takes_a_new_press_after_a_pause():
    steps = Steps()
    assert press(steps, *held(1000, 300, 5000)) == [1, 2]
    assert press(steps, 5400) == [], "still the same stream"
    assert press(steps, 6300) == [3]
    assert press(steps, *held(8000, 300, 9000)) == [3], "again, should the first not have been heard: once"


def test_a_second_press_that_comes_quickly_freezes():
    assert press(Steps(), 1000, 1200) == [1, 2]


def test_the_same_press_by_two_ways_is_one():
    """A wrapper such as make passes on what the terminal has sent to the whole group."""
    assert press(Steps(), 1000, 1004) == [1]


def test_after_an_emergency_stop_by_others_the_first_new_press_lets_go():
    steps = Steps()
    assert press(steps, 1000) == [1]
    steps.latch()
    assert press(steps, 1033, 1066, 1700) == [], "held down"
    assert press(steps, 2600) == [3]


class Heard:
    """What was asked of a deployment, and said."""

    def __init__(self):
        self.steps, self.said = [], []
        self.asked = StopSignals(self.steps.append, lambda *words: self.said.append(words[2]))


def test_sigterm_asks_once_and_is_no_press():
    heard = Heard()
    for _ in range(3):
        heard.asked.end("SIGTERM", "asked to terminate")
    assert heard.asked.by == "SIGTERM"
    assert heard.steps == []
    assert heard.said == ["asked to terminate: the arm moves to rest and is released"]


def test_a_terminal_that_closes_while_all_ends_is_not_heard():
    heard = Heard()
    heard.asked.is_ending = True
    heard.asked.end("SIGHUP", "the terminal has closed")
    assert heard.asked.by == ""
    assert heard.said == []


def test_what_fails_in_a_handler_does_not_fail_wherever_the_program_is():
    def broken(_):
        raise OSError("the terminal has gone")

    asked = StopSignals(broken, lambda *_: None)
    asked._guarded(asked.press)
    assert asked.by == "SIGINT"


@pytest.fixture
def obeying():
    """Somebody who is asked by real signals; whoever was before is again afterwards."""
    before = {number: signal.getsignal(number) for number in ENDS | STOPS}
    with contextlib.ExitStack() as undo:
        for number, handler in before.items():
            undo.callback(signal.signal, number, handler)
        heard = Heard()
        heard.asked.obey_signals()
        yield heard


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGALRM, "SIGALRM"),
        (signal.SIGXCPU, "SIGXCPU"),
        (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_signal_that_nobody_thought_of_asks_for_the_end_in_order(obeying, number, name):
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert obeying.asked.by == name
    assert obeying.said == [f"asked to end by {name}: the arm moves to rest and is released"]
    assert obeying.steps == [], "it is no press of Ctrl-C"


def test_nothing_that_can_be_heard_ends_the_supervisor_unheard(obeying):
    assert {number for number in ENDS if signal.getsignal(number) is signal.SIG_DFL} == set()


def test_under_nohup_a_terminal_may_close(obeying):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    obeying.asked.obey_signals()
    signal.raise_signal(signal.SIGHUP)
    assert obeying.asked.by == ""
    assert obeying.said == []
