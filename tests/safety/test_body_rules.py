"""The arm in the loop's hands, over a robot that writes down what it is told and reads what the test says."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from edgevla.arguments import Start
from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.errors import BusError
from edgevla.execution import Sync
from edgevla.robots.arm import Reading
from edgevla.robots.body import AT_GOAL_SHARE, FRESH_PERIODS, Body
from edgevla.robots.profile import load_profile
from edgevla.robots.rollout import plan_from
from edgevla.robots.safety import Level, Reason

PROFILE = load_profile("so101")
D, K = len(PROFILE.joints), 5
LOW, HIGH = np.full(D, -100, np.float32), np.full(D, 100, np.float32)
LOW[K] = 0
PERIOD_NS = 20_000_000
MAX = np.array([joint.max_velocity for joint in PROFILE.joints])


def plan(**changes):
    start = Start(
        fps=50.0, chunk_size=10, n_action_steps=10, execution=Sync(), allowed=("sync",), task="", n_steps=None,
        guidance_end=0, max_guidance=1.0, trained_speed=None, trained_range=None, latency_ms=0.0, max_hz=None,
    )  # fmt: skip
    return plan_from(replace(start, **changes), 50.0, D)


@dataclass
class Servo:
    name: str = "gripper"
    temperature_c: float | None = 40.0
    voltage_v: float | None = 7.4
    load_percent: float | None = 10.0
    torque_on: bool | None = True
    faults: tuple[str, ...] = ()
    is_gripper: bool = True
    cure: str = "take it out"
    restart: str = "switch it off and on"


@dataclass
class Robot:
    low: np.ndarray = field(default_factory=LOW.copy)
    high: np.ndarray = field(default_factory=HIGH.copy)
    at: np.ndarray = field(default_factory=lambda: np.full(D, 10, np.float32))
    ages: np.ndarray = field(default_factory=lambda: np.zeros(D, np.uint32))
    servos: list = field(default_factory=list)
    jumped: list = field(default_factory=list)
    unreached: list = field(default_factory=list)
    fails: bool = False
    is_shadow: bool = False
    withheld: np.ndarray = field(default_factory=lambda: np.zeros(D, bool))
    did: list = field(default_factory=list)

    def limits(self):
        return self.low, self.high

    def set_torque(self, on):
        self.did.append(("torque", on))
        if self.fails:
            raise BusError("a pair disagrees")
        return self.unreached

    def set_torque_limit(self, share):
        self.did.append(("limit", share))

    def exchange(self, goal, deadline_ns):
        self.did.append(("exchange", goal, deadline_ns))
        return self.last_reading()

    def last_reading(self):
        return Reading(self.at.copy(), self.ages.copy(), 0)

    def present_goal(self):
        return self.at.copy()

    def present_ticks(self):
        return np.arange(D) * 100

    def health(self):
        return self.servos

    def renew_torque(self, motor):
        self.did.append(("renew", motor))

    def explain_silence(self, silent):
        return "look after the cable"


def make(is_on=True, profile=PROFILE, **robot):
    robot = Robot(**robot)
    clock = VirtualClock(9 * NS_PER_S)
    body = Body(profile, robot, clock, 33_000_000)
    if is_on:
        body.energise(plan())
        robot.did.clear()
    return body, robot, clock


def near(*values):
    return pytest.approx(np.array(values))


def test_torque_comes_on_where_the_arm_is_with_all_that_it_may_have():
    body, robot, clock = make(is_on=False)
    assert not body.is_torque_on
    assert not body.is_reduced
    body.energise(plan())
    assert robot.did == [("torque", True), ("limit", 1.0), ("exchange", None, clock.now_ns() + PERIOD_NS)]
    assert body.is_torque_on
    assert not body.is_reduced
    assert list(body.last_goal) == [10] * D
    assert body.reading is not None
    assert body.is_approaching


def test_the_plan_brings_its_speeds_and_its_period():
    body, _, _ = make()
    np.testing.assert_allclose(body.filter.caps.speed, MAX)
    assert body.filter.dt_s == pytest.approx(0.02)
    body.energise(plan(trained_speed=(10.0,) * D))
    np.testing.assert_allclose(body.filter.caps.speed[:K], 15.0)
    assert body.filter.caps.speed[K] == MAX[K]
    np.testing.assert_allclose(make()[0].filter.caps.slow_speed, MAX * PROFILE.rates.home_speed)


@pytest.mark.parametrize(("leader_ms", "is_slow"), [(None, False), (4.0, True)])
def test_where_there_is_a_leader_arm_a_near_goal_is_gone_to_slowly_too(leader_ms, is_slow):
    body, _, _ = make()
    body.follow(plan(leader_ms=leader_ms))
    for _ in range(2):
        _, bits = body.bend(body.last_goal + 0.2 * MAX, is_slow=False)
        assert bits[0] == (Reason.SLOW_START if is_slow else Reason.RATE)
        assert body.is_approaching == is_slow
        body.bend(body.last_goal, is_slow=False)
        assert not body.is_approaching, "it is there"
        body.bend(body.last_goal + 0.2 * MAX, is_slow=False)
        assert not body.is_approaching
        body.approach()


def test_a_filter_in_thought_has_the_policy_s_own_caps_and_begins_where_the_arm_is():
    body, robot, _ = make()
    before = body.filter
    robot.did.clear()
    robot.at[:] = 4.0
    made = body.filter_in_thought(plan(trained_speed=(10.0,) * D, leader_ms=4.0))
    assert made is not before
    assert body.filter is before
    assert robot.did == []
    np.testing.assert_array_equal(made.last_goal, robot.at)
    np.testing.assert_allclose(made.caps.speed[:K], 15.0)
    _, bits = made.allow(made.last_goal + 0.2 * made.caps.speed)
    assert bits[0] == Reason.RATE, "no leader's slow start"
    assert list(body.last_goal) == [10] * D


def test_another_plan_is_followed_from_where_the_goal_is_and_no_servo_is_told():
    body, robot, _ = make()
    body.bend(np.full(D, 10.3, np.float32), is_slow=False)
    goal = body.last_goal.copy()
    body.follow(plan(fps=25.0, max_hz=25.0, trained_speed=(10.0,) * D))
    assert robot.did == []
    assert body.is_torque_on
    assert body.is_approaching
    np.testing.assert_array_equal(body.last_goal, goal)
    assert body.filter.dt_s == pytest.approx(0.04)
    np.testing.assert_allclose(body.filter.caps.speed[:K], 15.0)
    body.freeze()
    robot.ages[:] = 81_000
    robot.at[:] = 30
    body.freeze()
    assert list(body.last_goal) == [10] * D, "two periods of the new plan make a joint's word stale"


def test_torque_that_cannot_come_on_everywhere_comes_on_nowhere():
    body, robot, _ = make(is_on=False, unreached=["elbow", "wrist"])
    with pytest.raises(BusError, match="could not be switched on at elbow, wrist"):
        body.energise(plan())
    assert robot.did == [("torque", True), ("torque", False)]
    assert not body.is_torque_on


def test_a_refusal_by_the_driver_switches_all_off_and_is_passed_on():
    body, robot, _ = make(is_on=False)

    def refuse(on):
        robot.did.append(("torque", on))
        if on:
            raise BusError("far outside")
        return []

    robot.set_torque = refuse
    with pytest.raises(BusError, match="far outside"):
        body.energise(plan())
    assert robot.did == [("torque", True), ("torque", False)]


def test_a_start_forgets_what_the_gripper_was_relieved_of():
    body, _, _ = relieved()
    body.energise(plan())
    _, bits = body.bend(np.zeros(D, np.float32), is_slow=False)
    assert not bits[K] & Reason.SERVO


def test_torque_off_says_whom_it_did_not_reach():
    body, robot, _ = make()
    body.limit_torque(0.4)
    assert body.is_reduced
    robot.unreached = ["elbow"]
    assert body.switch_off() == ["elbow"]
    assert not body.is_torque_on
    assert not body.is_reduced
    body.limit_torque(1.0)
    assert not body.is_reduced
    assert robot.did == [("limit", 0.4), ("torque", False), ("limit", 1.0)]


def test_with_every_line_lost_all_motors_may_have_torque():
    body, robot, _ = make()
    robot.unreached = ["wrist"]
    assert body.lost() == ["wrist"]
    assert body.lost() == [], "it was off"
    body, robot, _ = make()
    robot.fails = True
    assert body.lost() == [joint.motor for joint in PROFILE.joints]
    assert not body.is_torque_on


# -- goals ---------------------------------------------------------------------------------------------------


def test_a_frozen_arm_is_told_to_be_where_it_is_now():
    body, robot, _ = make()
    body.bend(np.full(D, 11, np.float32), is_slow=False)
    robot.at = np.full(D, 20, np.float32)
    body.freeze()
    assert list(body.last_goal) == [20] * D
    assert body.is_approaching
    assert FRESH_PERIODS == 2


def test_a_joint_that_does_not_say_where_it_is_keeps_its_goal():
    body, robot, _ = make()
    robot.at, robot.ages[:] = np.full(D, 20, np.float32), [40_000, 40_001, 0, 0, 0, 0]
    body.freeze()
    assert list(body.last_goal) == [20, 10, 20, 20, 20, 20]


def test_a_frozen_gripper_pushes_no_more():
    body, _, _ = relieved()
    body.freeze()
    assert not body.bend(np.zeros(D, np.float32), is_slow=False)[1][K] & Reason.SERVO


def test_an_arm_without_torque_is_not_frozen_and_gets_no_goal():
    body, robot, _ = make(is_on=False)
    body.freeze()
    body.approach()
    goal, bits = body.bend(np.zeros(D, np.float32), is_slow=False)
    assert goal is None
    assert (list(bits), bits.dtype) == ([0] * D, np.uint16)
    assert body.is_at_goal()
    assert robot.did == []
    body, robot, _ = make()
    body.switch_off()
    assert body.bend(np.zeros(D, np.float32), is_slow=False)[0] is None


def test_goals_are_bent_by_the_filter_and_its_reasons_told():
    body, _, _ = make()
    body.bend(np.full(D, 10, np.float32), is_slow=False)
    goal, bits = body.bend(np.full(D, 90, np.float32), is_slow=False)
    np.testing.assert_allclose(goal, 10 + MAX * 0.02, rtol=1e-5)
    assert set(bits) == {int(Reason.RATE)}
    goal, bits = body.bend(np.full(D, 90, np.float32), is_slow=True)
    assert set(bits) == {int(Reason.SLOW_START)}


def test_an_approach_is_slow_again_from_where_the_goal_is():
    body, _, _ = make()
    body.bend(np.full(D, 10, np.float32), is_slow=False)
    assert not body.is_approaching
    body.approach()
    assert body.is_approaching
    assert list(body.last_goal) == [10] * D


@pytest.mark.parametrize(
    "wanted", [None, np.zeros(3), np.full(D, np.nan), np.array([90.0, np.nan, 0, 0, 0, 0]), np.full(D, 11.0)]
)
def test_what_is_near_or_no_goal_is_not_far(wanted):
    assert make()[0].far_from(wanted) == ""


def test_the_joint_with_farthest_to_go_for_its_speed_is_named():
    body, _, _ = make()
    wanted = np.full(D, 10.0)
    edge = MAX[2] * 0.25
    wanted[2] = 10 + edge
    assert body.far_from(wanted) == ""
    wanted[2] = 10 - edge - 1
    wanted[K] = 50 if MAX[K] > MAX[2] else 10
    assert body.far_from(wanted) == f"{PROFILE.joints[2].name} by {edge + 1:.1f}"
    wanted[2] = 4000
    assert body.far_from(wanted).endswith("by 90.0"), "no farther than it may go"


def test_a_joint_that_cannot_move_is_farthest():
    body, _, _ = make()
    body.filter.caps.speed[1] = 0
    wanted = np.full(D, 10.0)
    wanted[1], wanted[0] = 11, 90
    assert body.far_from(wanted) == f"{PROFILE.joints[1].name} by 1.0"


def test_speeds_below_one_count_as_they_are():
    body, _, _ = make()
    body.filter.caps.speed[:2] = 50, 0.5
    wanted = np.full(D, 10.0)
    wanted[0], wanted[1] = 90, 11  # 1.6 seconds, and 2
    assert body.far_from(wanted) == f"{PROFILE.joints[1].name} by 1.0"


def relieved():
    """A gripper at 10 that was told to go to 0, and has been let go to 8."""
    body, robot, clock = make()
    robot.servos = [Servo(faults=("overload",))]
    body.filter.begin(np.where(np.arange(D) == K, 0, 10))
    (found,) = body.judge(body.last_goal, is_sinking=False, is_gripping=True)
    assert found.code == "gripper_relieved"
    return body, robot, clock


def test_a_joint_that_is_told_nothing_keeps_its_goal_and_goes_on_from_there():
    """Its goal had moved on unheard, and the next one that it heard was a jump."""
    body, robot, _ = make()
    body.filter.begin(np.full(D, 10))
    first, _ = body.bend(np.full(D, 10.5, np.float32), is_slow=False)
    robot.withheld[1] = True
    goal, bits = body.bend(np.full(D, 11, np.float32), is_slow=False)
    assert goal[1] == first[1]
    assert bits[1] == Reason.STALE
    assert goal[0] > first[0]
    assert bits[0] & Reason.STALE == 0
    assert body.last_goal[1] == first[1]


def test_a_relieved_gripper_is_asked_neither_home_nor_to_rest():
    body, _, _ = relieved()
    body.home[K] = body._rest[K] = 0
    assert body.bent_home()[K] == pytest.approx(8)
    assert body.rest()[K] == pytest.approx(8)
    assert list(body.bent_home()[:K]) == list(body.home[:K])
    body, _, _ = make()
    assert body.bent_home() is body.home
    assert body.rest() is body._rest


def test_a_relieved_gripper_says_so_and_its_torque_is_renewed_when_it_is_there():
    body, robot, _ = relieved()
    robot.did.clear()
    _goal, bits = body.bend(np.where(np.arange(D) == K, 0, 10).astype(np.float32), is_slow=False)
    assert bits[K] & Reason.SERVO
    body.renew_torque(np.full(D, 3, np.float32))
    assert robot.did == []
    body.renew_torque(np.full(D, 8, np.float32))
    assert robot.did == [("renew", "gripper")]


def test_home_and_rest_are_within_what_the_joints_reach():
    high = HIGH.copy()
    rest = PROFILE.joints[2].rest
    high[2] = rest - 20
    body, _, _ = make(high=high)
    assert body.home[2] == min(PROFILE.joints[2].home, rest - 20)
    assert body.rest()[2] == rest - 20
    assert f"{PROFILE.joints[2].name} {rest:g} (it gets to {rest - 20:.1f})" in body.unreachable_rest()
    assert body.unreachable_rest().count("it gets to") == 1
    assert make()[0].unreachable_rest() == ""
    high[2] = rest - 0.5
    assert PROFILE.joints[2].name in make(high=high)[0].unreachable_rest()
    high[2] = rest - 5e-4
    assert make(high=high)[0].unreachable_rest() == ""


@pytest.mark.parametrize("joint", range(D))
def test_an_arm_is_at_its_goal_when_every_joint_but_the_gripper_is_near(joint):
    body, robot, _ = make()
    near_enough = AT_GOAL_SHARE * PROFILE.limits.following_error
    assert near_enough == pytest.approx(25 / 3)
    robot.at[joint] = 10 - near_enough + 0.01
    assert body.is_at_goal() is True
    robot.at[joint] = 10 + near_enough + 0.01
    assert body.is_at_goal() is (joint == K)


def test_ticks_are_of_the_joints_that_were_read_lately():
    body, robot, _ = make()
    robot.ages[:] = [0, 40_000, 40_001, 0, 0, 0]
    motors = [joint.motor for joint in PROFILE.joints]
    assert body.ticks() == {motors[k]: 100 * k for k in (0, 1, 3, 4, 5)}


# -- judging -------------------------------------------------------------------------------------------------


def codes(found):
    return [finding.code for finding in found]


def test_what_was_read_last_is_judged_by_the_profiles_limits():
    body, _robot, clock = make()
    goal = np.full(D, 60, np.float32)
    assert body.judge(goal, is_sinking=False, is_gripping=True) == []
    clock.advance(NS_PER_S)
    assert codes(body.judge(goal, is_sinking=False, is_gripping=True)) == ["following_error"]
    assert body.judge(goal, is_sinking=True, is_gripping=True) == []
    assert body.judge(None, is_sinking=False, is_gripping=True) == []
    body.saw(Reading(np.full(D, 60, np.float32), np.zeros(D, np.uint32), 0))
    assert body.judge(goal, is_sinking=False, is_gripping=True) == []


def test_an_old_position_is_told_with_where_to_look():
    body, _, _ = make()
    body.saw(Reading(np.zeros(D, np.float32), np.full(D, 600_000, np.uint32), 0))
    (found,) = body.judge(None, is_sinking=False, is_gripping=False)
    assert "look after the cable" in found.text


def test_three_ticks_of_the_plan_are_counted_not_of_the_idle_loop():
    body, _, _ = make()
    body.saw(Reading(np.zeros(D, np.float32), np.full(D, 25_000, np.uint32), 0))
    found = [codes(body.judge(None, False, False)) for _ in range(3)]
    assert found == [[], [], ["state_stale"]]
    body.saw(Reading(np.zeros(D, np.float32), np.full(D, 15_000, np.uint32), 0))
    assert [codes(body.judge(None, False, False)) for _ in range(5)] == [[]] * 5


def test_torque_that_goes_off_by_itself_is_told_while_it_should_be_on():
    body, robot, clock = make()
    robot.servos = [Servo("elbow_flex", torque_on=False, is_gripper=False)]
    body.judge(None, False, False)
    clock.advance(NS_PER_S)
    assert codes(body.judge(None, False, False)) == ["torque_lost"]
    body.switch_off()
    assert body.judge(None, False, False) == []


def test_a_gripper_is_let_go_only_while_something_is_sent_and_nothing_ends():
    goal = np.zeros(D, np.float32)
    for sent, gripping in ((goal, False), (None, True)):
        body, robot, _ = make()
        robot.servos = [Servo(faults=("overload",))]
        assert body.judge(sent, is_sinking=True, is_gripping=gripping) == []


def test_a_joint_that_jumped_stops_the_arm_while_it_has_torque():
    body, robot, _ = make()
    robot.jumped = ["elbow_flex", "wrist_flex"]
    (found,) = body.judge(None, False, False)
    assert (found.level, found.code) == (Level.STOP, "jump")
    assert found.text.startswith("elbow_flex, wrist_flex jumped")
    body.switch_off()
    assert body.judge(None, False, False) == []


def test_the_gravest_finding_comes_first():
    body, robot, _ = make()
    robot.servos = [Servo("elbow_flex", temperature_c=61.0), Servo(faults=("overload",))]
    robot.jumped = ["elbow_flex"]
    found = body.judge(np.zeros(D, np.float32), is_sinking=True, is_gripping=True)
    assert codes(found) == ["jump", "warm", "gripper_relieved"]


def test_a_joint_where_training_never_was_is_told():
    body, robot, _ = make()
    seen = np.stack([np.full(D, 0.0), np.full(D, 10.0)]).astype(np.float32)
    robot.at[:] = [-1.0, 11.0, -1.01, 11.01, 5, 5]
    body.energise(plan())
    names = [sentence.split(" is at ")[0] for sentence in body.outside_training(seen)]
    assert names == [PROFILE.joints[2].name, PROFILE.joints[3].name]
    assert "is at -1.0; training saw 0.0 to 10.0" in body.outside_training(seen)[0]
    assert body.outside_training(None) == []
    assert make(is_on=False)[0].outside_training(seen) == []


def test_a_range_of_no_width_is_left_by_more_than_a_thousandth():
    body, robot, _ = make()
    seen = np.full((2, D), 10, np.float32)
    robot.at[:] = [10.0005, 10.01, 9.99, 10, 10, 10]
    body.energise(plan())
    assert len(body.outside_training(seen)) == 2


# -- a shadow ----------------------------------------------------------------------------------------------------------


def test_a_shadow_makes_goals_from_where_the_arm_is_and_writes_nothing():
    body, robot, clock = make(is_on=False, is_shadow=True)
    assert body.bend(np.zeros(D), False)[0] is None
    body.energise(plan())
    assert [deed[0] for deed in robot.did] == ["exchange"]
    assert robot.did[0][1:] == (None, clock.now_ns() + plan().period_ns)
    assert (body.is_torque_on, body.is_shadowing) == (False, True)
    assert body.last_goal == near(*[10.0] * D)
    goal, _ = body.bend(np.full(D, 10.001, np.float32), False)
    assert goal is not None
    robot.at[:] = 20.0
    body.approach()
    assert body.last_goal == near(*[20.0] * D), "it has been carried there"
    robot.did.clear()
    assert body.switch_off() == []
    assert (robot.did, body.is_shadowing) == ([], False)
    assert body.bend(np.zeros(D), False)[0] is None
