"""Episodes on several cores: the jobs of one evaluation, dealt out to workers.

One worker is this process itself. Several are processes of their own that end with this one, and hear no Ctrl-C: what
they have begun they finish.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress

from edgevla import errors
from edgevla.errors import EdgeVLAError, made_again
from edgevla.evaluation.episodes import EpisodeResult
from edgevla.strict import read, write

from .worker import Assignment, Job, TrialWorker

Result = EpisodeResult | EdgeVLAError
POLL_S = 0.2


def play(
    assignment: Assignment, jobs: Sequence[Job], n_workers: int, asked_to_stop: Callable[[], bool]
) -> Iterator[EpisodeResult]:
    """Episodes as they are done, in no certain order. Asked to stop, it begins no further one.

    Raises:
        EdgeVLAError: one could not be played; the others that had begun are there before.
    """
    n_workers = min(n_workers, len(jobs))
    if n_workers > 1:
        yield from _in_processes(assignment, jobs, n_workers, asked_to_stop)
        return
    with closing(TrialWorker(assignment)) as worker:
        for job in jobs:
            if asked_to_stop():
                return
            yield worker.play(job)


def _in_processes(
    assignment: Assignment, jobs: Sequence[Job], n_workers: int, asked_to_stop: Callable[[], bool]
) -> Iterator[EpisodeResult]:
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    results: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    stop = threading.Event()
    processes = [_start(assignment) for _ in range(n_workers)]
    threads = [
        threading.Thread(target=_feed, args=(p, waiting, results, stop), daemon=True) for p in processes
    ]
    failure: EdgeVLAError | None = None
    try:
        for thread in threads:
            thread.start()
        n_at_work = n_workers
        while n_at_work:
            if asked_to_stop():
                stop.set()
            with suppress(queue.Empty):
                result = results.get(timeout=POLL_S)
                if isinstance(result, EpisodeResult):
                    yield result
                elif result is None:
                    n_at_work -= 1
                else:
                    stop.set()
                    failure = failure or result
        if failure is not None:
            raise failure
    finally:
        stop.set()
        for process in processes:
            if n_at_work:  # left in the midst of it
                process.kill()
            process.wait()


def _start(assignment: Assignment) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevla.robots.trials.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(write(assignment)) + "\n")
    process.stdin.flush()
    return process


def _feed(
    process: subprocess.Popen[str],
    waiting: queue.SimpleQueue[Job],
    results: queue.SimpleQueue[Result | None],
    stop: threading.Event,
) -> None:
    """Gives one worker a job at a time; the last thing it says is None."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        while not stop.is_set():
            try:
                job = waiting.get_nowait()
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                results.put(_result(process.stdout.readline()))
            except queue.Empty:
                break
            except OSError:
                results.put(_result(""))
                break
    results.put(None)


def _result(line: str) -> Result:
    if not line:
        return EdgeVLAError("a worker process died; its last words, if any, are above")
    said = json.loads(line)
    if "episode" in said:
        return read(EpisodeResult, said["episode"], "an episode")
    name, text = said["error"]
    made: EdgeVLAError = made_again(getattr(errors, name, EdgeVLAError), text)
    return made
