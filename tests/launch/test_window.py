"""`edgevla deploy --monitor`: the terminal is left before anything is printed, and is as it was after every end."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from edgevla.launch.screen import Screen

pytestmark = pytest.mark.realtime

ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
MOUSE_OFF = "\x1b[?1003l"


@pytest.fixture
def watched(deploy):
    """A deployment with the monitor in its terminal."""
    run = deploy("--monitor", in_terminal=True)
    run.wait_for(ENTER)
    time.sleep(2.0)
    return run


def monitor_of(run):
    (found,) = [p for p in run._mine() if "monitor" in p.cmdline()]
    return found


def assert_left(run, words, code):
    """The screen was left, then `words` were printed; the shell's terminal is a usual one; the exit code."""
    run.wait_for_end(60)
    run.terminal.type("echo code=$?; stty -a\n")
    run.terminal.wait_for(f"code={code}")
    run.terminal.wait_for("iexten")
    after = run.output.rpartition(ENTER)[2]
    shown = after.rindex(words)
    for escape in (LEAVE, SHOW_CURSOR, MOUSE_OFF):
        assert escape in after[:shown], f"{escape!r} before the first line"
    assert "\x1b[?1003h" not in after[after.index(MOUSE_OFF) :], "the mouse stays off"
    modes = run.output.rpartition("stty -a")[2]
    for mode in ("icanon", "echo", "isig", "icrnl", "opost"):
        assert re.search(rf"(?<!-)\b{mode}\b", modes), modes
    assert run.left_over() == []


def test_a_monitor_that_is_killed_leaves_a_sane_terminal_and_the_arm_at_rest(watched):
    monitor_of(watched).kill()
    assert_left(watched, "stopped: asked to stop", 0)


def test_a_deployment_that_is_asked_to_terminate_leaves_the_screen_first(watched):
    watched.process.send_signal(signal.SIGTERM)
    assert_left(watched, "asked to terminate: the arm moves to rest", 0)


def test_a_run_that_fails_leaves_the_screen_and_says_why(watched):
    watched.find()
    watched.kill("robot")
    assert_left(watched, "the control loop ended (killed by SIGKILL)", 1)


def test_everybody_asked_at_once_leaves_a_sane_terminal(watched):
    for process in list(watched._mine()):
        if not watched._is_shell(process):
            process.send_signal(signal.SIGTERM)
    assert_left(watched, "asked to terminate: the arm moves to rest", 0)


def test_three_times_ctrl_c_do_what_the_help_promises(watched):
    """The monitor has the keys; the first ends it, the others are the terminal's own again."""
    watched.terminal.type("\x03")
    watched.wait_for("stopping: the arm moves to rest and is released (Ctrl-C again: emergency stop)")
    watched.terminal.type("\x03")
    watched.wait_for("emergency stop: the arm is frozen")
    time.sleep(1.2)
    watched.terminal.type("\x03")
    assert_left(watched, "emergency stop: the arm is released", 1)


def test_the_monitor_needs_a_terminal_and_says_so_before_anything_starts(bundle):
    words = ["deploy", str(bundle), "--robot=so101", "--sim", "--monitor"]
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--monitor needs a terminal; leave it out here, and attach one: edgevla monitor" in done.stderr
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(bundle) in (p.info["cmdline"] or [])]


def test_what_waited_for_the_screen_is_bounded_and_says_so(capfd):
    screen = Screen(to_stderr=False)
    screen.give_way()
    for n in range(10_000):
        screen("log", "robot", f"line {n}")
    screen.come_back()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "... 9500 earlier lines are in the log only"
    assert lines[-1].endswith("line 9999")
    assert len(lines) == 501
