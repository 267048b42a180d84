"""A moving (emulated) arm at an openpi server: real processes, a server that is killed, a line that goes dead."""

import collections
import contextlib
import signal
import sys
import time
from pathlib import Path

import pytest
from openpi_kit import DEPLOY_MAP, free_port, stub
from proxy_kit import Proxy
from serve_kit import until

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from bus_trace import judge
from deployment_kit import Deployment, write_fast_profile

from edgevla.flight.reader import entries

pytestmark = pytest.mark.realtime

TRAINED_SPEED = [81.0] * 5 + [45.0]
SERVO_HZ = 120.0


@pytest.fixture
def remote(tmp_path):
    """`remote(*options, map=...)` -> server, line, deployment; all end with the test."""
    ending = contextlib.ExitStack()

    def start(*options, text=DEPLOY_MAP):
        port = free_port()
        server = stub(port)
        ending.callback(server.end)
        line = Proxy(port)
        ending.callback(line.close)
        (tmp_path / "map.toml").write_text(text)
        profile = write_fast_profile(tmp_path / "so101_fast.toml")
        words = [f"--keys={tmp_path / 'map.toml'}", *options]
        run = Deployment(tmp_path, f"--policy=ws://127.0.0.1:{line.port}", profile, *words)
        ending.callback(run.close)
        return server, line, run

    with ending:
        yield start


def test_a_server_killed_and_a_dead_line_are_waited_for_and_the_rollout_goes_on(remote):
    server, line, run = remote()
    run.wait_for("robot        running", 60)
    time.sleep(0.5)
    server.end(signal.SIGKILL)
    until(lambda: "does not answer; looking for it" in run.output, 15)
    server.start()
    until(lambda: "answers again" in run.output, 10)
    time.sleep(0.5)
    line.is_dead = True
    until(lambda: run.output.count("does not answer; looking for it") >= 2, 20)
    line.is_dead = False
    until(lambda: run.output.count("answers again") >= 2, 10)
    time.sleep(1.5)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 0, run.output
    verdict = judge(run.trace(), run.profile, TRAINED_SPEED, SERVO_HZ)
    assert verdict.violations == [], run.output
    assert sorted(verdict.endings.elements()) == ["rest"]
    assert run.left_over() == []
    lines = list(entries(run.log_path))
    answered = collections.Counter(entry["request_id"] for entry in lines if entry["type"] == "chunk")
    assert max(answered.values()) == 1
    states = [entry for entry in lines if entry["type"] == "state" and entry["mode"] == "running"]
    assert states[-1]["t0_ns"] == states[1]["t0_ns"], (
        "the same rollout"
    )  # the first heard `start`, in the grid before
    assert abs(states[-1]["position"][0] - 20) < 3, "20 degrees, which the server said in radians"
    assert abs(states[-1]["position"][5] - 40) < 3, "0.6 there, where 1 is closed"


def test_an_arm_is_never_switched_on_under_a_server_that_answers_other_chunks_than_the_map_declares(remote):
    _, _, run = remote(text=DEPLOY_MAP.replace("chunk_size = 30", "chunk_size = 29"))
    assert run.wait_for_end(60) == 1
    assert "answered a chunk of shape (30, 6)" in run.output
    assert "declares (29, 6); the chunk is not used" in run.output
    assert "running" not in run.output
