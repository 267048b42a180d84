"""`edgevla record --policy --leader`: a policy drives, a person takes over and hands back, and every row tells who."""

import argparse
import json
import os
import re
import sys

import numpy as np
import psutil
import pytest
from deployment_kit import LivingArm, Terminal, make_bundle

from edgevla.cli import main
from edgevla.dataset import DatasetWriter, check_dataset, open_dataset
from edgevla.errors import UsageError
from edgevla.launch.led import command
from edgevla.launch.takeover import Takeover

PAIR = ["--leader=so101_leader", "--robot=so101"]


@pytest.fixture
def window(tmp_path, own_runtime):
    made = Terminal(dict(os.environ), tmp_path / "shown.txt")
    yield made
    made.close()


@pytest.fixture
def arms(tmp_path):
    """Follower and leader, emulated behind pseudo-terminals of their own; the leader can be pulled out."""
    made = []
    for name, profile, more in (("follower", "so101", ()), ("leader", "so101_leader", ("--sway=0.1",))):
        (tmp_path / name).mkdir()
        made.append(LivingArm(tmp_path / name, profile, *more))
    yield made
    for arm in made:
        arm.close()


@pytest.mark.realtime
@pytest.mark.timeout(300)
def test_a_person_takes_over_loses_the_leader_hands_back_and_the_rows_tell(window, tmp_path, arms):
    follower, leader = arms
    bundle = make_bundle(tmp_path / "bundle", cameras=())
    root = tmp_path / "corrected"
    ports = [*follower.options, *(f"--leader-{option[2:]}" for option in leader.options)]
    words = [*PAIR, *ports, f"--policy={bundle}", "--task=wave", f"--log={tmp_path / 'log'}", "--json"]
    window.type(f"{sys.executable} -m edgevla record {root} {' '.join(words)}; echo code=$?\n")
    window.wait_for("t: you take over with the leader arm", timeout_s=120)
    window.wait_for("policy drives | 0 kept")
    window.type("r")
    window.wait_for("REC 0:01 |")
    window.type("t")
    window.wait_for("YOU drive: the arm goes to the leader slowly")
    window.wait_for("YOU drive | 0 kept")
    window.wait_for("REC 0:02 |")
    leader.close()
    window.wait_for("! leader ended", timeout_s=60)
    window.type("t")
    window.wait_for("the policy drives", timeout_s=60)
    n_policy = window.output_path.read_text(errors="replace").count("policy drives | 0 kept")
    window.wait_for("policy drives | 0 kept", n=n_policy + 3)
    window.type("k")
    window.wait_for("episode 0 kept")
    window.type("q")
    window.wait_for("code=0", timeout_s=90)
    assert psutil.Process(window.pid).children(recursive=True) == []

    shown = window.output_path.read_text(errors="replace")
    kept = re.search(r"episode 0 kept in \S+ \((\d+) rows, .*; 1 correction, (\d+)% of the rows\)", shown)
    assert kept is not None, shown
    result = json.loads(re.search(r'\{"n_corrections".*\}', shown)[0])
    assert (result["n_corrections"], round(100 * result["led_share"])) == (1, int(kept[2]))

    dataset = open_dataset(root)
    assert dataset.info.features["intervention"].dtype == "bool"
    is_led = np.asarray(dataset.columns["intervention"]).ravel().astype(bool)
    assert len(is_led) == int(kept[1])
    assert not is_led[0]
    assert not is_led[-1]
    assert np.count_nonzero(np.diff(is_led.astype(int))) == 2, "one stretch"
    assert not [f.text for f in check_dataset(root) if f.severity == "error"]
    steps = np.abs(np.diff(np.asarray(dataset.columns["action"]), axis=0))
    assert steps.max() < 20, "no jump at a change of drivers"
    summary = json.loads((tmp_path / "log/latest/summary.json").read_text())
    assert summary["takeovers"] == 1
    assert 0 < summary["led_share"] < 1
    assert summary["final_mode"] == "stopped"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy=bundles/act"], "--policy is of an arm that --leader starts"),
        ([*PAIR, "--policy=b", "--fps=10"], "rows come at the policy's rate"),
        ([*PAIR, "--policy=b", "--task=wave", "--next-task=bow"], "the policy has its own task"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(capsys, tmp_path, words, said):
    assert main(["record", str(tmp_path / "set"), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--leader-port=/dev/ttyACM1"], "give --leader too"),
        (["--leader=so101_leader", "--leader-calibration=mine", "--sim"], "leave out --leader-calibration"),
        (["--leader=so101_leader", "--dry-run"], "leave out --leader"),
    ],
)
def test_a_leader_that_cannot_be_had_is_refused(capsys, tmp_path, words, said):
    bundle = make_bundle(tmp_path / "bundle", cameras=())
    assert main(["deploy", str(bundle), "--robot=so101", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_started_for_a_policy_is_a_deployment():
    said = {"leader": "l", "robot": "r", "leader_port": [], "port": ["p"], "camera": [], "sim": False}
    said |= {"leader_calibration": None, "calibration": None, "fps": None, "log": None, "task": "wave"}
    said |= {"output": "set", "config": "my.toml"}
    common = ["--leader=l", "--robot=r", "--recorded-into=set", "--port=p", "--config=my.toml"]

    def started(policy):
        return command(argparse.Namespace(**said, policy=policy))

    assert started(None) == ("teleop", common)
    assert started("b/act") == ("deploy", [*common, "--task=wave", "--", "b/act"])
    assert started("tcp://h:1/act")[1][-1] == "--policy=tcp://h:1/act"


class Robot:
    """Answers commands as the robot node does. refusal: why not."""

    def __init__(self):
        self.heard, self.refusal = [], ""

    def request(self, action, arguments=None, timeout_s=0.0):
        self.heard.append(action)
        return argparse.Namespace(is_accepted=not self.refusal, reason=self.refusal)

    def close(self):
        pass


def test_every_press_is_asked_of_the_robot_and_a_refusal_is_said(monkeypatch, tmp_path):
    """What is one press, the keys say (test_record_keys.py): none of theirs is swallowed here."""
    robot = Robot()
    monkeypatch.setattr("edgevla.launch.takeover.CommandClient", lambda *_: robot)
    takeover = Takeover(None, tmp_path, b"s")
    assert takeover.press(is_led=False).startswith("YOU drive")
    assert takeover.press(is_led=True) == "the policy drives"
    assert robot.heard == ["lead", "hand_back"]
    robot.refusal = "the emergency stop is latched; clear it first"
    with pytest.raises(UsageError, match="the emergency stop is latched"):
        takeover.press(is_led=False)


@pytest.mark.parametrize(
    ("extra", "policy"), [({}, ["--policy=bundles/act"]), ({"intervention": "bool"}, [])]
)
def test_a_dataset_that_cannot_take_the_rows_is_refused_before_an_arm_starts(
    capsys, tmp_path, monkeypatch, extra, policy
):
    monkeypatch.setattr("edgevla.launch.led.Led.start", lambda _: pytest.fail("an arm was started"))
    features = {"action": {"dtype": "float32", "shape": [1], "names": ["a"]}}
    features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in extra.items()}
    with DatasetWriter(tmp_path / "set", fps=30, features=features) as writer:
        row = {"action": np.zeros(1, np.float32)} | {name: np.ones(1, bool) for name in extra}
        writer.add_frame(row, "wave")
        writer.save_episode()
    assert main(["record", str(tmp_path / "set"), *PAIR, *policy, "--sim"]) == 1
    assert "cannot be appended to: it" in (said := capsys.readouterr().err)
    assert "column 'intervention'" in said
