"""Whatever happens to the supervisor of a real deployment, the arm goes to rest, and a summary says what it was."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
import zmq
from bus_trace import judge

from edgevla.session import endpoint, find_deployment, read_deployment
from edgevla.wire import CommandClient

pytestmark = pytest.mark.realtime

TRAINED_SPEED = [81.0] * 5 + [45.0]
SERVO_HZ = 120.0
RUNNING = "robot        running"
ON, OFF = ({str(i): torque for i in range(1, 7)} for torque in (1, 0))


def torque(run):
    """Servo id -> what torque_enable was told last."""
    last = {}
    for entry in run.trace():
        if entry["dir"] == "tx" and entry.get("register") == "torque_enable":
            last.update(entry["values"])
    return last


def assert_ended(run, ending):
    verdict = judge(run.trace(), run.profile, TRAINED_SPEED, SERVO_HZ)
    assert verdict.violations == [], run.output
    assert list(verdict.endings.elements()) == [ending], run.output
    assert run.left_over() == []


def n_goals(run):
    return sum(entry.get("register") == "goal_position" for entry in run.trace() if entry["dir"] == "tx")


@contextlib.contextmanager
def commands(own_runtime):
    """Commands the robot of the only deployment."""
    folder, ctx = find_deployment(), zmq.Context()
    client = CommandClient(
        ctx, endpoint(folder, "robot", "commands"), read_deployment(folder).session_bytes, "test"
    )
    try:
        yield client
    finally:
        client.close()
        ctx.destroy(linger=0)


# -- what fails in the supervisor ------------------------------------------------------------------------------


def test_a_full_disk_ends_the_log_and_not_the_run(deploy):
    run = deploy()
    run.wait_for(RUNNING)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    run.wait_for("the log ends here")
    before = n_goals(run)
    time.sleep(1.5)
    assert n_goals(run) > before + 60, "the arm goes on moving"
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 130
    assert_ended(run, "rest")
    assert run.output.count("the log ends here") == 1
    assert "File too large; the run goes on without it" in run.output
    assert "ticks under the policy" in run.output, "the summary"


BUGS = {
    "a bug while watching": (
        "from edgevla.launch.runlog import RunLog as Log\nn, take = [0], Log.take\n"
        "def broken(self, m):\n    n[0] += 1\n    if n[0] == 200: raise RuntimeError('a bug')\n    take(self, m)\n"
        "Log.take = broken",
        "RuntimeError: a bug", "rest", 1,
    ),
    "a disk that fails wherever": (
        "from edgevla.launch.supervisor import Supervisor as S\nn = [0]\n"
        "def broken(self, child):\n    n[0] += 1\n    if n[0] == 40: raise OSError(5, 'Input/output error')\n"
        "S._revive = broken",
        "Input/output error", "rest", 1,
    ),
    "a keyboard interrupt that nobody caught": (
        "from edgevla.launch.supervisor import Supervisor as S\nn = [0]\n"
        "def broken(self, child):\n    n[0] += 1\n    if n[0] == 40: raise KeyboardInterrupt\n"
        "S._revive = broken",
        "ticks under the policy", "rest", 130,
    ),
    "every message from now on": (
        "from edgevla.launch.runlog import RunLog as Log\nn, take = [0], Log.take\n"
        "def broken(self, m):\n    n[0] += 1\n    if n[0] >= 200: raise RuntimeError('a bug')\n    take(self, m)\n"
        "Log.take = broken",
        "RuntimeError: a bug", "rest", 1,
    ),
    "no command can be sent any more": (
        "from edgevla.wire import CommandClient as C\nrequest = C.request\n"
        "def broken(self, action, *more, **named):\n"
        "    if action == 'stop': raise MemoryError('none left')\n    return request(self, action, *more, **named)\n"
        "C.request = broken",
        "MemoryError: none left", "park", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_whatever_is_raised_the_arm_comes_to_its_end_and_a_summary_says_why(deploy, name):
    prelude, words, ending, code = BUGS[name]
    run = deploy("--duration=6", prelude=prelude)
    assert run.wait_for_end(60) == code, run.output
    assert_ended(run, ending)
    assert words in run.output
    assert "ticks under the policy" in run.output, "the summary"


# -- signals ---------------------------------------------------------------------------------------------------


def test_sigterm_to_everybody_at_once_brings_the_arm_to_rest(deploy):
    """`systemctl stop`, a shutdown: the whole group is asked in the same moment."""
    run = deploy()
    run.wait_for(RUNNING)
    time.sleep(1.0)
    everybody = list(run._mine())
    assert len(everybody) >= 6
    for process in everybody:
        os.kill(process.pid, signal.SIGTERM)
    assert run.wait_for_end() == 0, run.output
    assert_ended(run, "rest")
    assert "asked to terminate: the arm moves to rest and is released" in run.output
    assert "is held" not in run.output


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGQUIT, signal.SIGRTMIN])
def test_no_signal_to_everybody_at_once_leaves_the_arm_with_torque_and_nobody(deploy, number):
    """`systemctl kill -s`, a battery's service, somebody who tries: what ends most programs ends this one in order."""
    run = deploy()
    run.wait_for(RUNNING)
    for process in list(run._mine()):
        os.kill(process.pid, number)
    assert run.wait_for_end() == (130 if number == signal.SIGQUIT else 0), run.output
    assert_ended(run, "rest")
    assert "is held" not in run.output


def test_sigterm_while_it_starts_ends_it_without_a_failure(deploy):
    run = deploy()
    run.find_until("guardian")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 0
    assert "stopped before the arm was switched on" in run.output
    assert run.left_over() == []


def test_a_supervisor_that_slept_goes_on(deploy):
    """SIGSTOP cannot be refused; the arm goes on meanwhile, and afterwards everything does."""
    run = deploy()
    run.wait_for(RUNNING)
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    run.process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    assert run.wait_for_end() == 130
    assert_ended(run, "rest")


def test_ctrl_z_is_refused_with_a_sentence_and_everything_goes_on(deploy):
    run = deploy(in_terminal=True)
    run.wait_for(RUNNING)
    run.terminal.type("\x1a")
    run.wait_for("Ctrl-Z is refused: the arm would go on moving with nobody to watch it")
    for number in (signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN, signal.SIGCONT):
        run.process.send_signal(number)
    before = n_goals(run)
    time.sleep(1.0)
    assert n_goals(run) > before + 60
    assert run.process.status() != psutil.STATUS_STOPPED
    assert run.output.count("Ctrl-Z is refused") == 1, "once for a stream of them"
    run.terminal.type("\x03")
    run.wait_for("stopping: the arm moves to rest")
    run.wait_for_end()
    run.terminal.type("echo code=$?\n")
    run.terminal.wait_for("code=130")
    assert_ended(run, "rest")


def test_ctrl_c_held_down_freezes_and_never_lets_go(deploy):
    run = deploy(in_terminal=True)
    run.wait_for(RUNNING)
    time.sleep(0.5)
    run.terminal.type("\x03")
    time.sleep(0.4)
    until = time.monotonic() + 3.0
    while time.monotonic() < until:  # as a keyboard repeats
        run.terminal.type("\x03")
        time.sleep(0.033)
    run.wait_for("emergency stop: the arm is frozen")
    time.sleep(1.2)
    assert torque(run) == ON, run.output
    run.terminal.type("\x03")
    run.wait_for("emergency stop: the arm is released")
    run.wait_for_end()
    run.terminal.type("echo code=$?\n")
    run.terminal.wait_for("code=1")
    assert torque(run) == OFF
    assert "EMERGENCY STOP at" in run.output
    assert "the arm was released" in run.output


def test_an_emergency_stop_is_told_and_fails_the_run_though_it_was_cleared(deploy, own_runtime):
    run = deploy("--duration=6")
    run.wait_for(RUNNING)
    with commands(own_runtime) as robot:
        for action in ("emergency_stop", "clear_stop", "resume"):
            answer = robot.request(action, timeout_s=5)
            assert answer.is_accepted, answer.reason
            time.sleep(0.3)
    assert run.wait_for_end() == 1, run.output
    assert_ended(run, "rest")
    assert "the arm was frozen, and the stop was cleared" in run.output


# -- without a terminal ----------------------------------------------------------------------------------------


def test_without_a_terminal_lines_come_as_they_happen_and_plain(deploy):
    run = deploy("--duration=3")
    run.wait_for(RUNNING)
    assert run.is_running, "said while it runs, not when it has ended"
    assert run.wait_for_end() == 0
    assert "\x1b" not in run.output
    assert "\r" not in run.output
    assert f"log: {(run.log_path / 'run.flight').resolve()}" in run.output


def test_a_terminal_that_takes_nothing_does_not_keep_the_arm_from_its_rest(deploy):
    """Ctrl-S is typed in every shell by mistake: it stops what is shown, and must not stop who watches the arm."""
    run = deploy(in_terminal=True)
    run.wait_for(RUNNING)
    run.terminal.type("\x13")
    os.kill(run.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while torque(run) != OFF:
        assert time.monotonic() < deadline, "nobody brought the arm to rest"
        time.sleep(0.1)
    run.terminal.type("\x11")
    run.wait_for("asked to terminate: the arm moves to rest")
    run.wait_for_end()
    assert_ended(run, "rest")


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--unattended"], 75)])
def test_a_port_that_is_not_there_yet_may_be_tried_again_by_a_unit(bundle, own_runtime, options, code):
    words = ["deploy", str(bundle), "--robot=so101", "--port=/dev/ttyNOTHERE", *options]
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert "/dev/ttyNOTHERE does not exist" in done.stdout + done.stderr
    assert list(own_runtime.iterdir()) == [], "nothing is left behind"
