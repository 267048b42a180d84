"""Real processes, sockets and pseudo-terminals; any of them killed. The bus trace says what the arm was told."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from bus_trace import judge

from edgevla.flight.reader import entries
from edgevla.session import tell_guardian

pytestmark = pytest.mark.realtime

TRAINED_SPEED = [81.0] * 5 + [45.0]
"""What the hand-made bundle says: 0.9 of half its range per second."""
SERVO_HZ = 120.0


def goals(trace):
    """[{servo: ticks}] of every goal that was sent."""
    return [
        entry["values"]
        for entry in trace
        if entry["dir"] == "tx"
        and entry.get("op") == "sync_write"
        and entry.get("register") == "goal_position"
    ]


def torque(trace):
    """Servo id -> what torque_enable was told last."""
    last = {}
    for entry in trace:
        if entry["dir"] == "tx" and entry.get("register") == "torque_enable":
            last.update(entry["values"])
    return last


def assert_ended(run, *endings):
    """No rule of the trace was broken, torque went off by these ways, and no process is left."""
    verdict = judge(run.trace(), run.profile, TRAINED_SPEED, SERVO_HZ)
    assert verdict.violations == [], run.output
    assert sorted(verdict.endings.elements()) == sorted(endings)
    assert verdict.n_goals > 40, "the arm was never driven"
    assert run.left_over() == []


def test_a_deployment_runs_stops_in_order_and_sums_up(deploy):
    run = deploy("--duration=4")
    assert run.wait_for_end() == 0, run.output
    assert_ended(run, "rest")
    summary = json.loads((run.log_path / "summary.json").read_text())
    assert summary["inferences"] > 20
    assert summary["ticks_running"] > 300
    assert summary["failure"] is None
    lines = list(entries(run.log_path))
    states = [line for line in lines if line["type"] == "state" and line["mode"] == "running"]
    np.testing.assert_allclose(states[-1]["position"][:5], [20, -10, 15, -5, 0], atol=3)
    assert {line["type"] for line in lines} >= {"state", "chunk", "event", "servo_health", "summary"}


def test_ctrl_c_moves_to_rest_and_releases(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(1.0)
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 130
    assert_ended(run, "rest")


def test_the_second_ctrl_c_freezes_and_the_third_lets_go(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(1.0)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    run.wait_for("emergency: frozen")
    time.sleep(1.0)
    assert torque(run.trace())["1"] == 1, "frozen, not dropped"
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 1
    assert torque(run.trace()) == {str(i): 0 for i in range(1, 7)}


def test_the_end_after_an_emergency_stop_leaves_the_arm_frozen_until_a_person_lets_go(deploy):
    """As with the monitor's keys e and q: nothing moves after an emergency stop because somebody leaves."""
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(1.0)
    assert tell_guardian(Path(re.search(r"arm (\S+)/ports/arm", run.output).group(1)))
    run.wait_for("emergency: frozen")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("an emergency stop is latched: the arm stays frozen; Ctrl-C again releases it")
    time.sleep(1.0)
    assert torque(run.trace()) == {str(i): 1 for i in range(1, 7)}
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 1
    assert "emergency stop: the arm is released" in run.output
    assert "ended while the emergency stop was latched" in run.output
    assert torque(run.trace()) == {str(i): 0 for i in range(1, 7)}
    assert run.left_over() == []


def test_a_terminal_that_closes_after_an_emergency_stop_is_no_press(deploy):
    run = deploy("--duration=3")
    run.wait_for("robot        running")
    assert tell_guardian(Path(re.search(r"arm (\S+)/ports/arm", run.output).group(1)))
    run.wait_for("an emergency stop is latched: the arm stays frozen; Ctrl-C again releases it")
    run.process.send_signal(signal.SIGHUP)
    run.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert torque(run.trace()) == {str(i): 1 for i in range(1, 7)}
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 1
    assert torque(run.trace()) == {str(i): 0 for i in range(1, 7)}


@pytest.mark.parametrize("name", ["robot", "guardian", "supervisor"])
def test_whoever_holds_the_arm_is_killed_and_the_arm_is_held_parked_released(deploy, name):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.kill(name)
    run.wait_for_end()
    assert_ended(run, "park")
    if name == "robot":
        assert re.search(r"the control loop ended \(killed by SIGKILL\); the arm is held", run.output)
    if name != "supervisor":
        assert run.process.returncode == 1


def test_a_hung_loop_loses_its_lease(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.known["robot"].suspend()
    run.wait_for_end()
    assert re.search(r"the control loop was silent for \d+ ms", run.output)
    assert_ended(run, "park")


@pytest.mark.parametrize("name", ["policy", "camera"])
def test_policy_and_camera_are_started_again_and_the_run_goes_on(deploy, name):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.kill(name)
    run.wait_for("starting it again")
    time.sleep(6.0)
    assert run.process.poll() is None
    before = len(goals(run.trace()))
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 130
    assert before > 500, "the control loop went on meanwhile"
    assert_ended(run, "rest")
    summary = json.loads((run.log_path / "summary.json").read_text())
    assert summary["final_mode"] == "stopped"


def test_a_dead_bus_ends_the_run_with_a_sentence(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.kill("emulator")
    assert run.wait_for_end() == 1
    assert re.search(r"has gone.*switch the arm's power off", run.output)


@pytest.mark.parametrize("moment", ["running", "stopping"])
def test_a_closed_terminal_brings_the_arm_to_rest(deploy, moment):
    """A real one: the shell passes its SIGHUP on and the kernel sends another, which is no second Ctrl-C."""
    run = deploy(in_terminal=True)
    run.wait_for("robot        running")
    time.sleep(0.7)
    if moment == "stopping":
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    run.kill("terminal")
    run.wait_for_end()
    assert_ended(run, "rest")
    assert json.loads((run.log_path / "summary.json").read_text())["final_mode"] == "stopped"


def test_nobody_outlives_a_supervisor_that_is_killed_while_starting_up(deploy):
    run = deploy()
    run.find_until("policy", "emulator", "guardian")
    run.kill("supervisor")
    run.process.wait()
    assert run.left_over() == []
    assert torque(run.trace()) in ({}, {str(i): 0 for i in range(1, 7)})


ALOHA_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


def aloha_joints():
    joints = {}
    for arm in ("left", "right"):
        joints |= {f"{arm}_{name}": ("rad", -1.5, 1.5) for name in ALOHA_ARM}
        joints[f"{arm}_gripper"] = ("unit", 0.0, 1.0)
    return joints


def test_a_14_d_policy_drives_the_emulated_aloha_through_two_ports(deploy, tmp_path, bundle_maker):
    target = [0.2, -0.8, 1.0, 0.1, -0.3, 0.1, 0.7, -0.2, -0.8, 1.0, -0.1, -0.3, -0.1, 0.3]
    bundle = bundle_maker(tmp_path / "aloha", cameras=(), joints=aloha_joints(), target=target, fps=50.0)
    run = deploy("--duration=4", bundle=bundle, profile="aloha")
    assert run.wait_for_end(60) == 0, run.output
    lines = list(entries(run.log_path))
    last = [line for line in lines if line["type"] == "state" and line["mode"] == "running"][-1]
    body = [i for i in range(14) if i not in (6, 13)]
    np.testing.assert_allclose(np.array(last["position"])[body], np.array(target)[body], atol=0.05)
    trace = run.trace()
    for bus in ("left", "right"):
        told = torque([entry for entry in trace if entry["bus"] == bus])
        assert told == {str(i): 0 for i in range(1, 10)}
