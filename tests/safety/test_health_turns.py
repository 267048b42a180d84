"""Whose turn it is to be read, what a servo that was away gets, and how restarts are concluded: to the nanosecond."""

import math
from dataclasses import replace

import pytest
from safety_kit import Line

from edgevla.robots.bus.report import CHANGED, RESTARTED, SHARED, ServoReport
from edgevla.robots.health import AIM_NS, HEALTH_MARGIN_NS, HEALTH_PERIOD_NS, LineHealth
from edgevla.robots.profile import load_profile

BUS = load_profile("so101").buses[0]
N = len(BUS.motors)
EACH_NS = AIM_NS // N
T0 = 10_000_000_000
FAR = 1_000_000_000


class Turns:
    def __init__(self, sync=True, latency_ns=1_000_000):
        self.line = Line(BUS)
        self.line.uses_sync_read, self.line.adapter_latency_ns = sync, latency_ns
        self.health = LineHealth(BUS, self.line, {"gripper"})
        self.health.next_ns = T0

    def read(self, now_ns, room_ns=FAR, answered=(1, 2, 3, 4, 5, 6)):
        """Ids that are read now."""
        read = self.health.begin(now_ns, now_ns + room_ns, answered)
        done = self.line.done("begin")
        assert (read is None) == (not done)
        return done[0][1] if done else None

    def cost_ns(self, n):
        size, reads = self.line.health_block.size, 1 if self.line.uses_sync_read else n
        return 1000 * size * n + 10 * (14 + n) + reads * (self.line.adapter_latency_ns + HEALTH_MARGIN_NS)


def test_the_times_are_what_the_documentation_says():
    assert (HEALTH_PERIOD_NS, AIM_NS, HEALTH_MARGIN_NS) == (400_000_000, 300_000_000, 1_500_000)


def test_every_servo_is_known_by_name_with_what_makes_it_forget():
    health = Turns().health
    assert [(s.id, s.bus, s.name, s.is_gripper, s.restart) for s in health.servos.values()] == [
        (m.id, "arm", m.name, m.name == "gripper", f"restart {m.id}") for m in BUS.motors
    ]
    assert health.next_ns == T0
    assert LineHealth(BUS, Line(BUS), ()).next_ns == 0
    first = health.servos[1]
    assert (first.n_retries, first.n_corrupt, first.n_stale, first.error_bits) == (0, 0, 0, 0)
    assert (first.has_restarted, first.faults, first.cure, first.concluded) == (False, (), "", ())


def test_one_servo_after_another_is_read_when_it_is_due():
    turns = Turns()
    assert turns.read(T0 - 1) is None
    read = [turns.read(T0 + n * EACH_NS) for n in range(N + 1)]
    assert read == [(1,), (2,), (3,), (4,), (5,), (6,), (1,)]
    assert turns.read(T0 + (N + 1) * EACH_NS - 1) is None


def test_who_is_late_reads_more_at_once():
    turns = Turns()
    assert turns.read(T0 + 2 * EACH_NS) == (1, 2, 3)
    assert turns.read(T0 + 3 * EACH_NS - 1) is None
    assert turns.read(T0 + 3 * EACH_NS) == (4,)
    assert turns.read(T0 + 100 * EACH_NS) == (5, 6, 1, 2, 3, 4)


def test_who_was_very_late_does_not_make_up_for_all_of_it():
    turns = Turns()
    now = T0 + 100 * AIM_NS
    turns.read(now)
    assert turns.health.next_ns == now - AIM_NS


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_as_many_are_read_as_there_is_time_for(sync, n):
    turns = Turns(sync)
    assert turns.read(T0 + 5 * EACH_NS, room_ns=turns.cost_ns(n)) == tuple(range(1, n + 1))
    turns = Turns(sync)
    turns.health._last_ns = T0
    expected = tuple(range(1, n)) or None
    assert turns.read(T0 + 5 * EACH_NS, room_ns=turns.cost_ns(n) - 1) == expected


def test_the_read_asks_at_most_twice_and_is_done_by_the_deadline():
    turns = Turns()
    turns.health.begin(T0, T0 + FAR, ())
    assert turns.line.done("begin") == [("begin", (1,), T0 + FAR, b"", 1, False)]


def test_without_room_nothing_is_read_until_it_is_overdue_and_then_all():
    turns = Turns()
    turns.health._asked_ns = dict.fromkeys(turns.health.servos, T0)
    turns.health._last_ns = T0
    assert turns.read(T0 + HEALTH_PERIOD_NS - 1, room_ns=0) is None
    assert turns.read(T0 + HEALTH_PERIOD_NS, room_ns=0) == (1, 2, 3, 4, 5, 6)
    turns.health.next_ns = T0
    assert turns.read(T0 + 2 * HEALTH_PERIOD_NS - 1, room_ns=0) is None, "just read"


def test_the_one_that_was_asked_longest_ago_is_overdue_first():
    turns = Turns()
    turns.health._asked_ns = {i: T0 + i * EACH_NS for i in turns.health.servos}
    turns.health._last_ns = T0
    now = T0 + EACH_NS + HEALTH_PERIOD_NS
    assert turns.read(now - 1, room_ns=0) is None
    assert turns.read(now, room_ns=0) == (1, 2, 3, 4, 5, 6)


def test_an_overdue_read_is_given_the_time_that_it_needs():
    turns = Turns()
    now = T0 + HEALTH_PERIOD_NS
    turns.health.begin(now, now, ())
    assert turns.line.done("begin")[0][2] == now + turns.cost_ns(N)


def test_what_is_overdue_is_not_read_before_it_is_due():
    turns = Turns()
    turns.health.next_ns = T0 + 10 * HEALTH_PERIOD_NS
    assert turns.read(T0 + 9 * HEALTH_PERIOD_NS, room_ns=0) is None


# -- away and back -------------------------------------------------------------------------------------------


def test_a_servo_that_is_silent_gets_no_goals_and_is_read_first_when_it_is_back():
    turns = Turns()
    health = turns.health
    health.doubted = {4, 5}
    assert health.withheld == {4, 5}
    assert turns.read(T0 - 1, answered=(1, 2, 3)) is None
    assert turns.read(T0 - 1, answered=(1, 4)) == (4,)
    assert health.withheld == {4, 5}, "until what it says has been heard"
    health.take(4, {}, T0)
    assert health.withheld == {5}


def test_two_that_are_back_are_read_together_before_it_is_anybodys_turn():
    turns = Turns()
    turns.health.doubted = {4, 6}
    turns.health._asked_ns = dict.fromkeys(turns.health.servos, T0 - 5)
    assert turns.read(T0 - 1) == (4, 6)


def test_without_time_to_look_it_gets_goals_again_unseen_and_is_the_next():
    turns = Turns()
    health = turns.health
    health._asked_ns = dict.fromkeys(health.servos, T0 - 5)
    health.doubted = {4}
    health._last_ns = T0
    assert turns.read(T0 - 1, room_ns=0) is None
    assert health.withheld == set()
    assert turns.read(T0) == (4,)


def test_a_servo_that_has_forgotten_gets_no_goals_until_it_is_set_up():
    turns = Turns()
    health, line = turns.health, turns.line
    health.take(3, {"a": 1}, T0)
    assert line.restarts == [], "nothing to compare with"
    line.forgot = True
    health.take(3, {"a": 0}, T0 + 7)
    assert line.restarts == [(3, {"a": 1}, {"a": 0}, 7)]
    assert (health.altered, health.withheld) == ([3], {3})
    line.forgot = False
    health.take(3, {"a": 0}, T0 + 9)
    assert line.restarts[1] == (3, {"a": 0}, {"a": 0}, 2)
    assert health.altered == [3], "it stays so"
    line.reports[3] = ServoReport(faults=())
    health.take(3, {"a": 0}, T0 + 10)
    assert health.servos[3].faults == (RESTARTED,)
    n = len(line.restarts)
    health.take_anew(3, {"a": 2}, T0 + 11)
    assert (health.altered, health.servos[3].faults) == ([], ())
    assert len(line.restarts) == n, "not compared with what it was before"


# -- what was changed behind the driver's back


def changed(before=5, now=6, written=None, faults=None, kept=("p",), forgot=False):
    turns = Turns()
    turns.line.kept, turns.line.forgot = kept, forgot
    turns.line.written = {} if written is None else {3: {"p": written}}
    turns.line.reports[3] = ServoReport(faults=faults)
    turns.health.take(3, {"p": before}, T0)
    assert turns.health.servos[3].concluded == ()
    turns.health.take(3, {"p": now}, T0 + 1)
    return turns.health


@pytest.mark.parametrize("written", [None, 5])
def test_a_register_that_nobody_here_wrote_is_a_change_and_is_told(written):
    health = changed(written=written, faults=())
    servo = health.servos[3]
    assert servo.concluded == servo.faults == (CHANGED,)
    assert servo.cure == f"p is 6, not 5 as it was set: cure {(CHANGED,)} None None None"
    assert health.altered == [3]
    assert health.withheld == set(), "it still gets goals"
    assert not servo.has_restarted


@pytest.mark.parametrize(
    "how",
    [{"now": 5}, {"written": 6}, {"written": 7}, {"faults": ("overload",)}, {"kept": ()}],
)
def test_what_was_written_here_or_comes_with_a_fault_is_no_riddle(how):
    assert changed(**how).servos[3].concluded == ()


def test_every_register_that_is_kept_is_compared_and_a_restart_is_only_that():
    turns = Turns()
    turns.line.kept = ("p", "q")
    turns.health.take(3, {"p": 1, "q": 2}, T0)
    turns.health.take(3, {"p": 1, "q": 3}, T0)
    assert turns.health.servos[3].changed == "q is 3, not 2 as it was set"
    assert changed(forgot=True).servos[3].concluded == (RESTARTED,)


def test_what_was_concluded_is_concluded_once():
    servo = Turns().health.servos[1]
    for _ in range(2):
        servo.conclude(RESTARTED)
        servo.conclude(CHANGED)
    assert servo.concluded == (RESTARTED, CHANGED)


def test_another_master_on_the_line_is_told_of_its_first_servo():
    turns = Turns()
    turns.line.is_shared = True
    turns.line.reports = {i: ServoReport(faults=()) for i in turns.line.ids}
    turns.health.take(2, {}, T0)
    turns.health.take(1, {}, T0)
    assert (turns.health.servos[2].faults, turns.health.servos[1].faults) == ((), (SHARED,))
    assert turns.health.altered == []
    assert turns.health.withheld == set()


# -- what is known -------------------------------------------------------------------------------------------


FULL = ServoReport(True, 7.4, 41.0, -12.0, 80.0, 32, ("overload",))


def test_each_value_is_the_newest_that_came():
    turns = Turns()
    turns.line.reports[2] = FULL
    turns.health.take(2, {}, T0)
    servo = turns.health.servos[2]
    known = (
        servo.torque_on,
        servo.voltage_v,
        servo.temperature_c,
        servo.load_percent,
        servo.current_ma,
        servo.error_bits,
    )
    assert known == (True, 7.4, 41.0, -12.0, 80.0, 32)
    assert servo.faults == ("overload",)
    assert servo.cure == "cure ('overload',) 41.0 7.4 -12.0"
    turns.line.reports[2] = ServoReport()
    turns.health.take(2, {}, T0)
    after = (
        servo.torque_on,
        servo.voltage_v,
        servo.temperature_c,
        servo.load_percent,
        servo.current_ma,
        servo.error_bits,
    )
    assert after == known
    assert servo.faults == ("overload",)
    turns.line.reports[2] = replace(FULL, torque_on=False, voltage_v=0.0, faults=(), error_bits=0)
    turns.health.take(2, {}, T0)
    assert (servo.torque_on, servo.voltage_v, servo.faults, servo.cure, servo.error_bits) == (
        False,
        0.0,
        (),
        "",
        0,
    )


def test_on_the_wire_what_is_not_known_is_no_number_and_torque_is_off():
    wire = Turns().health.servos[1].to_wire()
    assert all(math.isnan(v) for v in (wire.temperature_c, wire.voltage_v, wire.load_percent))
    assert (wire.id, wire.bus, wire.name, wire.torque_on, wire.current_ma) == (
        1,
        "arm",
        "shoulder_pan",
        False,
        None,
    )
    turns = Turns()
    turns.line.reports[1] = FULL
    turns.health.take(1, {}, T0)
    turns.line.counters[1].n_retries, turns.line.counters[1].n_corrupt, turns.line.counters[1].n_stale = (
        1,
        2,
        3,
    )
    turns.health.count()
    wire = turns.health.servos[1].to_wire()
    assert (wire.temperature_c, wire.voltage_v, wire.load_percent, wire.current_ma) == (
        41.0,
        7.4,
        -12.0,
        80.0,
    )
    assert (wire.error_bits, wire.torque_on, wire.n_retries, wire.n_corrupt, wire.n_stale) == (
        32,
        True,
        1,
        2,
        3,
    )
