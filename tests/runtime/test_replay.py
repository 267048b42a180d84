"""`edgevla replay`: a recorded episode through the real processes, and the player's arithmetic."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.errors import UsageError
from edgevla.launch.episode import EpisodeSource
from edgevla.nodes.replay import CHUNK_SIZE, Player, Recorded, load_episode
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    root = tmp_path_factory.mktemp("demos") / "rest"
    demonstrate(root, DemonstrationPlan("follow_cube", 2, seed=5, disturbance=0.0))
    return root


def recorded(n=20):
    action = np.stack([np.linspace(0, 19, n), np.full(n, 5.0)], axis=1).astype(np.float32)
    return Recorded(30.0, action - 1, action, np.array([3.0, 3.0], np.float32), ["a.pos", "b.pos"])


def test_the_episode_begins_when_the_arm_is_there_and_lies_on_the_grid():
    player = Player(recorded())
    assert (player.chunk(0, np.array([50.0, 5.0])) == [0, 5]).all(), "far away: hold the first goal"
    chunk = player.chunk(10, np.array([1.0, 5.0]))
    assert chunk.shape == (CHUNK_SIZE, 2)
    assert chunk[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert player.chunk(13, np.array([2.0, 4.0]))[0, 0] == 3
    assert chunk[-1, 0] == 19, "behind the end the last goal is held"
    assert not player.is_done(29)
    assert player.is_done(10 + 20 + 15)
    assert "20 steps" in player.words()


def test_an_arm_that_never_gets_there_is_given_up_with_the_joint_named():
    player = Player(recorded())
    for grid in (0, 30 * 14, 30 * 16):
        player.chunk(grid, np.array([0.0, 90.0]))
    assert player.is_lost
    assert "b.pos is at 90.0, the episode begins at 5.0" in player.never_there(np.array([0.0, 90.0]))


def test_missing_episodes_and_unknown_units_are_refused(demos):
    joint = AboutJoint("", "deg", -90.0, 90.0, 90.0, False, (-90.0, 90.0), "mid_range")
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
    joints = [replace(joint, name=f"{name}.pos") for name in names]
    joints.append(replace(joint, name="gripper.pos", unit="percent", zero=None))
    robot = AboutRobot("robot", "so101", tuple(joints), (), 100.0, (), ())
    with pytest.raises(UsageError, match="has no episode 9; it has 0 to 1"):
        EpisodeSource(str(demos), 9)
    assert load_episode(str(demos), 1, robot).action.shape == (55, 6)
    with pytest.raises(
        UsageError, match="was recorded in degrees; --joint-units range100 would drive the arm"
    ):
        EpisodeSource(str(demos), 0, "range100")
    with pytest.raises(UsageError, match="was recorded in degrees"):
        load_episode(str(demos), 0, robot, "range100")
    (demos / "meta" / "edgevla.json").rename(demos / "meta" / "aside.json")
    try:
        with pytest.raises(UsageError, match="--joint-units degrees"):
            load_episode(str(demos), 0, robot)
    finally:
        (demos / "meta" / "aside.json").rename(demos / "meta" / "edgevla.json")


@pytest.mark.timeout(120)
def test_an_episode_plays_on_the_emulated_arm(demos, fast_profile, tmp_path):
    words = [
        "replay",
        str(demos),
        "--episode",
        "1",
        f"--robot={fast_profile}",
        "--sim",
        "--log",
        str(tmp_path / "log"),
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the episode has been replayed: 55 steps" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["failure"] is None
    error = float(done.stderr.split("within ")[1].split(" (")[0])
    assert error < 5.0, "degrees, RMS of the worst joint"
