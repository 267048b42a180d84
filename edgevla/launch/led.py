"""The robot and its leader arm as `edgevla record --leader` starts them: `edgevla teleop`, or with `--policy`
`edgevla deploy --leader`, as a process of its own.

It has a session of its own, so that Ctrl-C reaches the recording first, which then brings the arm to rest; and it hears
when the recording was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import zmq

from edgevla.config_file import TAKEN
from edgevla.errors import BusError, WireError
from edgevla.messages import State
from edgevla.serve.transport import is_served
from edgevla.session import deployments, read_deployment
from edgevla.wire import Inbox, endpoint

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
READY_S, POLICY_READY_S = 120.0, 700.0
"""A policy may take long to load."""
REST_S = 90.0
"""Coming to rest and being released takes some seconds; nobody waits for ever."""
POLL_S = 0.05


class Led:
    """Started by `start`, which returns when the follower follows; `end` brings it to rest."""

    def __init__(self, args: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._verb, self._words = command(args)
        self._own_error = f"edgevla {self._verb}: "
        """Before the sentence with which it ends; it becomes the recording's own."""
        self._ready_s = READY_S if self._verb == "teleop" else POLICY_READY_S
        self._say = say
        self._lines: deque[str] = deque()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._is_running = False
        self._error = ""
        self.folder: Path | None = None

    def start(self) -> Path:
        """Its run directory.

        Raises:
            BusError: it ended before the arm moved, with its own sentence; or is not ready in time.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgevla", self._verb, *self._words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_the_recording,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        until = time.monotonic() + self._ready_s
        self.folder = self._until_it(self._find, until)
        with zmq.Context() as ctx:
            session = read_deployment(self.folder).session_bytes
            inbox = Inbox(ctx, {State: (endpoint(self.folder, "robot"), 16)}, session)
            try:
                self._until_it(lambda: _is_led(inbox), until)
            finally:
                inbox.stop()
        self._is_running = True
        return self.folder

    def _until_it(self, ask: Callable[[], Path | None], until: float) -> Path:
        assert self._process is not None
        while True:
            self.tell()
            if (found := ask()) is not None:
                return found
            if self._process.poll() is not None:
                raise BusError(self._last_words())
            if time.monotonic() > until:
                raise BusError(f"robot and leader were not ready within {self._ready_s:g} s")
            time.sleep(POLL_S)

    def _find(self) -> Path | None:
        assert self._process is not None
        for folder in deployments():
            with contextlib.suppress(WireError):
                if read_deployment(folder).supervisor_pid == self._process.pid:
                    return folder
        return None

    def tell(self) -> None:
        """Shows what it has said since; while it runs, only what somebody must know."""
        while self._lines:
            line = self._lines.popleft()
            is_own = line.startswith(self._own_error)
            if is_own and not line.startswith(f"{self._own_error}{TAKEN}"):
                self._error = line.removeprefix(self._own_error)
            elif not self._is_running or "! " in line:
                self._say(line)

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask_to_end(self, again: bool = False) -> None:
        """The arm to rest; again: frozen, as by a second Ctrl-C. Does not wait: `end` does."""
        if self.is_alive:
            assert self._process is not None
            self._process.send_signal(signal.SIGINT if again else signal.SIGTERM)

    def end(self) -> None:
        """The arm to rest and released. Ctrl-C meanwhile is passed on, and freezes the arm."""
        process = self._process
        if process is None:
            return
        was_running, self._is_running = self._is_running, False
        self.ask_to_end()
        until = time.monotonic() + REST_S
        while process.poll() is None:
            try:
                self.tell()
                time.sleep(POLL_S)
                if time.monotonic() > until:
                    process.kill()
                    process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
        self._join()
        self.tell()
        if process.returncode and was_running:
            why = f": {self._error}" if self._error else ", see above"
            self._say(f"! robot and leader ended with exit code {process.returncode}{why}")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                self._lines.append(text)
        process.stdout.close()

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(timeout=2)

    def _last_words(self) -> str:
        self._join()
        self.tell()
        return self._error or "robot and leader ended before they were ready; see above"


def command(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The verb that starts the arms, and its options, for what was said to `record`."""
    words = [f"--leader={args.leader}", f"--robot={args.robot}", f"--recorded-into={args.output}"]
    words += [f"--leader-port={text}" for text in args.leader_port]
    words += [f"--port={text}" for text in args.port]
    words += [f"--camera={text}" for text in args.camera]
    for name in ("leader_calibration", "calibration", "fps", "log", "config"):
        if (value := getattr(args, name)) is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    words += ["--sim"] if args.sim else []
    if args.policy is None:
        return "teleop", words
    words += [f"--task={args.task}"] if args.task else []
    return "deploy", [
        *words,
        *([f"--policy={args.policy}"] if is_served(args.policy) else ["--", args.policy]),
    ]


def _is_led(inbox: Inbox) -> Path | None:
    newest = inbox.newest(State)
    return Path() if newest is not None and newest.body.mode == "running" else None


def _end_with_the_recording() -> None:
    """In the new process: a recording that was killed leaves no arm that moves."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
