"""A moving (emulated) arm whose policy is elsewhere: real processes, a server that is killed, a line that goes dead."""

import contextlib
import signal
import sys
import time
from pathlib import Path

import pytest
from proxy_kit import Proxy, Weather
from remote_kit import Server, log_of, verdict_on
from serve_kit import free_port, until

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from deployment_kit import Deployment, make_bundle, write_fast_profile

pytestmark = pytest.mark.realtime


@pytest.fixture
def remote(tmp_path):
    """`remote(*options, weather=None)` -> server, line, deployment; all end with the test."""
    ending = contextlib.ExitStack()

    def start(*options, weather=None):
        port = free_port()
        server = Server(make_bundle(tmp_path / "bundle"), port)
        ending.callback(server.kill)
        line = Proxy(port, weather)
        ending.callback(line.close)
        profile = write_fast_profile(tmp_path / "so101_fast.toml")
        run = Deployment(tmp_path, f"--policy={line.endpoint}/arm", profile, *options)
        ending.callback(run.close)
        run.wait_for("robot        running", 60)
        return server, line, run

    with ending:
        yield start


def ended(run):
    """It went to rest in order, no rule was broken, nothing was played twice; the lines of the log."""
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 0, run.output
    verdict = verdict_on(run)
    assert verdict.violations == [], run.output
    assert sorted(verdict.endings.elements()) == ["rest"]
    assert run.left_over() == []
    return log_of(run)


def test_a_server_killed_under_a_moving_arm_is_waited_for_and_the_rollout_goes_on(remote):
    server, _, run = remote()
    for n in (1, 2):
        time.sleep(0.5)
        server.kill()
        until(lambda n=n: run.output.count("does not answer; looking for it") >= n, 10)
        server.start()
        began = time.monotonic()
        until(lambda n=n: run.output.count("answers again") >= n, 10)
        assert time.monotonic() - began < 4, "on a busy machine"
    time.sleep(1.0)
    lines = ended(run)
    states = [line for line in lines if line["type"] == "state" and line["mode"] == "running"]
    assert states[-1]["t0_ns"] == states[1]["t0_ns"], (
        "the same rollout"
    )  # the first heard `start`, in the grid before
    assert abs(states[-1]["position"][0] - 20) < 3


def test_a_cable_is_pulled_and_put_back_over_a_slow_line(remote):
    _, line, run = remote("--frames=jpeg:80", weather=Weather(0.02, 0.01, 0.01))
    time.sleep(0.5)
    line.is_dead = True
    until(lambda: "does not answer; looking for it" in run.output, 15)
    line.is_dead = False
    until(lambda: "answers again" in run.output, 10)
    time.sleep(1.0)
    chunks = [entry for entry in ended(run) if entry["type"] == "chunk"]
    assert min(chunk["timing_ns"]["network"] for chunk in chunks) > 20e6


def test_a_server_that_goes_down_in_order_tells_its_robots(remote):
    server, _, run = remote()
    server.kill(signal.SIGTERM)
    assert server.process.returncode == 0
    until(lambda: "looking for it" in run.output, 10)
    server.start()
    until(lambda: "answers again" in run.output, 10)
    ended(run)
