"""The table's hands, one by one: what each deed does to an arm that writes down what is done to it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from deeds_kit import START, D, Loop, chunk_is_there, parked

from edgevla.arguments import SetTask
from edgevla.clock import NS_PER_S
from edgevla.execution import Async, Rtc, Sync
from edgevla.robots.commands import COMMANDS
from edgevla.robots.links import PARKED, RELEASED, RUNNING, STOPPING
from edgevla.robots.modes import NodeState


def test_a_start_says_so_to_the_guardian_before_it_energises():
    loop = Loop()
    order = []
    loop.commands._links.lease = lambda byte: order.append((byte, list(loop.arm.did)))
    loop.teller.remark("usb", "a slow adapter")
    loop.arm.outside, loop.arm.unreachable = ["elbow is at 200"], "the rest pose lies outside"
    assert loop.obey("start", START) == (True, "")
    assert order[0] == (STOPPING, [])
    assert loop.arm.did == ["energise", "approach"]
    assert loop.commands.wants_new_grid
    assert [code for _, code, _ in loop.events] == [
        "outside_training", "rest_unreachable", "usb", "mode_running",
    ]  # fmt: skip
    assert loop.commands.plan.task == loop.commands.rollout.task == "go"
    assert loop.commands.lease == RUNNING
    assert loop.commands.rollout.next_request == 0
    loop.commands.begin_grid()
    assert not loop.commands.wants_new_grid


def test_before_the_first_start_there_is_no_plan_and_nothing_is_held():
    commands = Loop().commands
    assert (commands.plan, commands.rollout, commands.ending) == (None, None, None)
    assert (commands.lease, commands.is_held, commands.is_over, commands.wants_new_grid) == (
        RELEASED, False, False, False,
    )  # fmt: skip


def test_a_start_makes_everything_news_again():
    loop = Loop().start()
    loop.teller.once("stop", "jump", "it jumped")
    loop.obey("stop")
    loop.arm.at_goal = True
    loop.arm.last_goal = loop.arm.rest()
    loop.finish()
    loop.start()
    loop.teller.once("stop", "jump", "it jumped")
    assert loop.told("jump") == [("stop", "it jumped")]


def test_a_start_that_fails_leaves_it_where_it_was():
    loop = Loop()
    loop.arm.fails = True
    assert loop.obey("start", START) == (False, "a pair disagrees")
    assert (loop.state, loop.commands.rollout) == (NodeState.IDLE, None)


def test_a_parked_arm_whose_start_fails_has_stopped():
    loop = parked()
    loop.arm.fails = True
    assert loop.obey("start", START) == (False, "a pair disagrees")
    assert loop.state is NodeState.STOPPED


def test_a_start_that_this_robot_cannot_do_touches_nothing():
    loop = Loop()
    is_accepted, reason = loop.obey("start", replace(START, fps=61.0))
    assert not is_accepted
    assert "60 Hz" in reason
    assert (loop.arm.did, loop.leases) == ([], [])


def test_requests_count_on_from_one_start_to_the_next():
    loop = Loop().start()
    loop.commands.rollout._next_request = 7
    loop.obey("stop")
    loop.arm.last_goal = loop.arm.rest()
    loop.arm.at_goal = True
    loop.finish().start()
    assert loop.commands.rollout.next_request == 7


def test_a_held_start_has_torque_and_waits_until_somebody_moves_it():
    loop = Loop()
    assert loop.obey("start", replace(START, is_held=True)) == (True, "")
    assert (loop.state, loop.arm.did) == (NodeState.PAUSED, ["energise", "approach"])
    assert loop.commands.lease == RUNNING
    assert loop.obey("resume") == (True, "")
    assert loop.state is NodeState.RUNNING


@pytest.mark.parametrize("is_held", [True, False])
def test_a_paused_arm_takes_another_plan_and_keeps_its_torque(is_held):
    loop = Loop().start(is_held=True)
    loop.commands.begin_grid()
    loop.commands.rollout._next_request = 7
    assert loop.obey("start", replace(START, fps=20.0, task="push", is_held=is_held)) == (True, "")
    assert loop.did() == ["follow 20", "approach"]
    assert loop.state is (NodeState.PAUSED if is_held else NodeState.RUNNING)
    assert loop.commands.wants_new_grid
    assert (loop.commands.plan.task, loop.commands.rollout.next_request) == ("push", 7)


def test_a_plan_that_this_robot_cannot_do_leaves_the_paused_arm_its_own():
    loop = Loop().start(is_held=True)
    is_accepted, reason = loop.obey("start", replace(START, fps=61.0))
    assert not is_accepted
    assert "60 Hz" in reason
    assert (loop.state, loop.commands.plan.fps, loop.did()) == (NodeState.PAUSED, 30.0, [])


def test_a_parked_arm_is_left_at_its_share_and_said_to_be_so():
    loop = parked()
    assert loop.did() == [0.4]
    assert loop.commands.lease == PARKED
    assert loop.leases[-1] == PARKED
    assert not loop.commands.is_held
    assert "torque stays on, at 40%" in loop.told("released")[0][1]


@pytest.mark.parametrize("action", ["", "dance"])
def test_a_word_that_nobody_knows_is_refused(action):
    assert Loop().obey(action) == (False, f"the robot node does not know '{action}'")


def test_a_command_has_its_reason():
    loop = Loop().start()
    loop.obey("pause")
    assert loop.commands.machine.reason == "asked to"
    loop.obey("resume")
    assert loop.commands.machine.reason == ""
    assert set(COMMANDS) >= {"start", "stop", "clear_stop", "home"}


@pytest.mark.parametrize(
    ("action", "state"), [("pause", NodeState.PAUSED), ("home", NodeState.HOMING), ("stop", NodeState.ENDING)]
)
def test_who_leaves_the_plan_forgets_its_chunks(action, state):
    loop = Loop().start()
    chunk_is_there(loop)
    assert loop.obey(action) == (True, "")
    assert loop.state is state
    assert not loop.commands.rollout._has_flowed
    assert loop.did() == []


@pytest.mark.parametrize(("first", "action"), [(None, "reset"), ("pause", "resume")])
def test_a_new_beginning_is_a_new_grid_and_a_slow_approach(first, action):
    loop = Loop().start()
    loop.commands.begin_grid()
    if first:
        loop.obey(first)
    loop.commands.rollout._next_request = 3
    loop.commands.rollout._pending[2] = 1
    assert loop.obey(action) == (True, "")
    assert loop.did() == ["approach"]
    assert loop.commands.wants_new_grid
    assert (loop.commands.rollout._first_request, loop.commands.rollout._pending) == (3, {})


def test_a_task_is_changed_and_told():
    loop = Loop().start()
    loop.obey("set_task", SetTask("push"))
    assert loop.commands.rollout.task == "push"
    assert loop.told("task") == [("info", "task: push")]


def test_an_execution_is_changed_if_the_bundle_allows_and_the_policy_is_fast_enough():
    loop = Loop().start()
    assert loop.obey("set_execution", Async()) == (True, "")
    assert isinstance(loop.commands.rollout.executor.execution, Async)
    assert loop.told("execution") == [("info", "execution: async")]
    loop = Loop().start(allowed=("sync",))
    assert loop.obey("set_execution", Async()) == (False, "this bundle allows sync, not async")
    loop = Loop().start()
    is_accepted, reason = loop.obey("set_execution", Rtc(guidance_end=99))
    assert not is_accepted
    assert "99" in reason
    loop = Loop().start(most_drawn=4)
    assert loop.obey("set_execution", Async(select=4)) == (True, "")
    refused = (False, "select 5: this policy draws 4 per inference at most")
    assert loop.obey("set_execution", Async(select=5)) == refused
    assert loop.commands.rollout.executor.execution == Async(select=4)


@pytest.mark.parametrize("measured", ["while warming up", "while running"])
def test_a_policy_that_is_too_slow_is_refused_and_a_slow_one_is_warned_of(measured):
    def started(latency_ms):
        if measured == "while warming up":
            return Loop().start(latency_ms=latency_ms)
        loop = Loop().start()
        loop.commands.rollout.executor.expect_delay(round(latency_ms * 30 / 1000))
        return loop

    loop = started(700.0)
    is_accepted, reason = loop.obey("set_execution", Async())
    assert not is_accepted
    assert len(reason.split()) > 5
    assert isinstance(loop.commands.rollout.executor.execution, Sync)
    loop = started(400.0)
    assert loop.obey("set_execution", Async()) == (True, "")
    assert [severity for severity, _ in loop.told("latency")] == ["warning"]


# -- who drives ----------------------------------------------------------------------------------------------------


def led(**changes):
    loop = Loop().start(leader_ms=40.0, **changes)
    loop.commands.begin_grid()
    assert loop.obey("lead") == (True, "")
    return loop


def test_a_leader_takes_the_policy_s_place_on_the_same_grid():
    loop = led()
    policy = loop.commands._policy
    assert loop.did() == ["follow 30"]
    assert loop.commands.driver == "leader"
    assert not loop.commands.wants_new_grid
    assert loop.told("driver") == [("info", "the leader drives")]
    assert (loop.commands.plan.execution, loop.commands.plan.latency_ms) == (Async(every=1), 40.0)
    assert (policy.plan.execution, loop.commands.rollout.task) == (Sync(), "go")
    assert (loop.state, loop.commands.machine.reason) == (NodeState.RUNNING, "the leader drives")
    assert loop.commands.rollout.answered_ns == loop.clock.now_ns(), "its silence counts from here"


def test_a_hand_back_is_to_the_same_plan_and_nothing_asked_before_counts():
    loop = Loop().start(leader_ms=40.0)
    policy = loop.commands.rollout
    policy._next_request = 7
    chunk_is_there(loop)
    loop.obey("lead")
    assert (loop.commands.rollout._first_request, loop.commands.rollout.next_request) == (7, 7)
    loop.commands.rollout._next_request = 19
    loop.did()
    loop.after(3)
    assert loop.obey("hand_back") == (True, "")
    assert loop.did() == ["follow 30"]
    assert loop.commands.rollout is policy
    assert (policy._first_request, policy.next_request, policy._has_flowed) == (19, 19, False)
    assert policy.answered_ns == loop.clock.now_ns()
    assert (loop.commands.driver, loop.commands.n_takeovers) == ("policy", 1)
    assert loop.commands.machine.reason == "the policy drives"


def test_who_drives_already_is_not_asked_to_again():
    loop = Loop().start(leader_ms=40.0)
    assert loop.obey("hand_back") == (True, "")
    assert loop.did() == []
    loop.obey("lead")
    rollout = loop.commands.rollout
    loop.did()
    assert loop.obey("lead") == (True, "")
    assert (loop.did(), loop.commands.n_takeovers) == ([], 1)
    assert loop.commands.rollout is rollout


def test_without_a_leader_nobody_takes_over():
    loop = Loop().start()
    is_accepted, reason = loop.obey("lead")
    assert (is_accepted, "start it with --leader" in reason) == (False, True)
    assert (loop.did(), loop.commands.driver, loop.commands.n_takeovers) == ([], "policy", 0)


def test_what_is_said_while_a_leader_drives_is_the_policy_s_too():
    loop = led()
    loop.obey("set_task", SetTask("put it down"))
    is_accepted, reason = loop.obey("set_execution", Async())
    assert (is_accepted, "hand back to the policy first" in reason) == (False, True)
    loop.obey("hand_back")
    assert loop.commands.rollout.task == "put it down"


@pytest.mark.parametrize("is_led", [False, True])
def test_another_policy_s_plan_is_the_policy_s_to_drive(is_led):
    loop = led() if is_led else Loop().start(leader_ms=40.0)
    loop.obey("pause")
    loop.did()
    assert loop.obey("start", replace(START, fps=20.0)) == (True, "")
    assert loop.did() == ["follow 20", "approach"]
    assert (loop.commands.driver, loop.commands._policy) == ("policy", None)


def test_a_paused_arm_stays_paused_whoever_shall_drive():
    loop = Loop().start(leader_ms=40.0)
    loop.obey("pause")
    loop.obey("lead")
    assert (loop.state, loop.commands.driver) == (NodeState.PAUSED, "leader")
    loop.obey("hand_back")
    assert (loop.state, loop.commands.driver) == (NodeState.PAUSED, "policy")


# -- a policy that looks on ----------------------------------------------------------------------------------------


def looked_on():
    loop = Loop()
    assert loop.obey("start", replace(START, leader_ms=40.0, is_shadow=True)) == (True, "")
    return loop


def test_in_a_shadow_run_with_a_leader_the_leader_drives_and_the_policy_has_a_plan_of_its_own():
    loop = looked_on()
    assert loop.did() == ["energise", "approach"]
    policy, leader = loop.commands.onlooker.rollout, loop.commands.rollout
    assert loop.commands.driver == "leader"
    assert policy is loop.commands._policy
    assert policy is not leader
    assert (policy.plan.execution, leader.plan.execution) == (Sync(), Async(every=1))
    assert (leader.plan.latency_ms, loop.commands.n_takeovers) == (40.0, 0)
    np.testing.assert_array_equal(loop.commands.onlooker.last_goal, np.full(D, 7.0))


def test_a_policy_that_looks_on_needs_a_leader():
    is_accepted, reason = Loop().obey("start", replace(START, is_shadow=True))
    assert (is_accepted, "none belongs to this deployment" in reason) == (False, True)


def test_nobody_hands_back_to_a_policy_that_only_looks_on():
    loop = looked_on()
    rollout = loop.commands.rollout
    loop.did()
    is_accepted, reason = loop.obey("hand_back")
    assert (is_accepted, "start without --shadow" in reason) == (False, True)
    assert loop.obey("lead") == (True, "")
    assert (loop.did(), loop.commands.driver, loop.commands.n_takeovers) == ([], "leader", 0)
    assert loop.commands.rollout is rollout


def test_task_and_execution_are_also_those_of_a_policy_that_looks_on():
    loop = looked_on()
    policy, leader = loop.commands.onlooker.rollout, loop.commands.rollout
    assert loop.obey("set_task", SetTask("put it down")) == (True, "")
    assert (policy.task, leader.task) == ("put it down", "put it down")
    assert loop.obey("set_execution", Async(every=3)) == (True, "")
    assert (policy.executor.execution, leader.executor.execution) == (Async(every=3), Async(every=1))


def test_a_pause_is_one_for_a_policy_that_looks_on_too():
    loop = looked_on()
    for rollout in (loop.commands.onlooker.rollout, loop.commands.rollout):
        rollout._has_flowed = True
    loop.commands.onlooker._filter.allow(np.zeros(D, np.float32))
    loop.commands.onlooker._filter.allow(np.zeros(D, np.float32))
    loop.obey("pause")
    assert loop.obey("resume") == (True, "")
    assert not loop.commands.onlooker.rollout._has_flowed
    assert not loop.commands.rollout._has_flowed
    np.testing.assert_array_equal(loop.commands.onlooker.last_goal, np.full(D, 7.0))
    assert loop.commands.onlooker.is_approaching


def test_a_plan_without_a_shadow_ends_the_looking_on():
    loop = looked_on()
    loop.obey("pause")
    assert loop.obey("start", replace(START, leader_ms=40.0)) == (True, "")
    assert (loop.commands.onlooker, loop.commands.driver) == (None, "policy")


@pytest.mark.parametrize("silence_s", [0.1, 5.0])
def test_a_policy_that_was_silent_is_thought_of_from_where_the_arm_is(silence_s):
    """Its goals are bent from one to the next; after a silence, as if the arm were led back to them."""
    loop = looked_on()
    onlooker, policy = loop.commands.onlooker, loop.commands.onlooker.rollout
    policy._has_flowed, policy._starved_from_ns = True, loop.clock.now_ns()
    onlooker._filter.allow(np.full(D, 7.0, np.float32))
    wanted = np.full(D, 90.0, np.float32)
    policy.executor = SimpleNamespace(
        execution=Async(), goal_at=lambda _: SimpleNamespace(wanted=wanted, is_starved=False)
    )
    onlooker._filter.allow(np.full(D, 7.0, np.float32))
    onlooker._filter.last_goal = np.full(D, 50.0, np.float32)
    tick = SimpleNamespace(number=3, deadline_ns=loop.clock.now_ns() + round(silence_s * NS_PER_S))
    goal, bits = onlooker.goal_at(tick, is_held=False)
    assert goal.wanted is wanted
    assert bits.any()
    assert (onlooker.last_goal[0] < 20.0) == (silence_s > 2.0)


# -- a shadow run --------------------------------------------------------------------------------------------------


def shadow():
    loop = Loop()
    loop.arm.robot.is_shadow = True
    loop.start()
    assert (loop.state, loop.arm.is_torque_on, loop.arm.is_shadowing) == (NodeState.RUNNING, False, True)
    return loop


def test_a_shadow_never_tells_the_guardian_of_torque():
    loop = Loop()
    loop.arm.robot.is_shadow = True
    loop.obey("start", START)
    assert (loop.leases, loop.commands.lease, loop.commands.is_held) == ([RELEASED], RELEASED, False)


def test_a_shadow_has_no_way_home_and_goes_on():
    loop = shadow()
    assert loop.obey("home") == (False, "cannot move home: a shadow run moves nothing")
    assert loop.state is NodeState.RUNNING


def test_a_shadow_ends_at_once_and_says_that_nothing_was_touched():
    loop = shadow()
    assert loop.obey("stop") == (True, "")
    assert (loop.state, loop.arm.is_shadowing) == (NodeState.STOPPED, False)
    assert loop.commands.machine.reason == "asked to stop: the arm was never touched"
    loop = shadow()
    loop.obey("pause")
    assert loop.commands.machine.reason == "asked to"
    loop = Loop().start()
    loop.obey("stop")
    assert loop.commands.machine.reason == "asked to stop: to the rest pose, then released"
    loop = shadow()
    loop.obey("stop")
    assert loop.obey("stop") == (True, "")


def test_a_shadow_that_was_stopped_in_an_emergency_is_paused_when_it_is_cleared():
    loop = shadow()
    loop.press()
    assert loop.state is NodeState.EMERGENCY
    assert loop.obey("clear_stop") == (True, "")
    assert loop.state is NodeState.PAUSED
    loop.obey("stop")
    loop.press()
    loop.obey("clear_stop")
    assert loop.state is NodeState.IDLE, "nothing was under way"


def test_a_shadow_that_is_pressed_twice_has_ended():
    loop = shadow()
    loop.press()
    loop.press()
    assert (loop.state, loop.arm.is_shadowing) == (NodeState.STOPPED, False)


def test_a_shadow_whose_line_is_gone_has_nothing_to_confirm():
    loop = shadow()
    loop.arm.robot.is_cut_off, loop.arm.unreached = True, ["elbow"]
    loop.leases.clear()
    loop.commands.line_gone("the adapter was unplugged")
    assert (loop.state, loop.leases, loop.told("torque_unconfirmed")) == (NodeState.STOPPED, [], [])
    assert not loop.arm.is_shadowing
