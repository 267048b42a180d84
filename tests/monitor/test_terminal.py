"""`edgevla monitor` on a real terminal: bytes in, commands out, and the terminal as it was after every end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import time

import psutil
import pytest
from monitor_kit import Watcher, attach, presses

from edgevla.arguments import SetTask


def settle(seconds=0.6):
    time.sleep(seconds)


@pytest.mark.parametrize("text", ["push the cube", "see home\r\nstop e q\rhhh sss", "e e e\re"])
@pytest.mark.parametrize("gap_s", [0.0, 0.1])
def test_a_task_typed_or_pasted_after_t_is_no_command(robot, watch, text, gap_s):
    watcher = watch(robot)
    if gap_s:
        watcher.write("t")
        time.sleep(gap_s)
        watcher.write(text + "\r")
    else:
        watcher.write("t" + text + "\r")
    robot.wait_for("set_task")
    settle()
    assert [action for action, _ in robot.heard] == ["set_task"]
    assert robot.heard[0][1] == SetTask(" ".join(text.replace("\r", " ").split()))


def test_a_bracketed_paste_in_the_same_read_as_t_is_text(robot, watch):
    watcher = watch(robot)
    watcher.write("t\x1b[200~see the\nhome\x1b[201~\r")
    robot.wait_for("set_task")
    assert robot.heard == [("set_task", SetTask("see the home"))]


def test_a_paste_on_the_main_screen_is_obeyed_by_nobody(robot, watch):
    watcher = watch(robot)
    watcher.write("\x1b[200~see home\x1b[201~")
    settle()
    watcher.write("push is h s \x12 q")
    watcher.wait_for("text came where none belongs")
    settle()
    assert robot.heard == []


def test_what_is_typed_before_there_is_a_screen_is_obeyed_by_nobody(robot):
    """A slow machine takes seconds to draw it; an impatient hand, or the next line for the shell, moves no arm."""
    watcher = attach(robot)
    try:
        watcher.write("s")
        watcher.wait_for("RUNNING", 30)
        settle()
        assert robot.heard == []
        watcher.write("h")
        robot.wait_for("home")
    finally:
        watcher.close()


def test_the_emergency_key_held_down_is_one_press(robot, watch):
    watcher = watch(robot)
    watcher.write("e")
    robot.wait_for("emergency_stop")
    time.sleep(0.5)
    for _ in range(20):
        watcher.write("e")
        time.sleep(0.033)
    settle()
    assert robot.actions() == ["emergency_stop"]


@pytest.mark.parametrize("key", ["\x1b[24~", "\x05"])
def test_emergency_keys_work_while_typing(robot, watch, key):
    watcher = watch(robot)
    watcher.write("tsee" + key)
    robot.wait_for("emergency_stop")
    watcher.wait_for("task ❯ see")
    assert robot.actions() == ["emergency_stop"]


def test_a_latched_stop_is_cleared_by_its_own_key_alone_which_the_screen_names(robot, watch):
    watcher = watch(robot)
    watcher.write("e")
    watcher.wait_for("EMERGENCY ")
    watcher.wait_for("ctrl+r")
    for letter in "cCyYxrdk":
        watcher.write(letter)
        time.sleep(0.1)
    settle(0.2)
    assert robot.actions() == ["emergency_stop"]
    watcher.write("\x12")
    robot.wait_for("clear_stop")
    watcher.wait_for("PAUSED")


def test_space_pauses_a_robot_that_holds(robot, watch):
    robot.mode, robot.reason = "holding", "no chunk for 3 s"
    watcher = watch(robot, first="HOLDING")
    watcher.wait_for("no chunk for 3 s")
    watcher.write(" ")
    robot.wait_for("pause")
    watcher.wait_for("PAUSED")
    time.sleep(0.8)
    watcher.write(" ")
    robot.wait_for("resume")


def test_the_terminal_s_own_size_counts_not_what_a_shell_left_in_the_environment(robot, watch):
    watcher = watch(robot, (120, 40), COLUMNS="80", LINES="24")
    watcher.wait_until(
        lambda: len(watcher.screen.rstrip().split("\n")) == 40, "keys on the last of forty lines"
    )
    assert max(map(len, (line.rstrip() for line in watcher.screen.split("\n")))) > 100


def test_bytes_that_are_no_text_do_no_harm(robot, watch):
    watcher = watch(robot)
    watcher.write(b"\xff\xfe\xc3\x28")
    settle(1.0)
    watcher.write(" ")
    robot.wait_for("pause")
    assert watcher.process.poll() is None


def test_a_screen_on_which_little_changes_writes_little(robot, watch):
    watcher = watch(robot)
    settle(1.5)
    before = len(watcher.raw)
    time.sleep(2.0)
    # Six to eleven thousand here, for the last ten seconds of the joints still fill up; the first screen is some 20,000.
    assert len(watcher.raw) - before < 30_000, "bytes in two seconds"


# -- every end ----------------------------------------------------------------------------------------------------


def test_q_leaves_a_sane_terminal_and_a_robot_that_goes_on(robot, watch):
    watcher = watch(robot)
    watcher.write("q")
    assert watcher.wait_for_end() == 0
    watcher.assert_sane()
    assert "so101 goes on" in watcher.after_the_screen
    assert robot.heard == []


def test_ctrl_c_in_an_attached_monitor_leaves_it_and_says_that_the_robot_goes_on(robot, watch):
    watcher = watch(robot)
    watcher.write("\x03")
    assert watcher.wait_for_end() == 130
    watcher.assert_sane()
    assert "goes on" in watcher.after_the_screen
    assert "ctrl+q" not in watcher.raw.decode(errors="replace").lower()
    assert robot.heard == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_a_sane_terminal_and_the_reason(robot, watch, number):
    watcher = watch(robot)
    watcher.write("tsee")
    watcher.wait_for("task ❯ see")
    watcher.process.send_signal(number)
    assert watcher.wait_for_end() == 130
    watcher.assert_sane()
    assert "edgevla monitor: " in watcher.after_the_screen


def test_a_failure_leaves_a_sane_terminal_and_the_reason(robot, watch):
    break_it = (
        "import edgevla.monitor.panels.servos as p\n"
        "calls = []\n"
        "def broken(*a, f=p.servos):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 3: raise ZeroDivisionError('by a mistake')\n"
        "    return f(*a)\n"
        "p.servos = broken\n"
        "import sys; from edgevla.cli import main; sys.exit(main())\n"
    )
    watcher = Watcher(["-c", break_it, "monitor", f"--run-dir={robot.folder}"])
    try:
        assert watcher.wait_for_end(30) == 1
        watcher.assert_sane()
        assert "ZeroDivisionError" in watcher.after_the_screen
        assert "by a mistake" in watcher.after_the_screen
        assert "goes on" in watcher.after_the_screen
    finally:
        watcher.close()


def test_a_window_that_is_closed_ends_the_monitor(robot, watch):
    watcher = watch(robot)
    watcher.hang_up()
    watcher.wait_for_end(10)


def test_a_window_that_is_closed_ends_a_monitor_that_ignores_the_hang_up(robot):
    deaf = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); from edgevla.cli import main; "
        "sys.exit(main())"
    )
    watcher = Watcher(["-c", deaf, "monitor", f"--run-dir={robot.folder}"])
    try:
        watcher.wait_for("RUNNING", 30)
        watcher.hang_up()
        watcher.wait_for_end(10)
    finally:
        watcher.close()


# -- started by a deployment ----------------------------------------------------------------------------------------


def test_ctrl_c_in_a_deployments_own_monitor_reaches_the_deployment_step_by_step(robot, watch_as_deploy):
    watcher = watch_as_deploy(robot)
    for n, words in enumerate(("moves to rest", "the arm is frozen", "let go"), 1):
        watcher.write("\x03")
        watcher.wait_for(words)
        watcher.wait_until(lambda n=n: presses(robot) == n, f"press {n} did not arrive")
        time.sleep(0.9)
    assert robot.heard == []


def test_ctrl_c_held_down_is_one_press(robot, watch_as_deploy):
    watcher = watch_as_deploy(robot)
    for _ in range(15):
        watcher.write("\x03")
        time.sleep(0.033)
    settle()
    assert presses(robot) == 1


def test_a_deployment_that_dies_gives_the_terminal_back(robot, watch_as_deploy):
    watcher = watch_as_deploy(robot)
    [supervisor] = psutil.Process(watcher.process.pid).children()
    [monitor] = supervisor.children()
    supervisor.kill()
    monitor.wait(10)
    watcher.assert_sane()
    assert "the deployment's supervisor has died" in watcher.after_the_screen


# -- no terminal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["stdin", "stdout", "both"])
def test_without_a_terminal_it_is_refused_in_a_sentence(robot, what):
    master, slave = os.openpty()
    ends = {"stdin": slave, "stdout": slave, "stderr": subprocess.PIPE}
    for name in ("stdin", "stdout") if what == "both" else (what,):
        ends[name] = subprocess.PIPE if name == "stdout" else subprocess.DEVNULL
    done = subprocess.Popen([sys.executable, "-m", "edgevla", "monitor", f"--run-dir={robot.folder}"], **ends)
    output, errors = done.communicate(timeout=20)
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert not output
    assert errors.decode().count("\n") == 1
    assert "needs a terminal" in errors.decode()
    assert "\x1b" not in errors.decode()


def test_a_terminal_that_cannot_be_drawn_on_is_refused(robot):
    watcher = Watcher(["-m", "edgevla", "monitor", f"--run-dir={robot.folder}"], TERM="dumb")
    try:
        assert watcher.wait_for_end(20) == 2
        watcher.wait_for("needs a terminal")
        assert b"\x1b" not in watcher.raw
    finally:
        watcher.close()


def test_a_stopped_and_continued_monitor_obeys_keys_again(robot, watch):
    watcher = watch(robot)
    watcher.write("h")
    robot.wait_for("home")
    watcher.process.send_signal(signal.SIGTSTP)
    psutil_process = psutil.Process(watcher.process.pid)
    watcher.wait_until(lambda: psutil_process.status() == psutil.STATUS_STOPPED, "it does not stop")
    assert termios.tcgetattr(watcher.slave) == watcher.was, "the terminal is the shell's while it is stopped"
    watcher.process.send_signal(signal.SIGCONT)
    time.sleep(1.0)
    watcher.write(" ")
    robot.wait_for("pause")


def test_whoever_stops_it_without_a_word_gets_the_terminal_back_all_the_same(robot, watch):
    watcher = watch(robot)
    process = psutil.Process(watcher.process.pid)
    for _ in range(2):
        n_threads = process.num_threads()
        watcher.process.send_signal(signal.SIGSTOP)
        watcher.wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "it does not stop")
        n_begun, n_drawn = (watcher.raw.count(text) for text in (b"\x1b[?1049h", b"shoulder_pan"))
        watcher.process.send_signal(signal.SIGCONT)
        watcher.wait_until(lambda n=n_begun: watcher.raw.count(b"\x1b[?1049h") > n, "it does not go on")
        watcher.wait_until(lambda n=n_drawn: watcher.raw.count(b"shoulder_pan") > n, "it does not draw")
        watcher.wait_until(lambda n=n_threads: process.num_threads() <= n, "somebody reads keys beside it")
    watcher.write("h")
    robot.wait_for("home")
    watcher.write("q")
    assert watcher.wait_for_end() == 0
    watcher.assert_sane()
    assert robot.actions() == ["home"]


def test_a_deployment_that_runs_is_not_asked_for_without_a_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", "monitor"], capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert b"needs a terminal" in done.stderr


@pytest.mark.realtime
def test_a_terminal_that_takes_nothing_does_not_hold_back_an_emergency_stop(robot, watch):
    """A line has stalled, an outer terminal was stopped: nothing can be drawn, and keys still come."""
    watcher = watch(robot)
    termios.tcflow(watcher.slave, termios.TCOOFF)
    for _ in range(40):  # more than may wait in any queue
        watcher.write("?")
        time.sleep(0.1)
    watcher.write("e")
    robot.wait_for("emergency_stop", 5)
    termios.tcflow(watcher.slave, termios.TCOON)
    watcher.wait_for("EMERGENCY")


def test_leaving_a_terminal_that_takes_nothing_ends_the_deployment_all_the_same(robot, watch_as_deploy):
    watcher = watch_as_deploy(robot)
    termios.tcflow(watcher.slave, termios.TCOOFF)
    watcher.write("q")
    (monitor,) = [
        p for p in psutil.Process(watcher.process.pid).children(recursive=True) if "monitor" in p.cmdline()
    ]
    psutil.wait_procs([monitor], timeout=30)
    assert not monitor.is_running() or monitor.status() == psutil.STATUS_ZOMBIE
    termios.tcflow(watcher.slave, termios.TCOON)
