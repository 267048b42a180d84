"""A shadow run: everything is as in a run, and not one register of the arm is written, in any state and at any end."""

import json
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest
from bus_trace import record

from edgevla.arguments import SetTask
from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.errors import BusError, UsageError
from edgevla.execution import Async, Rtc, Sync
from edgevla.flight.reader import entries
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.modes import NodeState
from edgevla.robots.profile import load_profile
from edgevla.robots.trials.closed_loop import ClosedLoop

T, HZ = 30, 30.0
ASKS = ("read", "sync_read", "fast_sync_read", "ping")
BODY = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def writes(trace):
    """What was written, by register; what only asks is left out."""
    sent = [entry for entry in trace if entry["dir"] == "tx"]
    assert sent, "the arm was read"
    return Counter(e.get("register", e["op"]) for e in sent if e["op"] not in ASKS)


class Shadowed:
    """robot: profile. The policy wants every joint to be `ahead` of where it is."""

    def __init__(self, robot="so101", ahead=5.0, **kwargs):
        self.profile = load_profile(robot)
        arm = EmulatedRobot(self.profile, VirtualClock(NS_PER_S))
        self.trace, _ = record(arm)
        self.loop = ClosedLoop(
            lambda seen, rtc=None: np.tile(seen.state + np.float32(ahead), (T, 1)),
            chunk_size=T, servo_hz=HZ, profile=self.profile, arm=arm, is_shadow=True, **{"execution": Async(), **kwargs},
        )  # fmt: skip

    def carry(self, name, value):
        """A hand moves one joint, and holds the others where they are."""
        pose = np.array(self.loop.links.states[-1].position, float)
        pose[[joint.name for joint in self.profile.joints].index(name)] = value
        self.loop._held = pose

    @property
    def state(self):
        return self.loop.loop.machine.state


@pytest.mark.parametrize("execution", [Sync(), Async(), Rtc()])
def test_what_the_policy_wants_is_told_and_nothing_is_sent(execution):
    shadow = Shadowed(execution=execution)
    shadow.loop.start()
    states = shadow.loop.run(1.0)
    wanted = [s for s in states if s.wanted is not None]
    assert len(wanted) > 20
    assert all(s.is_shadow and np.isnan(s.goal).all() and s.mode == "running" for s in wanted)
    np.testing.assert_allclose(wanted[-1].wanted - wanted[-1].position, 5.0, atol=0.2)
    assert shadow.loop.loop.counters["infer_sent"] > 0
    assert writes(shadow.trace) == {}


def test_the_policy_sees_where_a_hand_carries_the_arm_and_safety_says_what_it_would_hold_back():
    shadow = Shadowed(ahead=0.0)
    shadow.loop.start()
    shadow.loop.run(1.0)
    assert shadow.loop.loop.counters["ticks_clipped"] == 0
    shadow.carry("shoulder_pan.pos", 40.0)
    states = shadow.loop.run(2.0)
    assert states[-1].position[0] == pytest.approx(40.0, abs=0.5)
    assert states[-1].wanted[0] == pytest.approx(40.0, abs=0.5)
    assert shadow.loop.loop.counters["clipped_speed_shoulder_pan.pos"] > 0
    assert writes(shadow.trace) == {}


@pytest.mark.parametrize("robot", ["so101", "aloha"])
def test_nothing_is_written_in_any_state_by_any_command_signal_or_end(robot):
    shadow = Shadowed(robot, ahead=0.1)
    loop = shadow.loop
    loop.start()
    loop.run(0.3)
    with pytest.raises(UsageError, match="a shadow run moves nothing"):
        loop.command("home")
    loop.command("set_task", SetTask("wave"))
    loop.command("reset")
    loop.command("pause")
    loop.command("start", loop._arguments)
    loop.command("pause")
    loop.command("resume")
    assert loop.run(0.3)[-1].mode == "running"
    for before in ("running", "paused"):
        loop.command("emergency_stop")
        assert loop.run(1.2)[-1].mode == "emergency", before
        with pytest.raises(UsageError, match="latched"):
            loop.command("resume")
        loop.command("clear_stop")
        assert shadow.state is NodeState.PAUSED
    loop.command("resume")
    loop.links.is_policy_dead = True
    assert loop.run(4.0)[-1].mode == "holding"
    loop.command("emergency_stop")
    loop.run(1.2)
    loop.command("emergency_stop")
    assert shadow.state is NodeState.STOPPED, "let go: it was never held"
    loop.links.is_policy_dead = False
    loop.start()
    loop.run(0.3)
    loop.command("stop")
    assert shadow.state is NodeState.STOPPED
    loop.start()
    loop.run(0.3)
    loop.links.pending_signals.append("supervisor_gone")
    loop.run(0.3)
    assert loop.loop.is_over
    told = {"so101": set(), "aloha": {"response_level"}}[robot]
    assert set(writes(shadow.trace)) == told, "nothing that moves or powers: at most how servos answer"
    assert set(loop.links.leases) == {b"x"}, "the guardian has nothing to look after"


def test_a_line_that_is_pulled_out_ends_it():
    from edgevla.robots.emulator.faults import InjectedFault

    shadow = Shadowed()
    shadow.loop.start()
    shadow.loop.run(0.3)
    shadow.loop.arm.apply(InjectedFault("unplug"))
    shadow.loop.run(1.0)
    assert shadow.loop.loop.is_over
    assert writes(shadow.trace) == {}


def test_an_arm_that_has_torque_is_refused_and_keeps_it():
    arm = EmulatedRobot(load_profile("so101"), VirtualClock(NS_PER_S))
    first = ClosedLoop(lambda seen: np.tile(seen.state, (T, 1)), chunk_size=T, servo_hz=HZ, arm=arm)
    first.start()
    trace, _ = record(arm)
    with pytest.raises(BusError, match="a shadow run touches nothing"):
        ClosedLoop(lambda seen: seen, arm=arm, is_shadow=True)
    assert writes(trace) == {}


@pytest.mark.realtime
@pytest.mark.timeout(180)
def test_a_deployment_leaves_the_arm_alone_and_says_what_it_would_have_done(deploy):
    run = deploy("--shadow")
    run.wait_for("SHADOW: nothing is sent to the arm; in thought", timeout_s=60)
    until = time.monotonic() + 60
    while len(rows := [e for e in entries(run.log_path) if e["type"] == "state" and e["wanted"]]) < 30:
        assert time.monotonic() < until, run.output
        time.sleep(0.2)
    assert {tuple(e["goal"]) for e in rows} == {(None,) * len(BODY)}, "nothing was sent, and the log says so"
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait_for_end(60) == 130
    assert "the arm was never touched, and is as it is" in run.output
    assert "SHADOW, nothing was sent to the arm: ran" in run.output
    assert "rms, p95:" in run.output
    figures = json.loads((run.log_path / "summary.json").read_text())["shadow"]
    assert set(figures) == {f"{name}.pos" for name in BODY}
    assert figures["gripper.pos"]["unit"] == "percent"
    assert 0 < figures["shoulder_pan.pos"]["rms"] <= figures["shoulder_pan.pos"]["p95"] * 1.5
    assert run.left_over() == []
    assert writes(run.trace()) == {}


@pytest.mark.realtime
@pytest.mark.timeout(180)
def test_a_loop_that_dies_leaves_the_arm_as_it_is(deploy):
    run = deploy("--shadow")
    run.wait_for("SHADOW: nothing is sent", timeout_s=60)
    run.find_until("robot", "guardian")
    run.kill("robot")
    run.wait_for_end(60)
    assert run.left_over(20) == []
    assert writes(run.trace()) == {}


def test_a_policy_of_future_states_is_told_where_the_arm_is_not_where_it_would_be():
    shadow = Shadowed(execution=Async(every=5), delay_ticks=3, future_offset=8)
    shadow.loop.start()
    wanted = [s for s in shadow.loop.run(3) if s.wanted is not None]
    assert len({s.chunk_seq for s in wanted}) > 5
    away = np.array([s.wanted - s.position for s in wanted])[:, BODY.index("elbow_flex")]
    np.testing.assert_allclose(away, 5.0, atol=0.5)
