"""`edgevla record` beside a real deployment: processes, sockets, video."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
import pytest
import zmq
from deployment_kit import Terminal

from edgevla.arguments import SetTask
from edgevla.dataset import open_dataset
from edgevla.dataset.check import check_dataset
from edgevla.wire import CommandClient, endpoint, find_deployment, read_deployment

pytestmark = pytest.mark.realtime


@pytest.fixture(autouse=True)
def own_runtime_folder(monkeypatch):
    """`record` attaches to the only deployment of this user: this test's is the only one (short, for sockets)."""
    folder = tempfile.mkdtemp(prefix="ev-", dir="/tmp")
    monkeypatch.setenv("EDGEVLA_RUNTIME_DIR", folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


def record(*words, keys="", timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "edgevla", "record", *map(str, words)],
        input=keys,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(180)
def test_rollouts_of_a_policy_become_episodes(deploy, tmp_path):
    running = deploy()
    running.wait_for("running")
    root = tmp_path / "recorded"
    done = record(root, "--task", "go there", "--episodes", 2, "--seconds", 1.5, "--pause", 0.3, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["n_kept"] == 2
    again = record(root, "--task", "go there", "--episodes", 1, "--seconds", 1, "--pause", 0.2)
    assert again.returncode == 0, again.stderr
    assert "episode 2 kept" in again.stdout

    dataset = open_dataset(root)
    assert (dataset.n_episodes, dataset.info.fps, dataset.tasks) == (3, 30, ["go there"])
    assert not [f for f in check_dataset(root) if f.severity == "error"]
    lengths = [episode.length for episode in dataset.episodes]
    assert lengths == [45, 45, 30], "1.5 s and 1 s at 30 Hz, in rows"
    state, action = dataset.columns["observation.state"], dataset.columns["action"]
    assert np.isfinite(action).all()
    assert np.abs(action[-1] - state[-1]).max() < 15, "what was sent lies near where the arm is"
    assert dataset.frame("observation.images.front", 0).shape == (48, 64, 3)


def test_cameras_of_two_processes_are_recorded_together(deploy, tmp_path, bundle_maker):
    """One plays files, the other is simulated: two camera nodes in one deployment."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        cv2.imwrite(str(pictures / f"{i}.png"), np.full((480, 640, 3), 200 + i, np.uint8))
    two = bundle_maker(tmp_path / "two", cameras=("front", "wrist"), size=(480, 640))
    running = deploy(f"--camera=front={pictures}", bundle=two)
    running.wait_for("running")
    root = tmp_path / "recorded"
    done = record(root, "--task", "look", "--episodes", 1, "--seconds", 1, "--pause", 0.2)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(root)
    assert dataset.cameras == ["observation.images.front", "observation.images.wrist"]
    front, wrist = (dataset.frame(name, 20) for name in dataset.cameras)
    assert abs(float(front.mean()) - 201) < 6
    assert wrist.std() > front.std() + 5, "a drawn scene, not the grey card"


@pytest.mark.timeout(120)
def test_keys_keep_discard_and_quit(deploy, tmp_path):
    running = deploy()
    running.wait_for("running")
    root = tmp_path / "recorded"
    done = record(root, keys="k\nr\nd\nx\nq\n")
    assert done.returncode == 0, done.stderr
    assert "! there is no episode to keep" in done.stdout
    assert "recording episode 0" in done.stdout
    assert "episode discarded" in done.stdout
    assert "0 episodes kept" in done.stdout


def set_task(text):
    """As the monitor does it."""
    folder = find_deployment()
    session = read_deployment(folder).session_bytes
    with zmq.Context() as ctx:
        client = CommandClient(ctx, endpoint(folder, "robot", "commands"), session, "test")
        try:
            assert client.request("set_task", SetTask(text), timeout_s=5).is_accepted
        finally:
            client.close()


@pytest.mark.timeout(180)
def test_a_task_that_is_changed_while_recording_is_in_the_rows_from_then_on(deploy, tmp_path):
    running = deploy("--task=push the cube")
    running.wait_for("running")
    root = tmp_path / "recorded"
    window = Terminal(dict(os.environ), tmp_path / "record.txt")
    try:
        window.type(f"{sys.executable} -m edgevla record {root} --task='something else'\n")
        window.wait_for("keys: r record")
        window.type("r")
        window.wait_for("recording episode 0: push the cube")
        window.wait_for(
            "! the robot's task is 'push the cube', and every row carries it; 'something else' is not used"
        )
        set_task("lift the cube")
        window.wait_for("! the task is 'lift the cube' from row ")
        window.type("k")
        window.wait_for("episode 0 kept")
        window.type("r")
        window.wait_for("recording episode 1: lift the cube")
        time.sleep(1.0)
        window.type("k")
        window.wait_for("episode 1 kept")
        window.type("q")
        window.wait_for("2 episodes kept. Next")
    finally:
        window.close()
    dataset = open_dataset(root)
    assert [e.tasks for e in dataset.episodes] == [("push the cube", "lift the cube"), ("lift the cube",)]
    first = [dataset.task(row) for row in range(dataset.episodes[0].length)]
    assert first == sorted(first, reverse=True), "the one, then the other"
    assert not [f for f in check_dataset(root) if f.severity == "error"]


@pytest.mark.timeout(180)
def test_a_recording_into_another_robot_s_dataset_ends_before_the_first_episode(deploy, tmp_path):
    running = deploy()
    running.wait_for("running")
    root = tmp_path / "recorded"
    assert record(root, "--task", "a", "--episodes", 1, "--seconds", 0.5, "--pause", 0.1).returncode == 0
    note = root / "meta/edgevla.json"
    note.write_text(note.read_text().replace("degrees", "range100"))
    before = note.read_text()
    done = record(root, "--task", "a", "--episodes", 1, "--seconds", 0.5, "--pause", 0.1)
    assert done.returncode == 1
    assert "its joints are in range100, those of this recording in degrees" in done.stderr
    assert "Traceback" not in done.stderr
    assert note.read_text() == before
    assert open_dataset(root).n_episodes == 1


@pytest.mark.timeout(240)
def test_a_leader_s_demonstrations_are_recorded_by_keys_in_a_terminal(tmp_path):
    """Two emulated arms, the leader swaying; what a person types at `edgevla record` in a second window."""
    root, said = tmp_path / "waves", tmp_path / "teleop.txt"
    words = ["teleop", "--leader=so101_leader", "--robot=so101", "--sim", "--task=wave", "--camera=front=sim"]
    with said.open("w") as output:
        teleop = subprocess.Popen([sys.executable, "-m", "edgevla", *words], stdout=output, stderr=output)
    window = Terminal(dict(os.environ), tmp_path / "record.txt")
    try:
        until = time.monotonic() + 60
        while "robot        running" not in said.read_text():
            assert time.monotonic() < until, said.read_text()
            assert teleop.poll() is None, said.read_text()
            time.sleep(0.1)
        window.type(f"{sys.executable} -m edgevla record {root}\n")
        window.wait_for("keys: r record")
        window.type("k")
        window.wait_for("! there is no episode to keep")
        window.type("r")
        began = time.monotonic()
        window.wait_for("recording episode 0: wave")
        time.sleep(2.0)
        window.type("k")
        window.wait_for("episode 0 kept")
        longest_s = time.monotonic() - began
        window.type("r")
        window.wait_for("recording episode 1: wave")
        time.sleep(1.0)
        window.type("a")
        window.wait_for("episode discarded (")
        window.wait_for("recording episode 1: wave", 2)
        time.sleep(2.0)
        window.type("k")
        window.wait_for("episode 1 kept")
        window.type("r")
        window.wait_for("recording episode 2")
        time.sleep(0.5)
        window.type("d")
        window.wait_for("episode discarded (", 2)
        window.type("q")
        window.wait_for("2 episodes kept. Next: edgevla inspect")
        teleop.send_signal(signal.SIGINT)
        assert teleop.wait(60) == 130, said.read_text()
    finally:
        window.close()
        teleop.kill()
        teleop.wait()

    assert not [f for f in check_dataset(root) if f.severity == "error"]
    dataset = open_dataset(root)
    assert (dataset.n_episodes, dataset.info.fps, dataset.tasks) == (2, 30, ["wave"])
    lengths = [episode.length for episode in dataset.episodes]
    assert min(lengths) >= 30, f"two seconds each, at 30 Hz and less where the machine is held up: {lengths}"
    assert lengths[0] <= 30 * longest_s + 15
    state, action = dataset.columns["observation.state"], dataset.columns["action"]
    assert np.ptp(action[:, :5], axis=0).min() > 5, "every joint follows the leader's wave"
    assert np.median(np.abs(action - state)[:, :5]) < 3, "the follower is where it was sent"
    first, last = (
        dataset.frame("observation.images.front", k).astype(int) for k in (0, dataset.n_frames - 1)
    )
    assert (np.abs(first - last) > 40).mean() > 0.01, "the camera saw the arm move"


def test_without_a_deployment_it_says_what_to_start(tmp_path):
    done = record(tmp_path / "recorded")
    assert done.returncode == 2
    assert "no deployment is running" in done.stderr
    assert "Traceback" not in done.stderr
