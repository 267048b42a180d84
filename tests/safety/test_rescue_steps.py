"""The last resort, step by step: freeze, let down, release, whoever is silent, refuses, or has gone."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from safety_kit import rescue_of

from edgevla.clock import MonotonicClock, VirtualClock
from edgevla.robots.bus.port import SerialPort
from edgevla.robots.lowering import STEP_NS, Lowering
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import (
    FREEZE_NS,
    N_TRIES,
    WRITE_TIMEOUT_NS,
    Rescue,
    full_torque,
    goal_ids,
    make_buses,
    torque_off,
    unconfirmed,
)

ONE, TWO = load_profile("so101"), load_profile("aloha")
MS = 1_000_000


def make(profile=ONE):
    clock = VirtualClock(3_000 * MS)
    rescue, lines = rescue_of(profile, clock)
    return rescue, lines, clock


def test_the_patience_is_what_it_was():
    assert (FREEZE_NS, N_TRIES, WRITE_TIMEOUT_NS) == (60 * MS, 3, 15 * MS)


def test_buses_are_made_of_ports_and_of_descriptors():
    read, write = os.pipe()
    try:
        buses = make_buses(TWO, {"left": read, "right": SimpleNamespace(name="mine")}, VirtualClock(7))
        assert isinstance(buses["left"].port, SerialPort)
        assert (buses["left"].port.name, buses["left"].port.baud) == ("/dev/ttyDXL_puppet_left", 1_000_000)
        assert buses["left"].port.fileno() == read
        assert buses["right"].port.name == "mine"
        assert buses["left"].robot == "aloha"
        assert buses["left"].motors[1] == "left_waist, XM540-W270"
        assert buses["left"].model_of[1] == "xm540-w270"
        assert buses["right"].clock.now_ns() == 7
        nameless = replace(ONE, buses=(replace(ONE.buses[0], port=""),))
        assert make_buses(nameless, {"arm": read})["arm"].port.name == "arm"
    finally:
        os.close(read)
        os.close(write)


def test_without_a_clock_it_is_the_machines():
    rescue = Rescue(ONE, {"arm": SimpleNamespace(name="arm")})
    assert isinstance(rescue.clock, MonotonicClock)
    assert rescue.buses["arm"].clock is rescue.clock


def test_shadows_get_no_goals():
    assert goal_ids(ONE.buses[0]) == (1, 2, 3, 4, 5, 6)
    assert goal_ids(TWO.buses[0]) == (1, 2, 4, 6, 7, 8, 9)


def test_full_torque_is_the_profiles_or_the_servos():
    full = full_torque(ONE.buses[0])
    settings = {m.id: dict(m.settings).get("torque_limit", 1000) for m in ONE.buses[0].motors}
    assert full == settings
    motors = tuple(replace(m, settings=(("torque_limit", 500),)) for m in ONE.buses[0].motors)
    assert set(full_torque(replace(ONE.buses[0], motors=motors)).values()) == {500}


# -- freeze --------------------------------------------------------------------------------------------------


def test_a_freeze_asks_for_torque_then_for_positions_and_tells_the_goals():
    rescue, (line,), _ = make()
    line.held[3]["torque_enable"] = 0
    assert rescue.freeze() == []
    ids = goal_ids(ONE.buses[0])
    assert line.done() == [
        ("read", "torque_enable", ids, FREEZE_NS),
        ("watchdog", "clear"),
        ("read", "present_position", ids, FREEZE_NS),
        ("sync", "goal_position", {i: 2100 + i for i in ids if i != 3}),
    ]


def test_a_servo_that_does_not_say_whether_it_has_torque_gets_its_goal():
    rescue, (line,), _ = make()
    original = line.read_all
    line.read_all = lambda block, ids, ns: {
        i: v for i, v in original(block, ids, ns).items() if "torque_enable" not in v or i != 2
    }
    rescue.freeze()
    assert 2 in line.done("sync")[0][2]


def test_a_freeze_names_who_was_not_read_and_an_arm_without_torque_gets_no_goal():
    rescue, (line,), _ = make()
    line.silent = {2, 5}
    assert rescue.freeze() == ["shoulder_lift", "wrist_roll"]
    for servo in line.held.values():
        servo["torque_enable"] = 0
    line.silent, _ = set(), line.done()
    assert rescue.freeze() == []
    assert line.done("sync") == []


def test_a_line_that_has_gone_is_named_and_the_other_is_frozen():
    rescue, (left, right), _ = make(TWO)
    left.gone = True
    unread = rescue.freeze()
    assert unread == [m.name for m in TWO.buses[0].motors if m.shadow_of is None]
    assert rescue.lost == {"left": "the line is gone"}
    assert right.done("sync")[0][1] == "goal_position"
    assert not rescue.is_cut_off
    right.gone = True
    rescue.freeze()
    assert rescue.is_cut_off


# -- positions and limits ------------------------------------------------------------------------------------


def test_positions_are_by_motor_and_without_lost_lines():
    rescue, (left, right), _ = make(TWO)
    right.silent = {1}
    found = rescue.positions()
    assert found["left_waist"] == 2101
    assert "right_waist" not in found
    assert len(found) == 13
    left.gone = True
    assert set(rescue.positions()) == {name for name in found if name.startswith("right")}
    assert "left" in rescue.lost


def test_torque_is_never_more_than_its_owner_allows():
    rescue, (line,), _ = make()
    line.held[2]["max_torque"], line.held[4]["max_torque"] = 300, 1000
    line.silent = {5}
    full = rescue.learn_limits()["arm"]
    profile = full_torque(ONE.buses[0])
    assert full[2] == min(300, profile[2])
    assert full[5] == profile[5]
    assert line.done() == [("read", "max_torque", line.ids, FREEZE_NS)]
    line.silent = set()
    rescue.limit_torque(0.5)
    assert line.done() == [("sync", "torque_limit", {i: int(full[i] * 0.5) for i in line.ids})], (
        "known by now"
    )


def test_shadows_are_limited_too():
    rescue, lines, _ = make(TWO)
    rescue.limit_torque(0.25)
    for line in lines:
        name, values = line.done("sync")[0][1:]
        assert (name, tuple(values)) == ("goal_pwm", line.ids)
        assert set(values.values()) == {int(line.full * 0.25)}


def test_limits_of_a_line_that_has_gone_are_the_profiles():
    rescue, (left, right), _ = make(TWO)
    left.gone = True
    rescue.limit_torque(1.0)
    assert rescue.lost == {"left": "the line is gone"}
    assert right.done("sync")
    assert rescue._full["left"] == full_torque(TWO.buses[0])


def test_parking_is_the_profiles_share():
    rescue, (line,), _ = make()
    rescue.park()
    assert line.done("sync")[0][2][1] == int(full_torque(ONE.buses[0])[1] * ONE.escalation.park_torque)


# -- lowering ------------------------------------------------------------------------------------------------


def fast(**changes):
    return replace(ONE, escalation=replace(ONE.escalation, park_ms=500, **changes))


def test_an_arm_is_lowered_in_steps_until_it_is_over():
    rescue, (line,), clock = make(fast())
    begun = clock.now_ns()
    assert rescue.lower() is False
    assert (clock.now_ns() - begun) / MS == pytest.approx(750, abs=51)
    shares = [values[1] for _, _, values in line.done("sync")]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
    assert len(shares) == 11


def test_whoever_asks_stops_the_lowering_where_it_is():
    rescue, (line,), clock = make(fast())
    waited = []

    def wait(seconds):
        waited.append(seconds)
        clock.advance(STEP_NS)
        return len(waited) == 3

    assert rescue.lower(wait) is True
    assert waited == [STEP_NS / 1e9] * 3
    assert len(line.done("sync")) == 3


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_profile_that_does_not_release_stays_at_its_share_for_its_time(is_asked):
    rescue, (line,), _ = make(fast(release=False))
    waited = []
    assert rescue.lower(lambda seconds: waited.append(seconds) or is_asked) is is_asked
    assert waited == [0.5]
    assert len(line.done("sync")) == 1


def test_without_a_line_nobody_lowers_for_ever():
    rescue, (line,), clock = make(fast())
    line.gone = True
    begun = clock.now_ns()
    assert rescue.lower() is False
    assert clock.now_ns() - begun <= STEP_NS


def test_a_step_looks_at_the_joints_first():
    rescue, (line,), clock = make(fast())
    lowering = Lowering(rescue.profile.escalation, clock.now_ns())
    rescue.lower_step(lowering)
    clock.advance(STEP_NS)
    line.done()
    line.held[2]["present_position"] += 40  # it falls: full share again
    rescue.lower_step(lowering)
    assert line.done("sync") == []
    clock.advance(STEP_NS)
    rescue.lower_step(lowering)
    assert len(line.done("sync")) == 1


# -- release -------------------------------------------------------------------------------------------------


def test_every_servo_is_switched_off_by_itself_then_all_together_and_gets_its_torque_back():
    rescue, (line,), _ = make()
    assert rescue.release() == []
    address = line.registers["torque_enable"].address
    done = line.done()
    assert done[:6] == [("write", i, address, b"\0", 0, WRITE_TIMEOUT_NS, 1) for i in line.ids]
    assert done[6] == ("sync", "torque_enable", dict.fromkeys(line.ids, 0))
    assert done[-1] == ("sync", "torque_limit", full_torque(ONE.buses[0]))


def test_an_answer_that_is_lost_is_asked_for_with_more_patience_each_time():
    _, (line,), _ = make()
    line.deaf_for[2] = 2
    assert torque_off(line) == []
    tries = [entry for entry in line.done("write") if entry[1] == 2]
    assert [entry[5] for entry in tries] == [WRITE_TIMEOUT_NS, 2 * WRITE_TIMEOUT_NS, 4 * WRITE_TIMEOUT_NS]


@pytest.mark.parametrize(("deaf_for", "missing"), [(3, []), (4, [2])])
def test_a_servo_that_never_acknowledged_is_asked_what_it_holds(deaf_for, missing):
    _, (line,), _ = make()
    line.deaf_for[2] = deaf_for
    assert torque_off(line) == missing
    address = line.registers["torque_enable"].address
    assert line.done("read") == [("read", 2, address, 1, 1, 4 * WRITE_TIMEOUT_NS, 1)]


def test_a_servo_that_still_holds_is_missing():
    _, (line,), _ = make()
    line.deaf_for[2] = 3
    line.sync_write = lambda name, values: None
    assert torque_off(line) == [2]


def test_a_servo_that_refuses_is_missing_and_the_others_are_off():
    _, (line,), _ = make()
    line.refuses = {1, 3}
    assert torque_off(line) == [1, 3]
    assert [line.held[i]["torque_enable"] for i in (2, 4, 5, 6)] == [0] * 4


def test_a_line_that_has_gone_leaves_all_its_motors_unconfirmed():
    rescue, (left, right), _ = make(TWO)
    left.gone = True
    right.silent = {4}
    names = [m.name for m in TWO.buses[0].motors]
    assert rescue.release() == [*names, "right_elbow"]
    assert rescue.lost == {"left": "the line is gone"}


def test_what_is_unconfirmed_is_said_with_what_to_do():
    assert unconfirmed(["a", "b"]) == (
        "torque could not be confirmed off on a, b: switch the arm's power off before you touch it"
    )


def test_every_line_is_closed():
    rescue, lines, _ = make(TWO)
    rescue.close()
    assert all(line.is_closed for line in lines)
