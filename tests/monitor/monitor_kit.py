"""A scripted deployment with real sockets, and real monitors that look at it from pseudo-terminals.

`Robot` is a thread that says what its `facts` say and notes what it is asked. `Watcher` is `edgevla monitor` in a
process of its own on a terminal of its own, whose screen is read as a person would (pyte).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import secrets
import select
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyte
import zmq

from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.messages import Chunk, Heartbeat, MessageBody, Servo, ServoHealth, State, Thumbnail, Timing
from edgevla.session import (
    Deployment,
    GuardianState,
    GuardianStatus,
    endpoint,
    new_session,
    write_deployment,
    write_guardian_status,
)
from edgevla.wire import CommandServer, Publisher

SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CHANGES = {
    "pause": "paused",
    "resume": "running",
    "home": "homing",
    "emergency_stop": "emergency",
    "clear_stop": "paused",
}


def jpeg(bgr: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(cv2.imencode(".jpg", np.full((120, 160, 3), bgr, np.uint8))[1]).reshape(-1)


def about(joints: Sequence[str] = SO101) -> AboutRobot:
    described = [AboutJoint(f"{name}.pos", "deg", -100.0, 100.0, 90.0, False, None, None) for name in joints]
    return AboutRobot("robot", "so101", tuple(described), (), 100.0, (), ())


def state(n: int = 6, **changes: Any) -> State:
    made = {
        "tick": 90,
        "deadline_ns": 0,
        "late_ns": 2_000_000,
        "t0_ns": 0,
        "step_ns": 33_333_333,
        "mode": "running",
        "position": np.full(n, 12.5, np.float32),
        "position_age_us": np.zeros(n, np.uint32),
        "wanted": None,
        "goal": np.full(n, 14.5, np.float32),
        "limited_by": np.zeros(n, np.uint16),
        "chunk_seq": 4,
        "action_index": 3.0,
        "n_actions_left": 12,
        "reason": "",
    }
    return State(**(made | changes))


def servo(name: str, id: int, **changes: Any) -> Servo:
    healthy = Servo(id, "main", name, 35.0, 7.4, 10.0, None, 0, True, 0, 0, 0)
    return replace(healthy, **changes)


def health(joints: Sequence[str] = SO101, **changes: Any) -> ServoHealth:
    return ServoHealth(tuple(servo(name, i + 1, **changes) for i, name in enumerate(joints)))


def chunk(task: str = "sort the bolts") -> Chunk:
    timing = Timing(assemble=0, prompt=0, encode=9_000_000, denoise=0, decode=1_000_000, wait=0, network=0)
    return Chunk(0, 0, 33_333_333, 30, "act", task, False, 1, 0, 21_000_000, 0, timing)


class Robot:
    """One robot node, its policy and cameras, in a run directory of its own.

    mode, reason, is_silent: what the next states say, whether they come. heard: (action, arguments) that were asked.
    refusal: why not; is_deaf_to: the action that gets no answer.
    """

    def __init__(
        self, cameras: Sequence[str] = (), hz: float = 50.0, supervisor_pid: int | None = None
    ) -> None:
        session = new_session()
        self.folder = Path(f"/tmp/edgevla-test-{os.getpid()}-{secrets.token_hex(3)}")
        self.folder.mkdir(mode=0o700)
        nodes = ["robot", "policy", *(f"camera/{name}" for name in cameras)]
        self.note = Deployment(session.hex(), supervisor_pid or os.getppid(), "so101", "bundles/reach", nodes)
        write_deployment(self.folder, self.note)
        self.mode, self.reason, self.is_silent = "running", "", False
        self.refusal, self.is_deaf_to = "", ""
        self.health = health()
        self.heard: list[tuple[str, Any]] = []
        self._ctx = zmq.Context()
        self._server = CommandServer(self._ctx, endpoint(self.folder, "robot", "commands"), session, "robot")
        self._server.about = about()
        self._publishers = {n: Publisher(self._ctx, endpoint(self.folder, n), session, n) for n in nodes}
        self._period_s = 1 / hz
        self._saying: list[MessageBody] = []
        self._n_beats = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_called(self, name: str) -> None:
        """What it says of itself."""
        self._server.about = replace(about(), robot=name)

    def say(self, body: MessageBody) -> None:
        """One message of the robot's, from its own thread."""
        self._saying.append(body)

    def actions(self) -> list[str]:
        return [action for action, _ in self.heard]

    def guardian(
        self, state: GuardianState, why: str = "", unconfirmed: Sequence[str] = (), pid: int = 0
    ) -> None:
        """The guardian's own word."""
        status = GuardianStatus(state, pid or os.getpid(), time.monotonic_ns(), why, list(unconfirmed))
        write_guardian_status(self.folder, status)

    def wait_for(self, action: str, timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        while action not in self.actions():
            assert time.monotonic() < until, f"never asked to {action}: {self.heard}"
            time.sleep(0.01)

    def _run(self) -> None:
        t0, tick = time.monotonic_ns(), 0
        while not self._ending.wait(self._period_s):
            self._answer()
            while self._saying:
                self._publishers["robot"].send(self._saying.pop(0))
            if self.is_silent:
                continue
            tick += 1
            timed = {"tick": tick, "t0_ns": t0, "deadline_ns": t0 + round(tick * self._period_s * 1e9)}
            self._publishers["robot"].send(state(**timed, mode=self.mode, reason=self.reason))
            if tick % 10 == 0:
                self._publishers["robot"].send(self.health)
                self._beat()

    def _answer(self) -> None:
        for request in self._server.poll():
            self.heard.append((request.action, request.arguments))
            if request.action == self.is_deaf_to:
                continue
            self.mode = self.mode if self.refusal else CHANGES.get(request.action, self.mode)
            request.answer(not self.refusal, self.refusal)

    def _beat(self) -> None:
        for node, publisher in self._publishers.items():
            self._n_beats += 1
            counters = {"frames": 6 * self._n_beats} if node.startswith("camera/") else {}
            publisher.send(Heartbeat(os.getpid(), "running", counters, 0))
            if node.startswith("camera/"):
                publisher.send(Thumbnail(node.removeprefix("camera/"), 120, 160), [jpeg((0, 0, 255))])

    def end(self) -> None:
        """The processes are gone, the run directory is not."""
        self._ending.set()
        self._thread.join()
        for publisher in self._publishers.values():
            publisher.close()
        self._server.close()
        self._ctx.destroy(linger=0)

    def close(self) -> None:
        if not self._ending.is_set():
            self.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class Watcher:
    """A monitor on a pseudo-terminal. screen: what a person sees; raw: all bytes that it wrote."""

    def __init__(self, command: Sequence[str], size: tuple[int, int] = (100, 30), **environment: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.was = termios.tcgetattr(slave)
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *command], stdin=slave, stdout=slave, stderr=slave, env=env,
            start_new_session=True,
        )  # fmt: skip
        self.slave = slave
        self.raw = b""
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_closed.is_set():
                if select.select([self.master], [], [], 0.02)[0]:
                    data = os.read(self.master, 65536)
                    with self._lock:
                        self.raw += data
                        self._stream.feed(self.heard(data))

    def heard(self, data: bytes) -> bytes:
        """What of it is text and cursor, for pyte; a terminal that can more takes the rest."""
        return data

    @property
    def screen(self) -> str:
        with self._lock:
            return "\n".join(self._screen.display)

    def style_of(self, words: str) -> Any:
        """pyte's character under the first letter of `words`."""
        for y, line in enumerate(self.screen.split("\n")):
            if words in line:
                with self._lock:
                    return self._screen.buffer[y][line.index(words)]
        raise AssertionError(f"{words!r} is not on the screen:\n{self.screen}")

    def write(self, data: str | bytes) -> None:
        os.write(self.master, data.encode() if isinstance(data, str) else data)

    @property
    def colours(self) -> set[str]:
        """Of all that is on the screen; `green` is what says that all is well."""
        with self._lock:
            cells = [
                cell for row in self._screen.buffer.values() for cell in row.values() if cell.data != " "
            ]
            return {colour for cell in cells for colour in (cell.fg, cell.bg)}

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
        until = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < until, f"{what}:\n{self.screen}"
            time.sleep(0.02)

    def wait_for(self, words: str, timeout_s: float = 15.0) -> None:
        self.wait_until(lambda: words in self.screen, f"never showed {words!r}", timeout_s)

    def wait_for_end(self, timeout_s: float = 40.0) -> int:
        return self.process.wait(timeout_s)

    @property
    def after_the_screen(self) -> str:
        """What was written after the alternate screen was left."""
        time.sleep(0.1)
        head, mark, tail = self.raw.decode(errors="replace").rpartition("\x1b[?1049l")
        return tail if mark else head

    def assert_sane(self) -> None:
        """The terminal is as it was: modes of the line, screen, cursor, mouse, paste."""
        time.sleep(0.1)
        text = self.raw.decode(errors="replace")
        assert termios.tcgetattr(self.slave) == self.was
        assert text.rfind("\x1b[?1049l") > text.rfind("\x1b[?1049h"), "still in the alternate screen"
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is hidden"
        assert text.rfind("\x1b[?2004l") > text.rfind("\x1b[?2004h"), "pastes are still bracketed"
        for mode in (1000, 1002, 1003, 1006):
            assert text.rfind(f"\x1b[?{mode}l") >= text.rfind(f"\x1b[?{mode}h"), "the mouse is captured"

    def hang_up(self) -> None:
        """The window is closed."""
        self._stop_reading()
        os.close(self.slave)
        os.close(self.master)

    def _stop_reading(self) -> None:
        self._is_closed.set()
        self._reader.join()

    def close(self) -> None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()
        if not self._is_closed.is_set():
            self.hang_up()


OWN_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # the tests themselves may run under nohup
    "os.execv(sys.executable, "
    "[sys.executable, *sys.argv[1:]])"
)
"""Makes the pseudo-terminal the one that controls the program, as a shell does."""


def attach(robot: Robot, size: tuple[int, int] = (100, 30), **environment: str) -> Watcher:
    """`edgevla monitor` on a running deployment, once it shows something."""
    return Watcher(["-m", "edgevla", "monitor", f"--run-dir={robot.folder}"], size, **environment)


SUPERVISOR = """
import signal, subprocess, sys, time
from pathlib import Path
folder, presses = Path(sys.argv[1]), []
signal.signal(signal.SIGINT, lambda *_: presses.append(1) or (folder / "presses").write_text(str(len(presses))))
from edgevla.session import read_deployment, write_deployment
from dataclasses import replace
import os
write_deployment(folder, replace(read_deployment(folder), supervisor_pid=os.getpid()))
process = subprocess.Popen([sys.executable, "-m", "edgevla", "monitor", f"--run-dir={folder}"])
while process.poll() is None:
    time.sleep(0.02)
print("monitor ended with", process.returncode)
"""


SHELL = "import subprocess, sys; subprocess.call([sys.executable, '-c', *sys.argv[1:]]); sys.stdin.read()"


def deploy_with_monitor(robot: Robot, size: tuple[int, int] = (100, 30)) -> Watcher:
    """A supervisor that has started the monitor in its own terminal; Ctrl-C is counted in the file `presses`."""
    return Watcher(["-c", SHELL, SUPERVISOR, str(robot.folder)], size)


def presses(robot: Robot) -> int:
    try:
        return int((robot.folder / "presses").read_text() or 0)
    except FileNotFoundError:
        return 0
