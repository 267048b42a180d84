"""Each thing is said once, then now and then, and counted always."""

from collections import Counter

from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.robots.telling import Teller


class Ears:
    def __init__(self):
        self.heard = []

    def event(self, severity, code, text, **fields):
        self.heard.append((severity, code, text, fields))


def make():
    ears, clock, counters = Ears(), VirtualClock(NS_PER_S), Counter()
    return ears, clock, counters, Teller(ears, clock, counters)


def test_a_warning_is_repeated_after_five_seconds_with_the_number_of_the_others():
    ears, clock, counters, teller = make()
    for _ in range(3):
        teller.once("warning", "warm", "elbow is warm")
    clock.advance(5 * NS_PER_S - 1)
    teller.once("warning", "warm", "elbow is warm")
    assert ears.heard == [("warning", "warm", "elbow is warm", {"count": 1})]
    clock.advance(1)
    teller.once("warning", "warm", "elbow is warm")
    assert ears.heard[1:] == [("warning", "warm", "elbow is warm", {"count": 5})]
    assert counters["finding_warm"] == 5


def test_what_stops_a_run_is_told_once():
    ears, clock, _, teller = make()
    teller.once("stop", "jump", "it jumped")
    clock.advance(10**6 * NS_PER_S)
    teller.once("stop", "jump", "it jumped")
    assert len(ears.heard) == 1


def test_each_code_is_told_by_itself():
    ears, _, _, teller = make()
    teller.once("warning", "warm", "a")
    teller.once("warning", "voltage", "b")
    assert [code for _, code, _, _ in ears.heard] == ["warm", "voltage"]


def test_what_was_over_meanwhile_is_news_and_after_a_start_everything_is():
    ears, _, _, teller = make()
    teller.again("warm")
    for ended in (lambda: teller.again("warm"), teller.forget):
        teller.once("stop", "warm", "a")
        ended()
    teller.once("stop", "warm", "a")
    assert len(ears.heard) == 3


def test_remarks_are_told_once_in_order():
    ears, _, _, teller = make()
    teller.remark("usb", "slow")
    teller.remark("latency", "set")
    teller.remarks()
    teller.remarks()
    assert ears.heard == [("info", "usb", "slow", {}), ("info", "latency", "set", {})]
