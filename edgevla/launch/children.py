"""Processes of a deployment: started by name, listened to, ended by their own id."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from edgevla.nodes.vitals import END, ONE_BLAS_THREAD, PARENT

SENTENCES_KEPT = 40
RESTART_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
HEALTHY_S = 20.0


class Child:
    """One process, `python -m module args`. What it prints on stderr is shown under its name.

    It has a session of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops in order.
    """

    def __init__(self, name: str, args: Sequence[str], say: Callable[[str, str], None]) -> None:
        self.name, self._args, self._say = name, list(args), say
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._began = 0.0
        self._restart_at = 0.0
        self._n_fast_deaths = 0
        self.sentences: collections.deque[str] = collections.deque(maxlen=SENTENCES_KEPT)
        self.n_starts = 0
        self.told_of_start = 0
        """The start whose death was told; a person hears of each death once."""

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=pass_fds,
            start_new_session=True,
            env={**ONE_BLAS_THREAD, **os.environ, PARENT: str(os.getpid())},
        )
        self._began = time.monotonic()
        self.n_starts += 1
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if text := line.rstrip():
                self.sentences.append(text)
                self._say(self.name, text)
        process.stderr.close()

    @property
    def pid(self) -> int:
        """Of the process; -1 before it was started."""
        return self._process.pid if self._process else -1

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._process.poll() if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def last_sentence(self) -> str:
        """The last thing it said, for the error that its end becomes."""
        if self._reader is not None:
            self._reader.join(timeout=1)
        return self.sentences[-1] if self.sentences else f"{self.name} ended with {how(self.exit_code)}"

    def is_due(self) -> bool:
        """Whether a dead child may be started again now; waits longer after every early death."""
        now = time.monotonic()
        if self._restart_at == 0.0:
            is_early = now - self._began < HEALTHY_S
            self._n_fast_deaths = self._n_fast_deaths + 1 if is_early else 0
            self._restart_at = now + RESTART_DELAYS_S[min(self._n_fast_deaths, len(RESTART_DELAYS_S) - 1)]
        if now < self._restart_at:
            return False
        self._restart_at = 0.0
        return True

    def end(self, timeout_s: float = 3.0) -> None:
        """`END`, and SIGKILL when that is not heard."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._process.poll() is None:
                self._process.send_signal(END)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._reader is not None:
            self._reader.join(timeout=1)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within the time."""
        try:
            if self._process is not None:
                self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def how(code: int | None) -> str:
    """How a process ended, in words: a signal's name or an exit code."""
    if code is None:
        return "no exit code"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def without_prefix(sentence: str) -> str:
    """`robot: ...` as a process printed it, without the name that is said anyway."""
    head, _, tail = sentence.partition(": ")
    return tail if tail and " " not in head else sentence
