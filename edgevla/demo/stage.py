"""Runs the demo's commands as the processes a person would start: side by side, logged, and ended with the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edgevla.errors import EdgeVLAError

TELL_EVERY_S = 15.0
POLL_S = 0.1
END_S = 45.0
"""What a deployment may take to bring its arm to rest before it is killed."""


@dataclass
class DemoCommand:
    """One command. words: after `python -m`. name: of its log, and in front of its progress lines."""

    name: str
    words: Sequence[str]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    log: Path | None = None

    @property
    def latest(self) -> str:
        """The newest line of the log that says something."""
        if self.log is None or not self.log.is_file():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2000))
            text = file.read().decode(errors="replace").replace("\r", "\n")
        return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")


def run_side_by_side(
    works: Sequence[DemoCommand],
    logs: Path,
    say: Callable[[str], None],
    *,
    at_once: int = 2,
    threads: int = 1,
) -> None:
    """Runs all, `at_once` at a time, and tells the newest line of each now and then.

    Raises:
        EdgeVLAError: one failed; its last words are in the message, the others are ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = list(works), list[DemoCommand]()
    told, lines = time.monotonic(), dict[str, str]()
    # Ctrl-C is raised in the main thread: in the midst of Popen it would leave a process that nobody knows of.
    starter = ThreadPoolExecutor(1, thread_name_prefix="start")
    # The pool has its thread before the first process: shutdown does not wait for one whose start was interrupted.
    starter.submit(int).result()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.pop(0))
                starter.submit(_start, running[-1], logs, threads).result()
            time.sleep(POLL_S)
            for work in [w for w in running if w.process is not None and w.process.poll() is not None]:
                running.remove(work)
                _finish(work)
            if time.monotonic() - told >= TELL_EVERY_S:
                told = time.monotonic()
                for work in running:
                    if (line := work.latest[:100]) != lines.get(work.name, ""):
                        lines[work.name] = line
                        say(f"      {work.name}: {line}")
    finally:
        try:
            starter.shutdown()
            _ask_to_end(running)
        finally:  # also at the next Ctrl-C
            _kill(running)


def _start(work: DemoCommand, logs: Path, threads: int) -> None:
    work.log = logs / f"{work.name.replace(' ', '-')}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with work.log.open("wb") as log:
        log.write(("$ python -m " + " ".join(work.words) + "\n").encode())
        log.flush()
        work.process = subprocess.Popen(
            [sys.executable, "-m", *work.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the demo, which ends its processes in order
        )


def _finish(work: DemoCommand) -> None:
    assert work.process is not None
    if work.process.returncode != 0:
        raise EdgeVLAError(
            f"the demo's step '{work.name}' ended with code {work.process.returncode}: {work.latest} "
            f"(all its words: {work.log})"
        )


def _ask_to_end(works: Sequence[DemoCommand]) -> None:
    """Tells all what Ctrl-C would, and waits until they have ended or END_S has passed."""
    processes = [work.process for work in works if work.process is not None]
    deadline = time.monotonic() + END_S
    for process in processes:
        _signal(process, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))


def _kill(works: Sequence[DemoCommand]) -> None:
    for process in [work.process for work in works if work.process is not None]:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
