"""A shadow run in which a leader arm moves the follower: the policy is asked and compared, and moves nothing, ever."""

import json
import os
import signal
import time

import numpy as np
import pytest

from edgevla.arguments import SetTask
from edgevla.errors import UsageError
from edgevla.execution import Async, Ensemble, Rtc, Sync
from edgevla.flight.reader import entries
from edgevla.robots.modes import NodeState
from edgevla.robots.trials.closed_loop import ClosedLoop

LEADER_POSE = np.array([-30.0, 10.0, -20.0, 15.0, 10.0, 70.0], np.float32)
AHEAD = np.float32(5.0)
T, HZ = 30, 30.0


class Watched:
    """A policy that wants every joint `AHEAD` of where it is. told: per request, of committed actions."""

    def __init__(self, execution=None, **kwargs):
        self.told, self.tasks = [], []
        self.loop = ClosedLoop(
            self.answer, chunk_size=T, execution=execution or Async(), servo_hz=HZ, **kwargs
        )
        self.loop.links.leader = lambda seen, rtc=None: np.tile(LEADER_POSE, (15, 1))
        self.loop.start(leader_ms=5.0, is_shadow=True)

    def answer(self, seen, rtc=None):
        self.told.append(rtc)
        self.tasks.append(seen.task)
        return np.tile(seen.state + AHEAD, (T, 1))

    def run(self, seconds):
        return self.loop.run(seconds)

    @property
    def last(self):
        return self.loop.links.states[-1]

    @property
    def counters(self):
        return self.loop.loop.counters


def largest_step(loop, states):
    """Of a goal within a tick, as a share of what the profile's top speed allows."""
    goals = np.array([s.goal for s in states])
    caps = np.array([joint.max_velocity for joint in loop.profile.joints]) / HZ
    return float((np.abs(np.diff(goals, axis=0)) / caps).max())


@pytest.mark.parametrize("execution", [Sync(), Ensemble(), Rtc()])
def test_the_arm_goes_to_the_leader_slowly_and_the_policy_is_told_beside_it(execution):
    run = Watched(execution)
    first = run.run(0.5)
    assert largest_step(run.loop, first) < 0.5, "from far away it is gone to slowly"
    states = run.run(2.5)
    np.testing.assert_allclose(run.last.position, LEADER_POSE, atol=1.5)
    assert {(s.mode, s.is_led, s.is_shadow) for s in states} == {("running", True, True)}
    assert all(s.wanted is not None and s.chunk_seq is not None for s in states)
    np.testing.assert_allclose(run.last.wanted, run.last.position + AHEAD, atol=1.5)
    np.testing.assert_allclose(run.last.goal, LEADER_POSE, atol=0.1)


@pytest.mark.parametrize("execution", [Rtc(), Async(select=4)])
def test_no_chunk_is_bound_by_one_that_was_never_executed(execution):
    run = Watched(execution)
    run.run(1.5)
    assert len(run.told) > 1
    assert all(rtc is None for rtc in run.told)


def test_figures_of_chunks_and_clips_are_the_policy_s():
    run = Watched(trained_speed=[10.0] * 6)
    run.run(3.0)
    n = run.counters["ticks_clipped"]
    run.loop.links.leader = lambda seen: np.tile(-LEADER_POSE, (15, 1))
    run.run(1.5)
    counters = run.counters
    assert counters["infer_sent"] == counters["chunks_taken"] == len(run.told)
    assert counters["leader_chunks_taken"] >= counters["leader_infer_sent"] - 1 > 60
    assert counters["takeovers"] == 0
    assert counters["ticks_led"] == counters["ticks_running"] > 60
    assert counters["ticks_clipped"] > n, "the policy's caps are those of its training"
    np.testing.assert_allclose(run.last.goal[:5], -LEADER_POSE[:5], atol=1.5, err_msg="the leader's are not")


def test_a_lost_leader_holds_the_arm_while_the_policy_is_asked_and_comes_back_slowly():
    run = Watched()
    run.run(2.5)
    leader, run.loop.links.leader = run.loop.links.leader, None
    run.run(2.6)
    n, goal = len(run.told), run.last.goal
    states = run.run(0.5)
    assert {s.mode for s in states} == {"holding"}
    np.testing.assert_allclose(states[-1].goal, goal)
    assert len(run.told) > n
    assert states[-1].wanted is not None
    assert ("warning", "policy_silent", "the leader does not answer; the arm holds its last goal") in (
        run.loop.links.events
    )
    run.loop.links.leader = lambda seen: leader(seen) + 10
    back = run.run(1.0)
    assert back[-1].mode == "running"
    assert largest_step(run.loop, back) < 0.5


def test_a_policy_that_dies_is_told_of_and_the_leader_goes_on():
    run = Watched()
    run.run(2.0)
    run.loop.links.is_policy_dead = True
    states = run.run(4.0)
    assert {s.mode for s in states} == {"running"}
    assert states[-1].wanted is None
    assert [text for _, code, text in run.loop.links.events if code == "shadow_silent"]
    assert run.counters["ticks_starved"] > 0
    run.loop.links.is_policy_dead = False
    assert run.run(0.5)[-1].wanted is not None
    assert ("info", "policy_back", "the policy answers again") in run.loop.links.events


def test_the_policy_never_gets_the_arm():
    run = Watched()
    run.run(1.0)
    with pytest.raises(UsageError, match="the policy only looks on"):
        run.loop.command("hand_back")
    run.loop.command("lead")
    run.loop.command("pause")
    with pytest.raises(UsageError, match="the policy only looks on"):
        run.loop.command("hand_back")
    run.loop.command("resume")
    states = run.run(2.0)
    assert {(s.is_led, s.is_shadow) for s in states} == {(True, True)}
    np.testing.assert_allclose(run.last.goal, LEADER_POSE, atol=0.1)


def test_every_command_and_every_end_is_as_with_a_leader_alone():
    run = Watched()
    loop = run.loop
    run.run(1.0)
    loop.command("set_task", SetTask("wave"))
    loop.command("set_execution", Sync())
    run.run(1.2)
    assert (run.tasks[-1], run.last.task) == ("wave", "wave")
    loop.command("reset")
    assert run.run(0.5)[-1].mode == "running"
    loop.command("home")
    states = run.run(0.3)
    assert {s.mode for s in states} == {"homing"}
    assert all(s.wanted is None for s in states)
    run.run(5.0)
    assert run.last.mode == "paused"
    n = len(run.told)
    run.run(0.5)
    assert len(run.told) == n, "nobody is asked while it is paused"
    loop.command("resume")
    assert run.run(0.5)[-1].wanted is not None
    loop.command("emergency_stop")
    frozen = run.last.goal
    np.testing.assert_allclose(run.run(1.0)[-1].goal, frozen)
    loop.command("clear_stop")
    loop.command("resume")
    np.testing.assert_allclose(run.run(2.5)[-1].position, LEADER_POSE, atol=1.5)
    loop.command("stop")
    run.run(15.0)
    assert loop.loop.machine.state is NodeState.STOPPED
    assert not loop.robot.torque_on
    loop.start(leader_ms=5.0, is_shadow=True)
    assert run.run(1.0)[-1].is_led
    loop.command("pause")
    loop.start(leader_ms=5.0)
    states = run.run(1.0)
    assert {(s.is_led, s.is_shadow) for s in states} == {(False, False)}, (
        "a new start without it: the policy's"
    )


def test_a_program_that_is_killed_leaves_an_arm_that_is_lowered():
    run = Watched()
    run.run(1.0)
    run.loop.links.pending_signals.append("supervisor_gone")
    run.run(20.0)
    assert run.loop.loop.is_over
    assert not run.loop.robot.torque_on


def test_a_robot_without_a_leader_refuses():
    loop = ClosedLoop(lambda seen: np.tile(seen.state, (T, 1)), chunk_size=T, servo_hz=HZ)
    with pytest.raises(UsageError, match="none belongs to this deployment"):
        loop.start(is_shadow=True)


@pytest.mark.realtime
@pytest.mark.timeout(180)
def test_a_deployment_follows_the_leader_and_says_what_the_policy_would_have_done(deploy):
    run = deploy("--shadow", "--leader=so101_leader")
    run.wait_for("SHADOW: the leader moves the arm, gone to slowly first; in thought", timeout_s=60)
    until = time.monotonic() + 60
    while len(rows := [e for e in entries(run.log_path) if e["type"] == "state" and e["wanted"]]) < 60:
        assert time.monotonic() < until, run.output
        time.sleep(0.2)
    assert all(np.isfinite(e["goal"]).all() for e in rows)
    assert max(abs(rows[-1]["goal"][0] - e["goal"][0]) for e in rows) > 0.5, (
        "the leader sways, the arm follows"
    )
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait_for_end(60) == 130
    assert "stopping: the arm moves to rest and is released" in run.output
    assert "SHADOW, a leader arm moved it: ran" in run.output
    summary = json.loads((run.log_path / "summary.json").read_text())
    assert summary["shadow"]["shoulder_pan.pos"]["rms"] > 0
    assert (summary["led_share"], summary["takeovers"]) == (1.0, 0)
    assert run.left_over() == []


@pytest.mark.realtime
@pytest.mark.timeout(180)
def test_a_program_that_is_killed_leaves_no_process_behind_not_even_the_leader_s_emulator(deploy):
    run = deploy("--shadow", "--leader=so101_leader")
    run.wait_for("SHADOW: the leader moves the arm", timeout_s=60)
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.left_over(60) == []
