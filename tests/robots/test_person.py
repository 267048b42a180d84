"""A person at a real pseudo-terminal types at the tools: too early, too much, nothing, and the keys that end things."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from edgevla.robots.handshake import energised, held_calibration
from edgevla.robots.ports import open_ports
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import make_buses

PATIENCE_S = 60
CTRL_C, CTRL_D, CTRL_Z = b"\x03", b"\x04", b"\x1a"


class Typist:
    """A tool in a terminal window of its own; `shown` is all that stood in it."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, env)
        self.shown = ""
        self.status: int | None = None

    def read(self, seconds: float = 0.2) -> bool:
        """Whether anything came."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        with contextlib.suppress(OSError):
            self.shown += os.read(self.master, 4096).decode(errors="replace").replace("\r\n", "\n")
        return True

    def until(self, words: str, n: int = 1) -> None:
        """Waits until the words stand there for the n-th time."""
        end = time.monotonic() + PATIENCE_S
        while self.shown.count(words) < n:
            assert time.monotonic() < end, f"{words!r} never came:\n{self.shown}"
            self.read()

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def code(self) -> int:
        """Waits for the end; the exit code, negative for a signal."""
        end = time.monotonic() + PATIENCE_S
        while self.status is None:
            assert time.monotonic() < end, f"it does not end:\n{self.shown}"
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        while self.read(0.05) and self.shown:
            before = self.shown
            self.read(0.05)
            if self.shown == before:
                break
        return os.waitstatus_to_exitcode(self.status)

    def close(self) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            os.close(self.master)


@pytest.fixture
def window(tmp_path):
    """`window("calibrate", ...)` -> Typist; `window()`: with a shell."""
    opened: list[Typist] = []
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_LEROBOT_CALIBRATION": str(tmp_path / "calibration"), "TERM": "xterm",
    }  # fmt: skip

    def start(*words):
        command = (sys.executable, "-m", "edgevla", *words) if words else ("/bin/bash", "--norc", "-i")
        opened.append(Typist(*command, env=env))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


class Arm:
    """An emulated arm, and what its servos hold while no tool is at it."""

    def __init__(self, port, robot="so101"):
        self.port, self.profile = port, load_profile(robot)

    @contextlib.contextmanager
    def lines(self):
        ports = open_ports(self.profile, [self.port])
        try:
            yield make_buses(self.profile, ports)
        finally:
            for port in ports.values():
                port.close()

    def energise(self):
        with self.lines() as lines:
            for servo_id in lines["arm"].ids:
                lines["arm"].write_raw(servo_id, "torque_enable", 1)

    @property
    def torque(self):
        with self.lines() as lines:
            return energised(lines, self.profile)

    @property
    def held(self):
        with self.lines() as lines:
            return held_calibration(lines, self.profile)


@pytest.fixture
def arm(start_emulator):
    return Arm(start_emulator("so101", "--untimed").ports["arm"])


def calibrate(window, arm, *words):
    return window("calibrate", "--robot", "so101", "--port", arm.port, "--id", "blue", *words)


def is_sane(tool: Typist) -> bool:
    return "Traceback" not in tool.shown


def test_lines_pasted_at_one_question_answer_no_other(window, arm):
    arm.energise()
    tool = calibrate(window, arm)
    tool.until("so101 has torque (all its servos)")
    tool.type(b"\n\n\n\n\n")
    tool.until("1. Move every joint to the middle")
    for _ in range(10):
        tool.read(0.1)
    assert "2. Move every joint" not in tool.shown, "a pasted line was taken for a yes"
    tool.type(CTRL_C)
    assert tool.code() == 130
    assert is_sane(tool)


def test_what_is_typed_before_the_question_is_no_answer(window, arm):
    arm.energise()
    tool = calibrate(window, arm)
    tool.type(b"\n\n")
    tool.until("so101 has torque (all its servos)")
    for _ in range(10):
        tool.read(0.1)
    assert "1. Move every joint" not in tool.shown
    tool.type(CTRL_C)
    assert tool.code() == 130
    assert len(arm.torque) == 6, "nobody held it"


def test_other_words_are_no_yes(window, arm):
    arm.energise()
    tool = calibrate(window, arm)
    tool.until("so101 has torque")
    for text in (b"no\n", b"q\n", b"\xff\xfe\n", b"y\n"):
        n = tool.shown.count("That was no answer")
        tool.type(text)
        tool.until("That was no answer (just Enter)", n + 1)
    assert len(tool.shown.split("1. Move every")) == 1
    tool.type(CTRL_D)
    assert tool.code() == 2
    assert "the input has ended" in tool.shown
    assert len(arm.torque) == 6


@pytest.mark.parametrize("step", ["has torque", "1. Move", "2. Move"])
def test_ctrl_c_at_any_question_leaves_the_registers_as_they_were(window, arm, step):
    before = arm.held
    arm.energise()
    tool = calibrate(window, arm)
    for question in ("has torque", "1. Move", "2. Move"):
        tool.until(question)
        if question == step:
            break
        time.sleep(0.4)  # as long as it takes to read it
        tool.type(b"\n")
    tool.type(CTRL_C)
    assert tool.code() == 130
    assert is_sane(tool)
    assert ("the servos hold again what they held before" in tool.shown) == (step != "has torque")
    assert arm.held == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_or_a_kill_puts_the_registers_back(window, arm, number):
    before = arm.held
    tool = calibrate(window, arm)
    tool.until("1. Move")
    time.sleep(0.4)
    tool.type(b"\n")
    tool.until("2. Move")
    os.kill(tool.pid, number)
    assert tool.code() == 128 + number
    assert is_sane(tool)
    assert "the servos hold again what they held before" in tool.shown
    assert arm.held == before


def test_a_window_that_is_closed_leaves_the_registers_as_they_were(window, arm):
    before = arm.held
    tool = calibrate(window, arm)
    tool.until("1. Move")
    os.close(tool.master)
    end = time.monotonic() + PATIENCE_S
    while not os.waitpid(tool.pid, os.WNOHANG)[0]:
        assert time.monotonic() < end
        time.sleep(0.05)
    tool.status = 0
    assert arm.held == before


def test_ctrl_z_stops_the_tool_and_fg_goes_on(window, arm):
    before = arm.held
    shell = window()
    shell.type(f"{sys.executable} -m edgevla calibrate --robot so101 --port {arm.port} --id blue\n".encode())
    shell.until("1. Move every joint to the middle")
    time.sleep(0.3)
    shell.type(CTRL_Z)
    shell.until("Stopped")
    shell.type(b"fg\n")
    shell.until("-m edgevla calibrate", 3)
    time.sleep(0.5)
    shell.type(b"\n")
    shell.until(
        "shoulder_pan"
    )  # what was typed ahead is dropped until then, and to the kernel ctrl+c is typed, too
    shell.type(CTRL_C)
    shell.until("edgevla calibrate: interrupted")
    shell.type(b"exit 7\n")
    assert shell.code() == 7
    assert is_sane(shell)
    assert arm.held == before


def test_ctrl_c_while_the_arm_is_let_down_does_not_drop_it(window, arm):
    arm.energise()
    tool = calibrate(window, arm)
    tool.until("so101 has torque")
    time.sleep(0.4)
    began = time.monotonic()
    tool.type(b"\n")
    time.sleep(0.5)
    tool.type(CTRL_C)
    assert tool.code() == 130
    assert time.monotonic() - began > 3, "it was let down to the end"
    assert is_sane(tool)
    assert arm.torque == []


def test_setup_motors_takes_no_other_word_for_enter_and_ends_with_the_input(window, arm):
    tool = window("setup-motors", "--robot", "so101", "--port", arm.port, "--motor", "gripper")
    tool.until("Connect ONLY the servo of gripper")
    time.sleep(0.3)
    tool.type(b"hello\n")
    tool.until("That was no answer (just Enter, 's')")
    tool.type(b"\n")
    tool.until("6 servos answer")
    tool.until("Connect ONLY", 2)
    tool.type(CTRL_D)
    assert tool.code() == 2
    assert is_sane(tool)


@pytest.mark.parametrize("verb", ["calibrate", "setup-motors"])
def test_a_closed_pipe_is_a_sentence_and_no_yes(arm, verb, tmp_path):
    before = arm.held
    env = {**os.environ, "HF_LEROBOT_CALIBRATION": str(tmp_path)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", verb, "--robot", "so101", "--port", arm.port],
        input=b"\n" * 9, stdout=writer, stderr=subprocess.PIPE, env=env, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 2
    text = done.stderr.decode()
    assert "the output is closed" in text
    assert "Traceback" not in text
    assert "Exception ignored" not in text
    assert arm.held == before


@pytest.mark.parametrize("verb", ["calibrate", "setup-motors"])
def test_a_process_without_any_input_is_told_that_nobody_answers(arm, verb):
    command = f"exec 0<&-; exec {sys.executable} -m edgevla {verb} --robot so101 --port {arm.port}"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert b"the input has ended" in done.stderr
    assert b"Traceback" not in done.stderr
