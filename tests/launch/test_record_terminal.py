"""`edgevla record` at a terminal: it has the keyboard, and gives it back however it ends."""

import os
import re
import signal
import sys
import time

import numpy as np
import psutil
import pytest
from deployment_kit import Terminal

from edgevla.dataset import open_dataset
from edgevla.dataset.stated import read_stated

pytestmark = pytest.mark.realtime


@pytest.fixture
def window(tmp_path, deploy):
    """A shell in which `record` waits for keys, beside a deployment."""
    deploy().wait_for("robot        running")
    made = Terminal(dict(os.environ), tmp_path / "shown.txt")
    made.type(f"{sys.executable} -m edgevla record {tmp_path / 'dataset'}; echo code=$?\n")
    made.wait_for("keys: r record")
    yield made
    made.close()


def recorder(window):
    (found,) = psutil.Process(window.pid).children()
    return found


def test_ctrl_z_is_refused_because_the_episode_would_have_a_hole(window):
    window.type("\x1a")
    window.wait_for("! Ctrl-Z is refused: the episode would have a hole")
    assert recorder(window).status() != psutil.STATUS_STOPPED
    window.type("q")
    window.wait_for("code=0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_however_it_ends_the_keyboard_is_as_it_was(window, number):
    recorder(window).send_signal(number)
    window.wait_for("code=130")
    window.type("stty -a\n")
    window.wait_for("iexten")
    modes = window.output_path.read_text().rpartition("stty -a")[2]
    for mode in ("icanon", "echo", "isig"):
        assert re.search(rf"(?<!-)\b{mode}\b", modes), modes


def test_q_asks_first_a_signal_keeps_and_the_next_recording_tells(window, tmp_path):
    root = tmp_path / "dataset"
    window.type("r")
    window.wait_for("REC 0:00 |")
    window.type("q")
    window.wait_for("! episode 0 is open: q again discards it and ends, k keeps it and ends")
    window.wait_for("LEAVE? q discards, k keeps | REC")
    time.sleep(1.0)  # sooner, it would be the same press
    window.type("q")
    window.wait_for("episode discarded (")
    window.wait_for("code=0")

    start = f"{sys.executable} -m edgevla record {root}; echo code=$?\n"
    window.type(start)
    window.wait_for("keys: r record", n=2)
    n_before = window.output_path.read_text(errors="replace").count("| REC 0:01 |")
    window.type("r")
    window.wait_for("REC 0:01 |", n=n_before + 1)
    recorder(window).send_signal(signal.SIGTERM)
    window.wait_for(f"! episode 0 was open and is kept as it was: edgevla dataset {root} delete 0 removes it")
    window.wait_for("1 episode kept")
    window.wait_for("code=130")
    dataset = open_dataset(root)
    assert dataset.episodes[0].length > 15
    assert np.isfinite(dataset.columns["action"]).all()
    assert read_stated(root).cut_off_episodes == [0]
    (root / ".recording").mkdir()
    window.type(start)
    window.wait_for("! the recording before was killed: if an episode was open then, it is lost")
    window.wait_for("! cut off, because their recording ended: episode 0. To remove")
    window.wait_for("keys: r record", n=3)
    window.type("q")
    window.wait_for("code=0", n=2)


def test_a_window_that_is_closed_leaves_the_open_episode(window, tmp_path):
    window.type("r")
    window.wait_for("REC 0:01 |")
    process = recorder(window)
    window.close()
    process.wait(60)
    assert open_dataset(tmp_path / "dataset").episodes[0].length > 15
    assert read_stated(tmp_path / "dataset").cut_off_episodes == [0]
