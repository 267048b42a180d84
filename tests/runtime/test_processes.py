"""Real processes, sockets and pseudo-terminals; any of them killed. The bus trace says what the arm was told."""

import json
import re
import signal
import time
from itertools import pairwise

import numpy as np
import pytest

from edgevla.robots.bus.feetech import TICKS_PER_TURN

pytestmark = pytest.mark.realtime

PRESENT_SLACK = 60
"""Ticks that an arm may lag behind its goal: a freeze (goal := present) steps back by so much, and moves nothing."""
GRIPPER = "6"


def goals(trace):
    """[(t_ns, {servo: ticks})] of every goal that was sent."""
    return [
        (entry["t_ns"], entry["values"])
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


def assert_no_step_above_the_cap(trace, servo_hz=120.0):
    """1.5 x 81 deg/s trained, at 120 Hz; a skipped tick allows as many steps. Freezes may step back to the present."""
    cap = 1.5 * 81 * 4095 / 360 / servo_hz
    sent = goals(trace)
    assert len(sent) > 40, "the arm was never driven"
    for (_, before), (_, now) in pairwise(sent):
        for servo in set(before) & set(now) - {GRIPPER}:
            step = abs(now[servo] - before[servo])
            assert step <= cap + 1 or step <= PRESENT_SLACK, f"servo {servo} was told to jump by {step} ticks"
            assert 0 <= now[servo] < TICKS_PER_TURN


def assert_released(trace):
    assert torque(trace) == {str(i): 0 for i in range(1, 7)}


def assert_parked_before_released(trace):
    limits = [e for e in trace if e["dir"] == "tx" and e.get("register") == "torque_limit"]
    parked = [e["t_ns"] for e in limits if e["values"].get("1") == 400]  # park_torque = 0.4
    off = [e["t_ns"] for e in trace if e["dir"] == "tx" and e.get("register") == "torque_enable"]
    assert parked, "the torque limit was never reduced"
    assert parked[-1] < off[-1]


def test_a_deployment_runs_stops_in_order_and_sums_up(deploy):
    run = deploy("--duration=4")
    assert run.wait_for_end() == 0, run.output
    trace = run.trace()
    assert_no_step_above_the_cap(trace)
    assert_released(trace)
    assert run.left_over() == []
    summary = json.loads((run.log_path / "summary.json").read_text())
    assert summary["inferences"] > 20
    assert summary["ticks_running"] > 300
    assert summary["failure"] is None
    lines = [json.loads(line) for line in (run.log_path / "run.jsonl").read_text().splitlines()]
    states = [line for line in lines if line["type"] == "state" and line["mode"] == "running"]
    np.testing.assert_allclose(states[-1]["position"][:5], [20, -10, 15, -5, 0], atol=3)
    assert {line["type"] for line in lines} >= {"state", "chunk", "event", "servo_health", "summary"}


def test_ctrl_c_moves_to_rest_and_releases(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(1.0)
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 130
    trace = run.trace()
    assert_no_step_above_the_cap(trace)
    assert_released(trace)
    rest = {"2": -95.0, "3": 92.0}
    for servo, degrees in rest.items():
        assert goals(trace)[-1][1][servo] == pytest.approx(2047 + degrees * 4095 / 360, abs=3)


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
    assert run.wait_for_end() == 130
    assert_released(run.trace())


@pytest.mark.parametrize("name", ["robot", "guardian", "supervisor"])
def test_whoever_holds_the_arm_is_killed_and_the_arm_is_held_parked_released(deploy, name):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.kill(name)
    run.wait_for_end()
    trace = run.trace()
    assert_no_step_above_the_cap(trace)
    assert_parked_before_released(trace)
    assert_released(trace)
    assert run.left_over() == []
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
    trace = run.trace()
    assert_parked_before_released(trace)
    assert_released(trace)
    quiet = [b - a for (a, _), (b, _) in pairwise(goals(trace))]
    assert max(quiet) < 1e9, f"the guardian took longer than a second\n{run.output}"


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
    trace = run.trace()
    assert before > 500, "the control loop went on meanwhile"
    assert_no_step_above_the_cap(trace)
    assert_released(trace)
    summary = json.loads((run.log_path / "summary.json").read_text())
    assert summary["final_mode"] == "stopped"


def test_a_dead_bus_ends_the_run_with_a_sentence(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.kill("emulator")
    assert run.wait_for_end() == 1
    assert re.search(r"has gone.*switch the arm's power off", run.output)


def test_a_closed_terminal_brings_the_arm_to_rest(deploy):
    run = deploy()
    run.wait_for("robot        running")
    time.sleep(0.7)
    run.process.send_signal(signal.SIGHUP)
    run.wait_for_end()
    assert_released(run.trace())
    assert run.left_over() == []


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
    lines = [json.loads(line) for line in (run.log_path / "run.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["type"] == "state" and line["mode"] == "running"][-1]
    body = [i for i in range(14) if i not in (6, 13)]
    np.testing.assert_allclose(np.array(last["position"])[body], np.array(target)[body], atol=0.05)
    trace = run.trace()
    for bus in ("left", "right"):
        told = torque([entry for entry in trace if entry["bus"] == bus])
        assert told == {str(i): 0 for i in range(1, 10)}
