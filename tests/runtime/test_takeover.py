"""A person takes over from the policy with a leader arm, and hands back: the loop on a virtual clock, in every state."""

import numpy as np
import pytest

from edgevla.arguments import SetTask
from edgevla.errors import UsageError
from edgevla.execution import Async, Ensemble, Rtc, Sync
from edgevla.robots.modes import NodeState
from edgevla.robots.trials.closed_loop import ClosedLoop

POLICY_POSE = np.array([20.0, -10.0, 15.0, -5.0, 0.0, 40.0], np.float32)
LEADER_POSE = np.array([-30.0, 10.0, -20.0, 15.0, 10.0, 70.0], np.float32)
T = 30
HZ = 30.0
"""Of the servo loop: a tick per step, so that the tests are short."""


def held(pose, n):
    return lambda observation, rtc=None: np.tile(pose, (n, 1))


def running(execution=None, **kwargs):
    loop = ClosedLoop(
        held(POLICY_POSE, T), chunk_size=T, execution=execution or Async(), servo_hz=HZ, **kwargs
    )
    loop.links.leader = held(LEADER_POSE, 15)
    loop.start(leader_ms=5.0)
    loop.run(2.2)
    np.testing.assert_allclose(loop.links.states[-1].position, POLICY_POSE, atol=1.5)
    return loop


def ask_late(loop):
    """Until one request is out that is answered after what comes next; all later ones are answered at once."""
    loop.links.delays = lambda _: 15
    n = loop.links.n_inferences
    while loop.links.n_inferences == n:
        loop.step()
    loop.links.delays = lambda _: 0


def fastest(loop, states):
    """The largest step of a tick, as a share of what the profile's top speed allows."""
    goals = np.array([s.goal for s in states if np.isfinite(s.goal).all()])
    caps = np.array([joint.max_velocity for joint in loop.profile.joints]) / HZ
    return float((np.abs(np.diff(goals, axis=0)) / caps).max())


@pytest.mark.parametrize(
    ("execution", "delay_ticks"), [(Sync(), 3), (Ensemble(), 0), (Async(), 3), (Rtc(), 0)]
)
def test_the_leader_takes_over_in_the_midst_of_a_chunk_and_hands_back(execution, delay_ticks):
    loop = running(execution, delay_ticks=delay_ticks)
    while loop.links.states[-1].n_actions_left < 5:
        loop.step()
    before, grid = loop.links.states[-1], loop.links.states[-1].t0_ns
    assert (before.is_led, before.chunk_seq is not None) == (False, True)
    loop.command("lead")
    led = loop.run(2.2)
    assert all(s.is_led and s.chunk_seq is None for s in led)
    np.testing.assert_allclose(led[-1].position, LEADER_POSE, atol=1.5)
    loop.command("hand_back")
    back = loop.run(2.2)
    assert not any(s.is_led for s in back)
    np.testing.assert_allclose(back[-1].position, POLICY_POSE, atol=1.5)
    assert {s.mode for s in led + back} == {"running"}
    assert {s.t0_ns for s in led + back} == {grid}, "one grid: the rows of a recording go on"
    assert loop.loop.counters["takeovers"] == 1
    assert loop.loop.counters["ticks_led"] == pytest.approx(len(led), abs=2)


def test_the_arm_goes_to_the_leader_slowly_and_within_the_caps():
    loop = running()
    loop.command("lead")
    first = loop.run(0.25)
    assert fastest(loop, [loop.links.states[-len(first) - 1], *first]) < 0.5, (
        "a slow start, far from the leader"
    )
    assert fastest(loop, loop.run(2.2)) <= 1.001


NEAR = POLICY_POSE + np.array([15.0, 0, 0, 0, 0, 0], np.float32)


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_leader_that_is_not_far_is_gone_to_slowly_too_and_then_followed_at_speed(is_paused):
    loop = running()
    loop.links.leader = held(NEAR, 15)
    if is_paused:
        loop.command("pause")
        loop.command("lead")
        loop.run(0.5)
        loop.command("resume")
    else:
        loop.command("lead")
    first = loop.run(1.0)
    assert fastest(loop, [loop.links.states[-len(first) - 1], *first]) < 0.5
    np.testing.assert_allclose(first[-1].position, NEAR, atol=1.5)
    loop.links.leader = held(POLICY_POSE, 15)
    assert fastest(loop, loop.run(1.0)) > 0.9


def test_a_leader_that_comes_back_near_and_a_policy_after_the_hand_back_are_gone_to_slowly():
    loop = running()
    loop.links.leader = held(POLICY_POSE, 15)
    loop.command("lead")
    loop.run(1.0)
    loop.links.leader = None
    loop.run(1.0)
    loop.links.leader = held(NEAR, 15)
    back = loop.run(2.0)
    assert fastest(loop, back) < 0.5
    np.testing.assert_allclose(back[-1].position, NEAR, atol=1.5)
    loop.command("hand_back")
    assert fastest(loop, loop.run(1.0)) < 0.5


def test_a_leader_is_followed_at_the_profile_s_speed_and_the_policy_at_its_training_s():
    slow = [10.0] * 6
    loop = ClosedLoop(held(POLICY_POSE, T), chunk_size=T, execution=Async(), trained_speed=slow, servo_hz=HZ)
    loop.links.leader = held(LEADER_POSE, 15)
    loop.start(leader_ms=5.0)
    loop.run(1.0)
    loop.command("lead")
    led = loop.run(2.2)
    np.testing.assert_allclose(led[-1].position, LEADER_POSE, atol=1.5)
    loop.command("hand_back")
    back = loop.run(2.2)
    goals = np.array([s.goal for s in back])[:, :5]
    assert np.abs(np.diff(goals, axis=0)).max() <= 1.5 * 10.0 / HZ * 1.001


@pytest.mark.parametrize("execution", [Sync(), Async()])
def test_what_was_asked_before_the_hand_over_moves_nothing_after_it(execution):
    """A chunk of before comes while the leader drives, and one of the leader's after the hand-back."""
    loop = running(execution)
    ask_late(loop)
    loop.command("lead")
    n = loop.loop.counters["chunks_of_before"]
    led = loop.run(2.2)
    assert loop.loop.counters["chunks_of_before"] == n + 1
    np.testing.assert_allclose(led[-1].position, LEADER_POSE, atol=1.5)
    ask_late(loop)
    loop.command("hand_back")
    back = loop.run(2.2)
    assert loop.loop.counters["chunks_of_before"] == n + 2
    np.testing.assert_allclose(back[-1].position, POLICY_POSE, atol=1.5)


def test_after_the_hand_back_the_policy_is_asked_anew():
    """Its old chunk still had actions for this moment: none of them is played."""
    loop = running()
    loop.command("lead")
    loop.run(0.3)
    loop.links.is_policy_dead = True
    loop.command("hand_back")
    goal = loop.links.states[-1].goal
    states = loop.run(1.0)
    assert all(s.wanted is None for s in states), "no chunk of before"
    np.testing.assert_allclose(states[-1].goal, goal)


def test_an_unplugged_leader_leaves_the_arm_where_it_is_until_it_is_handed_back():
    loop = running()
    loop.command("lead")
    loop.run(2.2)
    loop.links.leader = None
    loop.run(1.0)
    held_at = loop.links.states[-1].goal
    states = loop.run(2.2)
    assert states[-1].mode == "holding"
    np.testing.assert_allclose(states[-1].goal, held_at)
    assert (
        "warning",
        "policy_silent",
        "the leader does not answer; the arm holds its last goal",
    ) in loop.links.events
    loop.command("hand_back")
    back = loop.run(2.2)
    assert back[-1].mode == "running"
    np.testing.assert_allclose(back[-1].position, POLICY_POSE, atol=1.5)


def test_a_policy_that_dies_while_the_leader_drives_is_missed_only_after_the_hand_back():
    loop = running()
    loop.command("lead")
    loop.links.is_policy_dead = True
    led = loop.run(3.0)
    assert {s.mode for s in led} == {"running"}
    loop.command("hand_back")
    assert loop.run(3.0)[-1].mode == "holding"
    loop.command("lead")
    again = loop.run(2.2)
    assert again[-1].mode == "running"
    np.testing.assert_allclose(again[-1].position, LEADER_POSE, atol=1.5)


@pytest.mark.parametrize("ways", [("lead",), ("lead", "hand_back")])
@pytest.mark.parametrize("after_s", [0.0, 1.0])
def test_an_emergency_stop_freezes_whoever_drives(ways, after_s):
    loop = running()
    for way in ways:
        loop.command(way)
        loop.run(after_s)
    loop.command("emergency_stop")
    frozen = loop.links.states[-1].goal
    states = loop.run(1.0)
    assert {s.mode for s in states} == {"emergency"}
    np.testing.assert_allclose(states[-1].goal, frozen)
    for command in ("lead", "hand_back"):
        with pytest.raises(UsageError, match="the emergency stop is latched"):
            loop.command(command)
    loop.command("clear_stop")
    assert loop.run(0.5)[-1].mode == "paused"
    loop.command("resume")
    states = loop.run(2.2)
    is_led = ways[-1] == "lead"
    assert {s.is_led for s in states} == {is_led}
    np.testing.assert_allclose(states[-1].position, LEADER_POSE if is_led else POLICY_POSE, atol=1.5)


def test_whoever_shall_drive_can_be_chosen_while_it_is_paused_and_nothing_moves_then():
    loop = running()
    loop.command("pause")
    loop.command("lead")
    states = loop.run(1.0)
    assert {(s.mode, s.is_led) for s in states} == {("paused", True)}
    assert fastest(loop, states) == 0.0
    loop.command("resume")
    np.testing.assert_allclose(loop.run(2.2)[-1].position, LEADER_POSE, atol=1.5)
    loop.command("stop")
    loop.run(15.0)
    assert loop.loop.machine.state is NodeState.STOPPED


def test_a_new_start_is_the_policy_s():
    loop = running()
    loop.command("lead")
    loop.command("stop")
    loop.run(15.0)
    loop.start(leader_ms=5.0)
    np.testing.assert_allclose(loop.run(3.0)[-1].position, POLICY_POSE, atol=1.5)
    assert not loop.links.states[-1].is_led


def test_a_second_press_changes_nothing_and_a_deployment_without_a_leader_says_so():
    loop = running()
    loop.command("hand_back")
    loop.command("lead")
    loop.run(2.0)
    loop.command("lead")
    assert fastest(loop, loop.run(0.5)) < 0.01
    assert loop.loop.counters["takeovers"] == 1
    alone = ClosedLoop(held(POLICY_POSE, T), chunk_size=T)
    alone.start()
    with pytest.raises(UsageError, match="start it with --leader"):
        alone.command("lead")


def test_a_task_that_is_said_meanwhile_is_the_policy_s_too_and_its_execution_stays():
    loop = running()
    loop.command("set_execution", Ensemble())
    loop.command("lead")
    loop.command("set_task", SetTask("put it down"))
    with pytest.raises(UsageError, match="hand back to the policy first"):
        loop.command("set_execution", Sync())
    assert loop.run(0.2)[-1].task == "put it down"
    loop.command("hand_back")
    assert loop.run(0.2)[-1].task == "put it down"
    assert isinstance(loop.loop._commands.rollout.executor.execution, Ensemble)
