"""`edgevla record --leader`: one command in one terminal starts two emulated arms, records, and brings them to rest."""

import argparse
import errno
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
from deployment_kit import Terminal

from edgevla.cli import main
from edgevla.dataset import check_dataset, open_dataset
from edgevla.errors import DatasetError
from edgevla.launch.led import Led
from edgevla.launch.record_screen import RecordScreen
from edgevla.launch.record_session import RecordSession
from edgevla.nodes.vitals import ENDS, STOPS

FAST = ["--leader=so101_leader", "--robot=so101", "--sim"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (480, 640, 3), np.uint8))
    return folder


@pytest.fixture
def window(tmp_path, own_runtime):
    made = Terminal(dict(os.environ), tmp_path / "shown.txt")
    yield made
    made.close()


def descendants(window):
    return psutil.Process(window.pid).children(recursive=True)


@pytest.mark.realtime
@pytest.mark.timeout(300)
def test_killed_in_the_second_episode_it_loses_only_that_and_is_resumed(window, tmp_path, pictures):
    root = tmp_path / "waves"
    words = [*FAST, f"--camera=front={pictures}", "--task=wave", "--next-task=bow", "--bell", "--resume"]
    start = f"{sys.executable} -m edgevla record {root} {' '.join(words)}"
    window.type(f"{start} --episodes=3; echo code=$?\n")
    window.wait_for("keys: r record", timeout_s=90)
    window.wait_for("reset: r records | 0/3 kept | wave")
    window.type("k")
    window.wait_for("! there is no episode to keep")
    window.type("r")
    window.wait_for("recording episode 0: wave")
    window.wait_for("REC 0:01 |")
    window.type("p")
    window.wait_for("PAUSED 0:0")
    window.wait_for(" paused")
    time.sleep(1.0)  # sooner, it would be the same press
    window.type("p")
    window.wait_for("goes on")
    window.wait_for("REC 0:02 |")
    window.type("n")
    window.wait_for("the task is 'bow', from the next episode on")
    window.type("k")
    window.wait_for("episode 0 kept")
    window.wait_for("\a\a")
    window.type("r")
    window.wait_for("recording episode 1: bow")
    window.wait_for("1/3 kept | bow")
    processes = descendants(window)
    (recorder,) = (p for p in psutil.Process(window.pid).children() if p.name() != "bash")
    recorder.kill()
    window.wait_for("code=137")
    _, left = psutil.wait_procs(processes, 60)
    assert left == [], "nobody moves an arm whose recording was killed"

    window.type(f"{start} --episodes=2 --seconds=1 --pause=1; echo again=$?\n")
    window.wait_for("1 episode there already", timeout_s=90)
    window.wait_for("reset: ")
    window.wait_for("recording episode 1: wave", timeout_s=60)
    window.wait_for("1 episode kept. Next: edgevla inspect", timeout_s=60)
    window.wait_for("again=0", timeout_s=90)
    assert descendants(window) == []

    dataset = open_dataset(root)
    assert (dataset.n_episodes, dataset.tasks) == (2, ["wave"])
    assert not [f.text for f in check_dataset(root) if f.severity == "error"]
    shown = window.output_path.read_text(errors="replace")
    kept = re.search(r"episode 0 kept in \S+ \((\d+) rows, 0:0\d; (\d+) paused", shown)
    assert kept is not None, shown
    assert int(kept[1]) == dataset.episodes[0].length
    assert int(kept[2]) > 0
    assert dataset.episodes[1].length == 30


@pytest.mark.realtime
@pytest.mark.timeout(300)
def test_ctrl_c_brings_the_arm_to_rest_and_keeps_the_open_episode(window, tmp_path, pictures):
    root = tmp_path / "waves"
    words = [*FAST, f"--camera=front={pictures}", "--task=wave", f"--log={tmp_path / 'log'}"]
    window.type(f"{sys.executable} -m edgevla record {root} {' '.join(words)}; echo code=$?\n")
    window.wait_for("keys: r record", timeout_s=90)
    window.type("r")
    window.wait_for("REC 0:01 |")
    window.type("\x03")
    window.wait_for("Ctrl-C ended the recording")
    window.wait_for(f"! episode 0 was open and is kept as it was: edgevla dataset {root} delete 0 removes it")
    window.wait_for("code=130", timeout_s=90)
    assert descendants(window) == []
    assert open_dataset(root).episodes[0].length > 15
    summary = json.loads((tmp_path / "log/latest/summary.json").read_text())
    assert (summary["asked_by"], summary["final_mode"]) == ("SIGTERM", "stopped")
    assert summary["emergency_stops"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--robot=so101"], "--robot is of an arm that --leader starts"),
        (["--sim"], "--sim is of an arm that --leader starts"),
        (["--leader=so101_leader"], "name it with --robot"),
        ([*FAST, "--run-dir=/tmp"], "leave one of them out"),
        ([*FAST, "--port=/dev/ttyACM0"], "leave out --port"),
        ([*FAST, "--next-task=bow"], "give --task too"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(capsys, tmp_path, words, said):
    assert main(["record", str(tmp_path / "set"), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_pair_that_does_not_fit_is_the_recording_s_own_sentence(capfd, tmp_path, own_runtime):
    """What the arm's process said is said once, as ours, and nothing stays behind."""
    with_aloha = ["--leader=so101_leader", "--robot=aloha", "--sim"]
    before = {number: signal.getsignal(number) for number in ENDS | STOPS}
    try:
        assert main(["record", str(tmp_path / "set"), *with_aloha]) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = capfd.readouterr()
    assert "edgevla record: so101_leader cannot lead aloha" in said.err
    assert "cannot lead" not in said.out


def test_what_the_arm_s_process_took_from_a_file_is_shown_and_is_no_error():
    args = {"leader": "l", "robot": "r", "output": "set", "policy": None, "sim": False, "leader_port": []}
    args |= {
        "port": [],
        "camera": [],
        "leader_calibration": None,
        "calibration": None,
        "fps": None,
        "log": None,
    }
    heard = []
    led = Led(argparse.Namespace(**args, config=None), heard.append)
    led._lines += ["edgevla teleop: from edgevla.toml: --port /dev/arm", "edgevla teleop: no arm answers"]
    assert led._last_words() == "no arm answers"
    assert heard == ["edgevla teleop: from edgevla.toml: --port /dev/arm"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("a file", "is a file; name a folder"),
        ("a file/set", "takes no files"),
        ("full of else", "is not empty and not a dataset"),
        ("/proc/set", "takes no files"),
    ],
)
def test_a_place_that_takes_no_recording_is_refused_before_an_arm_starts(capfd, tmp_path, place, said):
    (tmp_path / "a file").touch()
    (tmp_path / "full of else").mkdir()
    (tmp_path / "full of else/diary.txt").touch()
    assert main(["record", str(tmp_path / place), *FAST]) == 1
    told = capfd.readouterr()
    assert said in told.err
    assert told.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a file", "full of else"]


def test_an_episode_that_the_disk_does_not_take_is_said_with_what_is_whole(capsys):
    def obey(word):
        raise OSError(errno.ENOSPC, "No space left on device")

    node = SimpleNamespace(recording=SimpleNamespace(is_recording=True, counters=Counter()), obey=obey)
    args = argparse.Namespace(seconds=None, pause=2.0, episodes=None, task="wave", next_task=[])
    session = RecordSession(node, args, RecordScreen(sys.stdout, has_bell=False), lambda: True)
    with pytest.raises(
        DatasetError, match=r"open episode is lost: .*No space left.*before are whole.*--resume"
    ):
        session._obey("keep")


def test_a_recording_that_has_all_its_episodes_starts_no_arm(capsys, tmp_path):
    from edgevla.dataset.writer import DatasetWriter

    root = tmp_path / "set"
    feature = {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]}
    with DatasetWriter(root, fps=10, features={"action": feature}) as writer:
        writer.add_frame({"action": [1, 2]}, "wave")
        writer.save_episode()
    assert main(["record", str(root), *FAST, "--resume", "--episodes=1"]) == 0
    assert "holds 1 episodes already, and 1 were wanted" in capsys.readouterr().out
    assert json.loads((root / "meta/info.json").read_text())["total_episodes"] == 1
