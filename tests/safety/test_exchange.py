"""The tick's work on lines without wires: what is sent to whom, what is believed, how old it is, and who is named."""

import numpy as np
import pytest
from safety_kit import robot_of

from edgevla.clock import VirtualClock
from edgevla.errors import BusError, UsageError
from edgevla.robots import arm as module
from edgevla.robots.arm import FASTEST_TICKS_S, JUMP_FLOOR_TICKS
from edgevla.robots.bus.report import RESTARTED, ServoReport
from edgevla.robots.profile import load_profile

ONE, TWO = load_profile("so101"), load_profile("aloha")
MS = 1_000_000
TAKES_NS = 2 * MS


class Bench:
    """A robot whose exchange takes 2 ms; health reads take none unless they are due."""

    def __init__(self, profile=ONE, torque=True):
        self.clock = VirtualClock(5_000 * MS)
        self.robot, self.lines = robot_of(profile, self.clock)
        self.line = self.lines[0]
        self.n_finished = 0
        self.robot._torque.is_on = torque
        self.keep_health_quiet()

    def keep_health_quiet(self):
        for each in self.robot._lines:
            each.health.next_ns = 1 << 62

    def finish(self, reads, clock):
        """In place of `reads.finish`: the first of an exchange takes the time."""
        self.n_finished += 1
        if self.n_finished % 2:
            self.clock.advance(TAKES_NS)

    def tick(self, goal=None, ms=10):
        self.clock.advance(ms * MS)
        return self.robot.exchange(goal, self.clock.now_ns() + 9 * MS)

    def put(self, servo_id, tick):
        self.line.held[servo_id]["present_position"] = tick


@pytest.fixture
def bench(monkeypatch):
    def make(*args, **more):
        made = Bench(*args, **more)
        monkeypatch.setattr(module, "finish", made.finish)
        return made

    return make


def test_goals_go_out_with_the_read_in_ticks(bench):
    made = bench()
    made.tick()
    goal = made.robot.present_goal()
    made.line.done()
    reading = made.tick(goal)
    (read,) = made.line.done("begin")
    ticks = made.robot.units.ticks(goal)
    assert read == (
        "begin",
        (1, 2, 3, 4, 5, 6),
        made.clock.now_ns() - TAKES_NS + 9 * MS,
        dict(enumerate(ticks, 1)),
        2,
        True,
    )
    assert reading.n_stale == 0
    assert list(reading.position_age_us) == [0] * 6
    assert (reading.duration_ns, reading.observed_ns) == (TAKES_NS, made.clock.now_ns())
    np.testing.assert_allclose(reading.position, made.robot.units.state(np.arange(2101, 2107)))
    assert list(made.robot.present_ticks()) == list(range(2101, 2107))


def sent(made, goal):
    made.line.done()
    made.tick(goal)
    return made.line.done("begin")[0][3]


def test_nothing_is_sent_without_a_goal_or_without_torque(bench):
    made = bench()
    assert sent(made, None) == b""
    goal = made.robot.present_goal()
    assert sent(made, goal)
    made.robot._torque.is_on = False
    assert sent(made, goal) == b""


def test_a_servo_that_is_withheld_gets_no_goal_and_with_all_withheld_nothing_is_sent(bench):
    made = bench()
    made.tick()
    goal = made.robot.present_goal()
    health = made.robot._lines[0].health
    health.servos[3].conclude(RESTARTED)
    assert set(sent(made, goal)) == {1, 2, 4, 5, 6}
    for servo in health.servos.values():
        servo.conclude(RESTARTED)
    assert sent(made, goal) == b""


def test_the_joints_that_would_get_no_goal_are_named_and_a_shadow_is_no_joint(bench):
    made = bench(TWO)
    assert list(made.robot.withheld) == [False] * len(TWO.joints)
    left, right = (each.health for each in made.robot._lines)
    left.doubted = {2}
    right.servos[3].conclude(RESTARTED)  # right_shoulder_shadow
    right.servos[9].conclude(RESTARTED)
    held = {joint.motor for joint, is_held in zip(TWO.joints, made.robot.withheld, strict=True) if is_held}
    assert held == {"left_shoulder", "right_gripper"}


def test_a_silent_servo_is_doubted_and_its_value_ages(bench):
    made = bench()
    made.tick()
    made.line.silent = {2}
    reading = made.tick()
    assert reading.n_stale == 1
    assert list(reading.position_age_us) == [0, 12_000, 0, 0, 0, 0]
    assert made.robot._lines[0].health.doubted == {2}
    assert [made.line.counters[i].n_stale for i in (1, 2)] == [0, 1]
    made.clock.advance(5 * MS)
    aged = made.robot.last_reading()
    assert list(aged.position_age_us) == [5_000, 17_000, 5_000, 5_000, 5_000, 5_000]
    assert (aged.observed_ns, aged.duration_ns) == (reading.observed_ns, 0)
    assert list(aged.position) == list(reading.position)


def test_a_joint_that_was_never_read_is_as_old_as_can_be(bench):
    made = bench()
    made.line.silent = {2}
    assert made.tick().position_age_us[1] == 2**32 - 1
    made.clock.advance(3 * 2**31 * 1000)  # half as much again as the number holds, in microseconds
    assert list(made.robot.last_reading().position_age_us) == [2**32 - 1] * 6


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("beyond", "n_stale"), [(0, 0), (1, 1)])
def test_a_sample_beyond_reach_is_dropped_and_reach_is_exact(bench, sign, beyond, n_stale):
    """Twice as far as the fastest servo goes since it was asked last, and 80 ticks."""
    assert (FASTEST_TICKS_S, JUMP_FLOOR_TICKS) == (4500.0, 80)
    made = bench()
    made.tick()
    # asked at the begin of the exchange before, heard at the end of this one: 2 + 10 + 2 ms
    reach = round(FASTEST_TICKS_S * 0.014 * 2 + JUMP_FLOOR_TICKS)
    assert reach == 206
    made.put(1, 2101 + sign * (reach + beyond))
    assert made.tick().n_stale == n_stale
    assert made.robot.counters()["bus_invalid"] == n_stale
    assert made.robot.present_ticks()[0] == (2101 if n_stale else 2101 + sign * reach)


def test_a_jump_that_stays_is_believed_and_named_for_one_tick(bench):
    made = bench()
    made.tick()
    made.put(2, 3500)
    assert made.tick().n_stale == 1
    assert made.robot.jumped == []
    assert made.tick().n_stale == 0
    assert made.robot.jumped == [ONE.joints[1].name]
    assert made.robot.present_ticks()[1] == 3500
    assert made.tick().n_stale == 0
    assert made.robot.jumped == []


def test_a_jump_that_goes_back_was_damage(bench):
    made = bench()
    made.tick()
    made.put(2, 3500)
    made.tick()
    made.put(2, 2102)
    assert made.tick().n_stale == 0
    assert made.robot.jumped == []
    made.put(2, 3500)
    assert made.tick().n_stale == 1, "counted anew"


def test_the_first_sample_is_believed_wherever_it_is(bench):
    made = bench()
    made.put(1, 4000)
    assert made.tick().n_stale == 0


def test_beyond_one_turn_is_no_position_and_is_remembered_until_it_is_over(bench):
    made = bench()
    made.tick()
    made.put(3, 5000)
    assert made.tick().n_stale == 1
    assert made.robot._beyond == {2: 5000}
    made.put(3, 2103)
    made.tick()
    assert made.robot._beyond == {}
    assert made.robot.counters()["bus_invalid"] == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            [0, 0, np.nan, 0, 0, np.inf],
            "no number: elbow_flex.pos is nan, gripper.pos is inf; nothing was sent",
        ),
        (np.zeros(5), r"is 6 numbers \(shoulder_pan.pos, .*\), not \(5,\)"),
        (np.zeros((6, 1)), r"not \(6, 1\)"),
        ("home", r"not \(\)"),
        (["a"] * 6, "is 6 numbers"),
    ],
)
def test_what_is_no_goal_is_refused_before_anything_is_asked(bench, bad, words):
    made = bench()
    with pytest.raises(UsageError, match=words):
        made.tick(bad)
    assert made.line.done() == []
    assert made.robot.counters()["goals_refused"] == 1


def test_what_the_tick_says_of_a_servo_is_its_health(bench):
    made = bench()
    made.line.reports[4] = ServoReport(load_percent=33.0)
    made.tick()
    assert {s.name: s.load_percent for s in made.robot.health()}["wrist_flex"] == 33.0
    made.line.silent = {4}
    made.line.reports[4] = ServoReport(load_percent=44.0)
    made.tick()
    assert made.robot._lines[0].health.servos[4].load_percent == 33.0


def test_health_is_read_after_the_tick_of_whom_is_due(bench):
    made = bench()
    made.robot._lines[0].health.next_ns = 0
    made.line.reports[1] = ServoReport(temperature_c=50.0)
    made.tick()
    reads = made.line.done("begin")
    assert len(reads) == 2
    assert reads[1][2] == made.clock.now_ns() - TAKES_NS + 9 * MS
    assert made.robot._lines[0].health._seen[1].at_ns == made.clock.now_ns()


def test_both_arms_are_asked_at_the_same_time_and_their_joints_are_in_order(bench):
    made = bench(TWO)
    made.lines[1].silent = {2}
    reading = made.tick()
    assert made.n_finished == 2, "one for the tick, one for health"
    assert reading.n_stale == 1
    joint = [j.motor for j in TWO.joints].index("right_shoulder")
    assert reading.position_age_us[joint] == 2**32 - 1
    assert sum(reading.position_age_us > 0) == 1


def test_a_line_that_has_gone_is_an_error_after_the_other_was_served(bench):
    made = bench(TWO)
    made.tick()
    left, right = made.lines
    left.gone = True
    right.held[1]["present_position"] += 50
    assert not made.robot.has_lost_lines
    with pytest.raises(BusError, match="the line is gone"):
        made.tick()
    assert made.robot.has_lost_lines
    assert not made.robot.is_cut_off
    waist = [j.motor for j in TWO.joints].index("right_waist")
    assert made.robot.present_ticks()[waist] == 2151
    ages = made.robot.last_reading().position_age_us
    assert ages[waist] == 0
    assert ages[0] == 12_000
    assert made.robot._reading.n_stale == 7
    right.gone = True
    with pytest.raises(BusError):
        made.tick()
    assert made.robot.is_cut_off


def test_the_present_goal_is_where_it_would_be_sent(bench):
    made = bench()
    made.tick()
    robot = made.robot
    np.testing.assert_array_equal(robot.units.ticks(robot.present_goal()), robot.present_ticks())
    low = int(robot.units.least[0])
    made.put(1, low - 30)
    for _ in range(2):
        made.tick()
    assert robot.units.ticks(robot.present_goal())[0] == low


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_torque_is_passed_on(bench, share):
    made = bench()
    made.robot.set_torque_limit(share)
    (written,) = made.line.done("sync")
    assert set(written[2].values()) == {int(full * share) for full in made.robot.rescue._full["arm"].values()}


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_what_is_no_share_is_refused(bench, share):
    made = bench()
    with pytest.raises(UsageError, match="a share of 0 to 1"):
        made.robot.set_torque_limit(share)
    assert made.line.done() == []
