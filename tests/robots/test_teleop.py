"""A leader arm leads: through the real processes, on two emulated arms."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgevla.cli import main
from edgevla.errors import ConfigError
from edgevla.flight.reader import entries
from edgevla.robots.emulator.trace import read_trace
from edgevla.robots.leader_node import check_pair
from edgevla.robots.profile import load_profile

pytestmark = pytest.mark.realtime


@pytest.mark.parametrize(
    ("leader", "follower"),
    [("so101_leader", "so101"), ("aloha_leader", "aloha"), ("so101_leader_bimanual", "so101_bimanual")],
)
def test_leaders_fit_their_followers(leader, follower):
    check_pair(load_profile(leader), load_profile(follower))


@pytest.mark.parametrize(
    ("option", "words"),
    [("--fps=0", "--fps 0 must be above 0 and at most"), ("--duration=inf", "must be positive")],
)
def test_rates_and_times_that_cannot_be_are_refused(capsys, option, words):
    assert main(["teleop", "--leader=so101_leader", "--robot=so101", "--sim", option]) == 2
    assert words in capsys.readouterr().err


def test_a_leader_that_does_not_fit_is_a_sentence(capsys):
    with pytest.raises(ConfigError, match="so101_leader cannot lead aloha"):
        check_pair(load_profile("so101_leader"), load_profile("aloha"))
    assert main(["teleop", "--leader", "so101_leader", "--robot", "aloha", "--sim"]) == 1
    assert "cannot lead" in capsys.readouterr().err
    assert main(["teleop", "--leader", "so101_leader", "--robot", "so101", "--sim", "--port", "x"]) == 2
    assert (
        main(["teleop", "--leader", "so101_leader", "--robot", "so101", "--sim", "--camera", "left=0"]) == 2
    )


@pytest.mark.parametrize(("leader", "follower"), [("so101_leader", "so101"), ("aloha_leader", "aloha")])
def test_the_follower_does_as_the_leader_and_is_released_at_the_end(tmp_path, leader, follower):
    args = [
        "teleop",
        "--leader",
        leader,
        "--robot",
        follower,
        "--sim",
        "--duration",
        "7",
        "--camera",
        "front=none",
    ]
    args = args if follower == "so101" else args[:-2]
    args += ["--sim-trace", str(tmp_path / "trace"), "--log", str(tmp_path / "log"), "--json"]
    run = subprocess.run(
        [sys.executable, "-m", "edgevla", *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["failure"] is None
    states = []
    for entry in entries(tmp_path / "log" / "latest"):
        if entry["type"] == "state" and entry["mode"] == "running":
            states.append(entry)
    position = np.array([s["position"] for s in states], float)
    wanted = np.array(
        [s["wanted"] if s["wanted"] is not None else [np.nan] * position.shape[1] for s in states], float
    )
    assert np.ptp(position[:, 0]) > (10 if follower == "so101" else 0.2)  # the leader's wave
    late = slice(len(states) // 2, None)  # after the slow approach
    gap = np.nanmedian(np.abs(position[late, 0] - wanted[late, 0]))
    assert gap < (5 if follower == "so101" else 0.25)
    torque = {}
    for entry in read_trace(tmp_path / "trace"):
        if entry.get("register") == "torque_enable":
            torque |= {(entry["bus"], servo): value for servo, value in entry["values"].items()}
    assert set(torque.values()) == {0}
    assert len(torque) == sum(len(bus.motors) for bus in load_profile(follower).buses)
