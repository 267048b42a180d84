"""Switching torque on is an order of steps, and this is the order; whoever is silent or far outside changes it."""

import numpy as np
import pytest
from safety_kit import robot_of

from edgevla.clock import VirtualClock
from edgevla.errors import BusError, UsageError
from edgevla.robots import torque as module
from edgevla.robots.bus.report import CHANGED, RESTARTED
from edgevla.robots.profile import load_profile
from edgevla.robots.torque import RETURN_LOOK_NS, RETURN_PATIENCE_NS, RETURN_TICKS_S
from edgevla.robots.units import OUTSIDE_TICKS

ONE, TWO = load_profile("so101"), load_profile("aloha")
MS = 1_000_000


class Bench:
    def __init__(self, profile, monkeypatch):
        self.clock, self.said, self.order = VirtualClock(8_000 * MS), [], []
        self.robot, self.lines = robot_of(profile, self.clock, self.said.append)
        self.line, self.torque, self.units = self.lines[0], self.robot._torque, self.robot.units
        monkeypatch.setattr(
            module.handshake,
            "align_shadows",
            lambda line, bus, ticks: self.order.append(("align", bus.name, ticks)),
        )
        monkeypatch.setattr(
            module.handshake,
            "configure",
            lambda line, bus, ids: self.order.append(("configure", tuple(ids))) or ["set up"],
        )
        for line in self.lines:
            for servo in line.held.values():
                servo["torque_enable"] = 0

    def on(self):
        return self.torque.switch_on(self.units)

    def stand(self, k, ticks_outside):
        """Joint k stands so far below its least goal (beyond its most where negative)."""
        ends = (self.units.least, self.units.most)
        self.line.held[k + 1]["present_position"] = int(
            ends[0][k] - ticks_outside if ticks_outside > 0 else ends[1][k] - ticks_outside
        )


@pytest.fixture
def bench(monkeypatch):
    return lambda profile=ONE: Bench(profile, monkeypatch)


def test_a_return_is_slow_and_waited_for():
    assert (RETURN_TICKS_S, RETURN_LOOK_NS, RETURN_PATIENCE_NS) == (341.0, 20 * MS, 300 * MS)


def test_goals_are_set_where_the_arm_is_before_torque_comes_on(bench):
    made = bench()
    begun = made.clock.now_ns()
    assert made.on() == []
    done = [entry for entry in made.line.done() if entry[0] != "read"]
    assert done == [
        ("watchdog", "clear"),
        ("sync", "goal_position", {i: 2100 + i for i in range(1, 7)}),
        *[("set", i, "torque_enable", 1, "unchecked") for i in range(1, 7)],
        ("watchdog", ONE.rates.watchdog_ms),
    ]
    assert made.torque.is_on
    assert made.order == [("align", "arm", ONE.limits.pair_ticks)]
    assert all(servo.torque_on for servo in made.robot.health())
    assert made.clock.now_ns() == begun


def test_shadows_are_switched_but_get_no_goals(bench):
    made = bench(TWO)
    assert made.on() == []
    line = made.lines[1]
    assert set(line.done("sync")[0][2]) == {1, 2, 4, 6, 7, 8, 9}
    assert [line.held[i]["torque_enable"] for i in line.ids] == [1] * 9


def test_pairs_are_aligned_only_while_torque_is_off(bench):
    made = bench()
    made.on()
    made.on()
    assert len(made.order) == 1


def test_a_position_that_is_not_known_is_no_goal(bench):
    made = bench()
    made.line.silent = {2, 6}
    assert made.on() == ["shoulder_lift", "gripper"]
    assert made.line.done("set") == []
    assert not made.torque.is_on
    states = {servo.name: servo.torque_on for servo in made.robot.health()}
    assert states == {"shoulder_pan": False, "elbow_flex": False, "wrist_flex": False, "wrist_roll": False,
                      "shoulder_lift": None, "gripper": None}  # fmt: skip


def test_a_servo_that_does_not_take_it_is_named_and_no_watchdog_is_armed(bench):
    made = bench()
    original = made.line.read_raw
    made.line.read_raw = lambda i, name: 0 if (i, name) == (3, "torque_enable") else original(i, name)
    assert made.on() == ["elbow_flex"]
    assert not made.torque.is_on
    assert ("watchdog", ONE.rates.watchdog_ms) not in made.line.done()


def test_a_servo_that_falls_silent_meanwhile_is_named(bench):
    made = bench()
    original = made.line.sync_write

    def fall_silent(name, values):
        original(name, values)
        made.line.silent = {5}

    made.line.sync_write = fall_silent
    assert made.on() == ["wrist_roll"]
    assert made.line.held[6]["torque_enable"] == 1, "the next one was switched all the same"


def test_a_profile_without_a_watchdog_arms_none_and_what_arming_says_is_said(bench, monkeypatch):
    made = bench()
    made.line.watchdog_says = "no watchdog in this firmware"
    made.on()
    assert made.said == ["no watchdog in this firmware"]
    made = bench(load_profile("aloha"))
    object.__setattr__(made.torque._profile, "rates", type(ONE.rates)(watchdog_ms=0))
    made.on()
    assert [entry for entry in made.line.done("watchdog") if entry[1] != "clear"] == []


@pytest.mark.parametrize("fault", [RESTARTED, CHANGED])
def test_what_does_not_hold_what_was_set_is_set_up_and_looked_at_first(bench, fault):
    made = bench()
    health = made.robot._lines[0].health
    health.servos[3].conclude(fault)
    made.on()
    assert made.order[0] == ("configure", (3,))
    assert made.said == ["set up"]
    done = made.line.done()
    assert done.index(("look", 3)) < next(k for k, e in enumerate(done) if e[:2] == ("sync", "goal_position"))
    assert health.servos[3].concluded == ()


# -- outside its range ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, -1])
def test_a_joint_too_far_outside_is_refused_before_anything_is_sent(bench, side):
    made = bench()
    made.stand(2, side * (OUTSIDE_TICKS + 1))
    with pytest.raises(
        BusError, match=r"elbow_flex is .* outside its range: move it by hand, then start again"
    ):
        made.on()
    assert made.line.done("sync") == made.line.done("set") == []
    assert not made.torque.is_on


def test_several_are_moved_by_hand(bench):
    made = bench()
    made.stand(1, OUTSIDE_TICKS + 1)
    made.stand(2, OUTSIDE_TICKS + 1)
    with pytest.raises(BusError, match="move them by hand"):
        made.on()


def test_a_joint_a_little_outside_comes_back_at_a_speed_that_is_limited_meanwhile(bench):
    made = bench()
    made.stand(2, OUTSIDE_TICKS)
    made.line.held[3][made.line.speed] = 77
    arrives = made.clock.now_ns() + 55 * MS
    original = made.line.read_all

    def read_all(block, ids, ns):
        if made.clock.now_ns() >= arrives:
            made.line.held[3]["present_position"] = int(made.units.least[2])
        return original(block, ids, ns)

    made.line.read_all = read_all
    assert made.on() == []
    speed = made.line.speed
    done = [e for e in made.line.done() if e[0] in ("set", "sync")]
    goals = {i: 2100 + i for i in range(1, 7)} | {3: int(made.units.least[2])}
    assert done == [
        ("set", 3, speed, round(RETURN_TICKS_S)),
        ("sync", "goal_position", goals),
        *[("set", i, "torque_enable", 1, "unchecked") for i in range(1, 7)],
        ("sync", "goal_position", goals),
        ("set", 3, speed, 77),
    ]
    assert made.clock.now_ns() == arrives + 5 * MS, "it looks every 20 ms"


def test_a_joint_that_does_not_come_back_is_waited_for_as_long_as_its_way_takes(bench):
    made = bench()
    made.stand(2, 68)
    made.stand(3, 34)
    begun = made.clock.now_ns()
    made.on()
    takes_ms = 68 / RETURN_TICKS_S * 1000 + 300
    assert (made.clock.now_ns() - begun) / MS == pytest.approx(takes_ms, abs=20)
    assert (made.clock.now_ns() - begun) / MS >= takes_ms
    assert len([e for e in made.line.done("set") if e[2] == made.line.speed]) == 4


def test_who_falls_silent_on_the_way_is_still_waited_for(bench):
    made = bench()
    made.stand(2, 34)
    original, calls = made.line.read_all, []

    def read_all(block, ids, ns):
        calls.append(1)
        found = original(block, ids, ns)
        return {i: v for i, v in found.items() if i != 5} if len(calls) > 1 else found

    made.line.read_all = read_all
    begun = made.clock.now_ns()
    assert made.on() == []
    assert (made.clock.now_ns() - begun) / MS >= 300


def test_a_joint_outside_that_does_not_take_torque_is_not_waited_for_and_has_its_speed(bench):
    made = bench()
    made.stand(2, 34)
    made.line.held[3][made.line.speed] = 77
    original = made.line.read_raw
    made.line.read_raw = lambda i, name: 0 if (i, name) == (3, "torque_enable") else original(i, name)
    begun = made.clock.now_ns()
    assert made.on() == ["elbow_flex"]
    assert made.clock.now_ns() == begun
    assert made.line.held[3][made.line.speed] == 77


def test_the_speed_of_a_shadow_is_limited_with_its_partners(bench):
    made = bench(TWO)
    names = {m.name: m.id for m in TWO.buses[0].motors}
    k = [j.motor for j in TWO.joints].index("left_elbow")
    made.line.held[names["left_elbow"]]["present_position"] = int(made.units.most[k]) + 50
    made.on()
    slowed = [e[1] for e in made.line.done("set") if e[2] == made.line.speed]
    assert slowed == [names["left_elbow"], names["left_elbow_shadow"]] * 2
    assert [e for e in made.lines[1].done("set") if e[2] == made.line.speed] == []


def test_a_speed_that_cannot_be_given_back_is_no_reason_to_stop(bench):
    made = bench()
    made.torque._restore_speed([(made.line, 3, 77)])
    made.line.silent = {3}
    made.torque._restore_speed([(made.line, 3, 5), (made.line, 4, 6)])
    assert made.line.held[3][made.line.speed] == 77
    assert made.line.held[4][made.line.speed] == 6


# -- off and again -------------------------------------------------------------------------------------------


def test_off_clears_the_watchdogs_and_says_whom_it_did_not_reach(bench):
    made = bench()
    made.on()
    made.line.done()
    made.line.silent = {4}
    assert made.torque.switch_off() == ["wrist_flex"]
    assert made.line.done()[0] == ("watchdog", "clear")
    assert not made.torque.is_on
    assert {s.name: s.torque_on for s in made.robot.health()} == {
        "shoulder_pan": False, "shoulder_lift": False, "elbow_flex": False, "wrist_flex": True,
        "wrist_roll": False, "gripper": False,
    }  # fmt: skip


def test_a_line_that_has_gone_is_no_reason_not_to_switch_off_the_other(bench):
    made = bench(TWO)
    made.on()
    made.lines[0].gone = True
    assert len(made.torque.switch_off()) == 9
    assert [made.lines[1].held[i]["torque_enable"] for i in made.lines[1].ids] == [0] * 9


def test_torque_is_renewed_of_one_servo_that_has_it_and_is_not_withheld(bench):
    made = bench()
    made.on()
    made.line.done()
    made.torque.renew("elbow_flex")
    assert made.line.done() == [("sync", "torque_enable", {3: 1})]
    made.robot._lines[0].health.doubted = {3}
    made.torque.renew("elbow_flex")
    made.robot._lines[0].health.servos[2].torque_on = False
    made.torque.renew("shoulder_lift")
    assert made.line.done() == []
    made.line.gone = True
    made.torque.renew("gripper")
    with pytest.raises(UsageError, match="so101 has no motor 'elbow'"):
        made.torque.renew("elbow")


def test_a_motor_of_the_second_line_is_renewed_there(bench):
    made = bench(TWO)
    made.on()
    for line in made.lines:
        line.done()
    made.torque.renew("right_gripper")
    assert made.lines[0].done() == []
    assert made.lines[1].done() == [("sync", "torque_enable", {9: 1})]


def test_a_goal_that_holds_is_within_what_the_servo_takes(bench):
    made = bench()
    made.units.most[0] = 1990
    made.line.held[1]["present_position"] = 1995
    made.on()
    assert made.line.done("sync")[0][2][1] == 1990
    assert np.all(made.units.least <= made.units.most)
