"""`edgevla record` at a terminal: it has the keyboard, and gives it back however it ends."""

import os
import re
import signal
import sys

import psutil
import pytest
from deployment_kit import Terminal

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
