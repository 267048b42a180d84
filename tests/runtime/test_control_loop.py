"""The control loop on a virtual clock: real driver, real packets, emulated SO101. Exact, and faster than real time."""

import re
from dataclasses import replace

import numpy as np
import pytest

from edgevla.arguments import SetTask
from edgevla.errors import UsageError
from edgevla.execution import Async, Ensemble, Rtc, Sync
from edgevla.robots.emulator.faults import InjectedFault
from edgevla.robots.links import PARKED, STOPPING
from edgevla.robots.profile import load_profile
from edgevla.robots.safety import Reason
from edgevla.robots.trials.closed_loop import ClosedLoop

TARGET = np.array([20.0, -10.0, 15.0, -5.0, 0.0, 40.0], np.float32)
T = 30


def towards(target=TARGET, gain=0.15):
    """A Markov policy: each action goes `gain` of the rest of the way from the observed state."""

    def policy(observation, rtc=None):
        left = (1 - gain) ** (np.arange(T, dtype=np.float32) + 1)
        return target + (observation.state - target) * left[:, None]

    return policy


def make(policy=None, **kwargs):
    return ClosedLoop(policy or towards(), chunk_size=T, **kwargs)


def started(policy=None, **kwargs):
    loop = make(policy, **kwargs)
    loop.start()
    return loop


def steps_of(states):
    goals = np.array([s.goal for s in states if np.isfinite(s.goal).all()])
    return np.abs(np.diff(goals, axis=0))


@pytest.mark.parametrize("execution", [Sync(), Ensemble(), Async(), Rtc()])
@pytest.mark.parametrize("delay_ticks", [0, 12])
def test_every_execution_brings_the_arm_to_the_target(execution, delay_ticks):
    loop = started(execution=execution, delay_ticks=delay_ticks)
    last = loop.run(4.0)[-1]
    np.testing.assert_allclose(last.position, TARGET, atol=1.5)
    assert last.mode == "running"
    assert loop.loop.counters["skipped_ticks"] == 0


def test_the_servo_loop_runs_at_a_whole_multiple_of_the_policy():
    loop = started(fps=30.0)
    states = loop.run(1.0)
    assert loop.loop.plan.ticks_per_step == 4  # 120 Hz is the most that the profile allows
    assert [s.tick for s in states[:3]] == [0, 1, 2]
    assert states[0].step_ns == 4 * loop.loop.period_ns


def test_requests_leave_only_at_grid_moments():
    loop = started(execution=Async(every=2))
    seen = []
    ask = loop.links.ask

    def spy(driver, request, payloads, observed_ns):
        seen.append((request.grid_index, loop.links.tick))
        return ask(driver, request, payloads, observed_ns)

    loop.links.ask = spy
    loop.run(1.0)
    assert seen[:4] == [(0, 0), (2, 8), (4, 16), (6, 24)]


def test_late_actions_are_skipped_and_counted():
    loop = started(execution=Async(), delay_ticks=10)
    states = loop.run(0.5)
    first = next(s for s in states if s.chunk_seq is not None)
    assert first.tick == 10
    assert first.action_index == pytest.approx(2.5)
    assert loop.loop.counters["actions_skipped"] >= 3


def test_no_goal_step_is_above_the_trained_cap_whatever_the_policy_wants():
    def wild(observation, rtc=None):
        return np.where(np.arange(T)[:, None] % 2, 90.0, -90.0) * np.ones((1, 6), np.float32)

    loop = started(wild, execution=Async(), trained_speed=[40, 40, 40, 40, 40, 100])
    states = loop.run(2.0)
    allowed = 60.0 * loop.loop.period_ns / 1e9
    assert steps_of(states)[:, :5].max() <= allowed * 1.001
    assert any(s.limited_by[0] & Reason.RATE for s in states)
    assert loop.loop.counters["ticks_clipped"] > 50


def test_a_policy_that_yields_nan_moves_nothing():
    loop = started(lambda observation, rtc=None: np.full((T, 6), np.nan))
    states = loop.run(1.0)
    assert steps_of(states).max() < 0.1
    assert loop.loop.counters["chunks_damaged"] > 0
    assert any(code == "chunk_damaged" for _, code, _ in loop.links.events)


def test_a_dead_policy_leaves_the_loop_at_rate_and_the_arm_held():
    loop = started(execution=Async())
    loop.run(0.5)
    loop.links.is_policy_dead = True
    states = loop.run(4.0)
    assert len(states) == pytest.approx(4.0 * 120, abs=3)
    assert states[-1].mode == "holding"
    assert steps_of(states[-200:]).max() == 0.0
    loop.links.is_policy_dead = False
    loop.run(0.5)
    assert loop.links.states[-1].mode == "running"
    assert any(code == "policy_back" for _, code, _ in loop.links.events)


def test_torque_is_on_only_from_start_to_the_end_of_stop():
    loop = make()
    loop.run(0.2)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())
    loop.start()
    loop.run(0.2)
    assert all(servo.torque_on for servo in loop.arm.servos.values())
    loop.command("stop")
    states = loop.run(6.0)
    rest = np.array([joint.rest for joint in loop.profile.joints])
    assert not any(servo.torque_on for servo in loop.arm.servos.values())
    np.testing.assert_allclose(states[-1].position, rest, atol=3.0)
    slow = 0.25 * 300.0 * loop.loop.period_ns / 1e9
    assert steps_of(states).max() <= slow * 1.001
    assert loop.links.leases[-1] == b"x"


def test_pause_holds_and_resume_begins_a_new_rollout():
    loop = started(execution=Async())
    loop.run(0.3)
    loop.command("pause")
    held = loop.run(0.5)
    assert held[-1].mode == "paused"
    assert steps_of(held).max() == 0.0
    loop.command("resume")
    assert loop.run(0.1)[0].tick == 0


def test_the_emergency_stop_freezes_latches_and_releases_on_a_second_press():
    loop = started(execution=Async())
    loop.run(0.2)
    loop.links.pending_signals.append("emergency_stop")
    loop.links.post("emergency_stop")  # the same press on its second way
    frozen = loop.run(1.0)
    assert frozen[-1].mode == "emergency"
    assert steps_of(frozen[1:]).max() == 0.0
    assert all(servo.torque_on for servo in loop.arm.servos.values())
    with pytest.raises(UsageError, match="latched"):
        loop.command("resume")
    loop.command("emergency_stop")
    loop.run(0.5)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


def test_a_key_held_down_is_one_press_however_long():
    """It repeats after a while, then thirty times a second; each repeat came as a second press, and the arm fell."""
    loop = started(execution=Async())
    loop.run(0.2)
    loop.command("emergency_stop")
    loop.run(0.5)
    for _ in range(60):
        loop.command("emergency_stop")
        loop.run(0.033)
    assert loop.loop.machine.mode == "emergency"
    assert all(servo.torque_on for servo in loop.arm.servos.values())
    assert loop.loop.counters["emergency_stops"] == 1
    loop.run(0.9)
    loop.command("emergency_stop")
    loop.run(0.3)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


def test_a_cleared_emergency_stop_goes_on_from_where_the_arm_is():
    loop = started(execution=Async())
    loop.run(0.2)
    loop.command("emergency_stop")
    loop.run(0.5)
    loop.command("clear_stop")
    loop.command("resume")
    states = loop.run(4.0)
    np.testing.assert_allclose(states[-1].position, TARGET, atol=1.5)


def limits_of(servos):
    return {servo.get("torque_limit") for servo in servos if not servo.name.endswith("gripper")}


@pytest.mark.parametrize("signal", ["guardian_gone", "supervisor_gone", "terminated"])
def test_when_nobody_is_left_the_arm_is_held_lowered_and_released(signal):
    loop = started(execution=Async())
    loop.run(0.3)
    loop.links.pending_signals.append(signal)
    if signal == "terminated":
        loop.run(3.0)  # a living supervisor would have ended it in order by now
    before = loop.links.states[-1].position.copy()
    loop.run(1.9)
    servos = list(loop.arm.servos.values())
    assert all(servo.torque_on for servo in servos)
    np.testing.assert_allclose(loop.links.states[-1].position, before, atol=4.0)
    loop.run(0.3)  # hold_ms = 2000 has passed
    (limit,) = limits_of(servos)
    assert 350 < limit <= 400
    loop.run(2.0)
    assert 100 < limits_of(servos).pop() < limit, "less and less torque"
    assert all(servo.torque_on for servo in servos)
    loop.run(3.0)
    assert loop.loop.is_over
    assert not any(servo.torque_on for servo in servos)


def test_a_terminated_loop_leaves_the_end_to_a_supervisor_that_begins_it():
    loop = started(execution=Async())
    loop.run(0.3)
    loop.links.pending_signals.append("terminated")
    loop.run(0.5)
    loop.command("stop")
    loop.run(8.0)
    assert not told(loop, "terminated")
    assert loop.links.states[-1].position[1] == pytest.approx(-95.0, abs=3.0), "at rest, not held and lowered"
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


@pytest.mark.parametrize("ending", ["stop", "supervisor_gone"])
def test_an_arm_that_its_profile_does_not_release_stays_parked_and_the_loop_ends_in_order(ending):
    profile = load_profile("so101")
    loop = started(profile=replace(profile, escalation=replace(profile.escalation, release=False)))
    loop.run(0.3)
    if ending == "stop":
        loop.command("stop")
    else:
        loop.links.pending_signals.append(ending)
    loop.run(8.0)
    assert "torque stays on, at 40%" in told(loop, "released")[0]
    assert all(servo.torque_on for servo in loop.arm.servos.values())
    assert {s.get("torque_limit") for name, s in loop.arm.servos.items() if name != "gripper"} == {400}
    assert loop.links.leases[-1] == PARKED, "the guardian leaves it so"
    if ending == "stop":
        loop.links.pending_signals.append("supervisor_gone")
        loop.run(0.1)
    assert loop.loop.is_over


def test_a_joint_that_jumps_and_stays_there_stops_the_arm():
    loop = started(execution=Async())
    loop.run(0.3)
    loop.arm.apply(InjectedFault("jump", target="elbow_flex", amount=700))
    states = loop.run(0.1)
    assert re.search("elbow_flex.pos jumped within a tick", told(loop, "jump")[0])
    assert states[-1].goal[2] == pytest.approx(states[-1].position[2], abs=0.5), "frozen where it is now"
    loop.run(8.0)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


@pytest.mark.parametrize("signal", ["guardian_gone", "supervisor_gone", "terminated"])
def test_a_start_that_comes_with_the_news_that_nobody_is_left_switches_nothing_on(signal):
    """The loop ended a tick later, and left the arm powered with nobody to look after it."""
    loop = make()
    loop.run(0.1)
    loop.links.pending_signals.append(signal)
    with pytest.raises(UsageError, match="are ending"):
        loop.start()
    assert loop.loop.is_over
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


def test_silent_servos_are_held_then_end_the_run():
    loop = started(execution=Async())
    loop.run(0.3)
    loop.arm.apply(InjectedFault("mute", target="elbow_flex"))
    states = loop.run(0.3)
    assert states[-1].mode == "holding"
    assert states[-1].limited_by[2] & Reason.STALE
    loop.run(0.5)
    assert loop.loop.machine.has_failed
    loop.run(8.0)
    assert loop.loop.is_over
    assert "elbow_flex: switch the arm's power off" in told(loop, "torque_unconfirmed")[0]
    assert re.search(
        r"no position of elbow_flex.pos for \d+ ms; motor 3 \(elbow_flex\) does not answer on emulated arm: check the "
        r"cables and ids of elbow_flex \(3\)",
        told(loop, "state_lost")[0],
    )
    others = [servo for name, servo in loop.arm.servos.items() if name != "elbow_flex"]
    assert not any(servo.torque_on for servo in others)


def test_a_joint_that_says_nothing_keeps_its_goal_when_the_arm_freezes():
    """Where it was half a second ago is no place to send it to: it may hear well, and only be silent."""
    far = np.array([60.0, -10.0, 70.0, -5.0, 0.0, 40.0], np.float32)
    loop = started(towards(far, gain=0.05), execution=Async(), trained_speed=[80.0] * 6)
    loop.run(0.4)
    before = loop.links.states[-1].goal[2]
    loop.arm.apply(InjectedFault("mute", target="elbow_flex"))
    loop.run(1.0)
    assert loop.loop.machine.has_failed
    assert loop.links.states[-1].goal[2] >= before, "not sent back"
    assert steps_of(loop.links.states)[:, 2].max() <= 1.5 * 80.0 * loop.loop.period_ns / 1e9 * 1.001


def test_a_servo_that_was_silent_for_some_ticks_is_not_told_to_make_up_for_them():
    loop = started(towards(gain=0.05), execution=Async())
    loop.run(0.5)
    servo, goals = loop.arm.servos["elbow_flex"], []
    loop.arm.apply(InjectedFault("mute", target="elbow_flex"))
    for k in range(24):
        if k == 4:
            loop.arm.apply(InjectedFault("clear"))
        loop.step()
        goals.append(servo.get("goal_position"))
    assert len(set(goals)) > 5, "it goes on"
    cap = loop.profile.joints[2].max_velocity * loop.loop.period_ns / 1e9 * 4096 / 360
    assert np.abs(np.diff(goals)).max() <= cap + 1


def test_a_fault_on_the_way_to_rest_stops_the_arm_there():
    loop = started(execution=Async())
    loop.run(1.0)
    loop.command("stop")
    loop.run(0.3)
    loop.arm.apply(InjectedFault("overload", target="elbow_flex"))
    loop.run(0.1)
    frozen = loop.links.states[-1].goal.copy()
    loop.run(1.8)
    np.testing.assert_array_equal(loop.links.states[-1].goal, frozen)
    assert all(servo.torque_on for servo in loop.arm.servos.values())
    loop.run(6.0)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())
    assert len(told(loop, "servo_fault")) == 1, "what stopped is told once"


def test_a_brown_out_is_never_re_energised():
    loop = started(execution=Async())
    loop.run(0.5)
    loop.arm.apply(InjectedFault("brownout", target="wrist_flex"))
    loop.run(2.0)
    assert loop.loop.machine.has_failed
    assert any(code == "servo_fault" and "has restarted" in text for _, code, text in loop.links.events)
    assert not loop.arm.servos["wrist_flex"].torque_on
    loop.run(8.0)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


def test_an_unplugged_bus_ends_the_run_with_a_sentence():
    loop = started(execution=Async())
    loop.run(0.3)
    loop.arm.apply(InjectedFault("unplug"))
    loop.run(0.2)
    assert loop.loop.is_over
    assert loop.loop.machine.has_failed
    assert any("unplugged" in text for _, code, text in loop.links.events if code == "bus_gone")


def test_when_one_line_of_two_goes_the_other_arm_is_held_parked_and_released():
    loop = make(
        lambda observation: np.tile(observation.state, (T, 1)), profile=load_profile("so101_bimanual")
    )
    loop.start()
    loop.run(0.3)
    loop.arm.apply(InjectedFault("unplug", target="left"))
    loop.run(1.9)
    right = [servo for name, servo in loop.arm.servos.items() if name.startswith("right")]
    assert all(servo.torque_on for servo in right), "not dropped"
    loop.run(0.3)
    assert 350 < limits_of(right).pop() <= 400
    loop.run(5.0)
    assert loop.loop.is_over
    assert not any(servo.torque_on for servo in right)
    unreached = next(text for _, code, text in loop.links.events if code == "torque_unconfirmed")
    assert "left_shoulder_pan" in unreached
    assert "right" not in unreached


def test_torque_is_not_switched_on_without_a_lease_that_the_guardian_acts_upon():
    """A loop killed between the first servo's torque and the last one's left the arm powered for ever."""
    loop = make()
    said = []
    loop.arm.lines["arm"].on_frame = lambda direction, frame, _: said.append(
        (direction, frame[4:7], loop.links.leases[-1])
    )
    loop.start()
    leases = {lease for direction, words, lease in said if direction == "tx" and words == b"\x03\x28\x01"}
    assert leases == {STOPPING}


def test_dropped_answers_cost_retries_not_ticks():
    loop = started(execution=Async())
    loop.arm.apply(InjectedFault("drop", probability=0.02))
    states = loop.run(3.0)
    assert states[-1].mode == "running"
    assert loop.robot.counters()["bus_retries"] > 0
    assert loop.loop.counters["skipped_ticks"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fps": 500.0}, "120 Hz at most"),
        ({"n_action_steps": 31}, "chunk of 30"),
        ({"trained_speed": [1.0]}, "6 joints"),
        ({"max_hz": 20.0}, "slower than the policy's 30 Hz"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_words(changes, words):
    loop = make()
    with pytest.raises(UsageError, match=words):
        loop.start(**changes)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


def test_the_execution_may_be_changed_while_running_if_the_bundle_allows():
    loop = make(execution=Sync())
    loop.start(allowed=["sync", "async"])
    loop.run(0.2)
    loop.command("set_execution", Async(every=2))
    n = loop.links.n_inferences
    loop.run(1.0)
    assert loop.links.n_inferences - n > 10
    with pytest.raises(UsageError, match="allows"):
        loop.command("set_execution", Rtc())


def closing_on_something(until_s=None):
    """A policy that closes the gripper to 0, and opens it to 60 after so many seconds; it is blocked at 30."""

    def policy(observation, rtc=None):
        seconds = (loop.clock.now_ns() - begun) / 1e9
        gripper = 60.0 if until_s is not None and seconds > until_s else 0.0
        return np.tile(np.array([0, 0, 0, 0, 0, gripper], np.float32), (T, 1))

    loop = make(policy, execution=Async())
    loop.arm.move_by_hand("gripper.pos", 30.0)
    for _ in range(3):
        loop.step()
    loop.arm.apply(InjectedFault("stuck", target="gripper"))
    begun = loop.clock.now_ns()
    loop.start()
    return loop


def told(loop, code):
    return [text for _, found, text in loop.links.events if found == code]


def test_an_overloaded_gripper_is_let_go_once_and_holds_lightly_until_it_is_opened():
    loop = closing_on_something(until_s=6.0)
    loop.run(3.5)  # its servo trips after 2 s
    assert re.search(
        r"servo gripper reports overload \(load \d+ %, \d+ degC\) at 30.\d, told to go to 0.0: it now holds lightly at "
        r"28.\d until the policy opens it",
        told(loop, "gripper_relieved")[0],
    )
    states = loop.run(2.0)
    assert all(s.goal[5] == pytest.approx(28.0, abs=0.3) for s in states), "it does not push on"
    assert states[-1].limited_by[5] & Reason.SERVO
    assert not loop.arm.servos["gripper"].error, "torque was enabled again: the report is gone"
    assert states[-1].mode == "running", "the other joints go on"
    loop.arm.apply(InjectedFault("clear"))
    states = loop.run(2.0)
    assert states[-1].position[5] == pytest.approx(60.0, abs=1.0)
    assert not states[-1].limited_by[5] & Reason.SERVO
    assert len(told(loop, "gripper_relieved")) == 1


def test_an_overload_that_does_not_go_away_or_comes_back_ends_the_run():
    loop = closing_on_something()
    loop.arm.apply(InjectedFault("overload", target="gripper"))  # held on by the fault, whatever is done
    loop.run(0.5)
    assert told(loop, "gripper_relieved")
    assert not loop.loop.machine.has_failed
    loop.run(1.5)
    assert re.search(
        r"reports overload .*still, although its goal was taken back to", told(loop, "gripper_overload")[0]
    )
    assert all(servo.torque_on for servo in loop.arm.servos.values()), "held, not dropped"
    loop.run(8.0)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())

    loop = closing_on_something()
    loop.run(3.5)
    loop.arm.apply(InjectedFault("overload", target="gripper"))
    loop.run(0.2)
    assert re.search(r"overload .*again, although", told(loop, "gripper_overload")[0])


def test_a_relieved_gripper_keeps_no_one_from_home_or_rest():
    loop = closing_on_something()
    loop.run(3.5)
    assert told(loop, "gripper_relieved")
    loop.command("pause")
    loop.command("home")
    loop.run(6.0)
    assert loop.loop.machine.mode == "paused"
    loop.command("stop")
    states = loop.run(8.0)
    assert not any(servo.torque_on for servo in loop.arm.servos.values())
    assert states[-1].position[1] == pytest.approx(-95.0, abs=3.0), "it came to rest, it was not given up"


def test_a_gripper_whose_servo_has_let_go_by_itself_ends_the_run():
    """A Dynamixel's overload switches its torque off until it is rebooted, which only a person may ask for."""
    loop = make(
        lambda observation, rtc=None: np.tile(observation.state, (T, 1)),
        profile=load_profile("aloha"),
        fps=50.0,
    )
    loop.start()
    loop.run(0.3)
    loop.arm.apply(InjectedFault("overload", target="left_gripper"))
    loop.run(1.0)
    assert re.search(
        r"left_gripper reports overload.* and has switched its torque off", told(loop, "gripper_overload")[0]
    )
    assert loop.loop.machine.has_failed


def test_every_state_carries_the_task_in_force():
    """Who records rows takes it from there: a policy is asked only now and then."""
    loop = started()
    assert {s.task for s in loop.run(0.2)} == {""}
    loop.command("set_task", SetTask("place"))
    assert {s.task for s in loop.run(0.2)} == {"place"}
