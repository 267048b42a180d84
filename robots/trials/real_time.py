"""Episodes through the real processes: `edgevla deploy --sim`, steered over its sockets as a person would, and judged in
the emulator's own world.

One deployment per cell. Before each episode the arm goes home, the world puts its things to their places, the arm goes
on; the emulator says what the episode came to. Deadlines are real, so a busy machine shows in the result.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO

import zmq

from edgevla.errors import EdgeVLAError, WireError
from edgevla.evaluation.episodes import UNSEEN, Cell, Conditions, EpisodeResult, slug_of
from edgevla.messages import (
    Ack,
    BeginEpisode,
    Chunk,
    Heartbeat,
    Judged,
    Message,
    MessageBody,
    Mode,
    State,
    World,
)
from edgevla.serve.transport import is_served
from edgevla.session import NOTE, read_deployment, runtime_root
from edgevla.simulated import Task, task_named
from edgevla.wire import CommandClient, Dealer, Inbox, Stream, endpoint

from ..world.contract import Verdict, make_painter
from .contest import STOPPED, Played, kept, profile_of
from .entrants import entrant
from .worker import Album, Assignment, Job

STARTED_S = 90.0
ENDED_S = 60.0
HOMING_S = 30.0
SEEN_S = 0.3
"""What the cameras are given to see the things at their places before the arm goes on."""
LATE_S = 5.0
SERVO_HZ = 60.0
"""Emulator and loop share the machine: half an SO101's rate."""
DEPLOYMENTS = "deploy"


def play(
    assignment: Assignment, jobs: Sequence[Job], asked_to_stop: Callable[[], bool]
) -> Iterator[EpisodeResult]:
    """Episodes as they are done, cell by cell. Asked to stop, it ends the running one.

    Raises:
        EdgeVLAError: a deployment failed.
    """
    task = task_named(assignment.conditions.task)
    album = Album(assignment, task, make_painter(task))
    for number, group in groupby(sorted(jobs), key=lambda job: job[0]):
        cell = assignment.cells[number]
        waiting = [episode for _, episode in group]
        while waiting and not asked_to_stop():
            n_before = len(waiting)
            log = Path(assignment.folder) / DEPLOYMENTS / slug_of(cell)
            with LiveDeployment(cell, assignment.conditions, task, log) as deployed:
                while waiting and not asked_to_stop() and not deployed.has_stopped:
                    began = time.perf_counter()
                    played = deployed.play(waiting[0], asked_to_stop)
                    if played is None:
                        return
                    is_body = [not joint.is_gripper for joint in profile_of(task).joints]
                    seed, spent = UNSEEN + assignment.conditions.seed, time.perf_counter() - began
                    episode = kept(cell, waiting.pop(0), seed, played, is_body, spent)
                    yield album.keep(cell, episode, played)
            if len(waiting) == n_before and not asked_to_stop():
                raise EdgeVLAError(
                    f"the deployment of {cell.bundle} played no episode; its words are in {log}"
                )


def words_of(cell: Cell, c: Conditions, log: Path) -> list[str]:
    """The deployment, as a person would type it."""
    hz = c.servo_hz or max(SERVO_HZ, entrant(cell.bundle, verify=False).manifest.fps)
    words = [
        "deploy",
        *(["--policy", cell.bundle] if is_served(cell.bundle) else [cell.bundle]),
        "--robot",
        profile_of(task_named(c.task)).name,
        "--sim",
        "--sim-task",
        c.task,
    ]
    words += [
        "--execution",
        cell.execution,
        "--inject-delay-ms",
        f"{cell.delay_ms:g}",
        "--servo-hz",
        f"{hz:g}",
    ]
    words += ["--blend", str(cell.blend)] if cell.blend else []
    words += ["--select", str(cell.select)] if cell.select > 1 else []
    words += ["--seed", str(UNSEEN + c.seed), "--log", str(log), "--json"]
    words += ["--n-steps", str(c.n_steps)] if c.n_steps is not None else []
    return words


class LiveDeployment:
    """A running deployment, and what it says. has_stopped: the arm does not go on in it."""

    def __init__(self, cell: Cell, conditions: Conditions, task: Task, log: Path) -> None:
        self.task, self.log = task, log
        self.has_stopped = False
        log.mkdir(parents=True, exist_ok=True)
        self._words: IO[str] = (log / "words.txt").open("a")
        command = [sys.executable, "-m", "edgevla", *words_of(cell, conditions, log)]
        self._process = subprocess.Popen(
            command, stdout=self._words, stderr=self._words, start_new_session=True
        )
        self._ctx = zmq.Context()
        self._mode: Mode = "idle"
        self._reason = ""
        self._counters: Counter[str] = Counter()
        self._heard: list[Message[MessageBody]] = []

    def __enter__(self) -> LiveDeployment:
        try:
            folder = find_run(self._process.pid, lambda: self._process.poll() is None)
            session = read_deployment(folder).session_bytes
            robot, emulator = endpoint(folder, "robot"), endpoint(folder, "emulator")
            streams: dict[type[MessageBody], Stream] = {
                State: (robot, 2048),
                Heartbeat: (robot, 64),
                World: (emulator, 2048),
                Judged: (emulator, 16),
                Chunk: (endpoint(folder, "policy"), 512),
            }
            self._inbox = Inbox(self._ctx, streams, session)
            self._commands = CommandClient(
                self._ctx, endpoint(folder, "robot", "commands"), session, "eval", folder
            )
            self._world = Dealer(self._ctx, endpoint(folder, "emulator", "fault"), session, "eval")
            self._await(lambda: self._mode == "running", STARTED_S, "the arm did not start")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """To rest, in order."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDED_S)
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait(ENDED_S)
        for part in ("_commands", "_world"):
            if hasattr(self, part):
                getattr(self, part).close()
        if hasattr(self, "_inbox"):
            self._inbox.stop()
        self._ctx.destroy(linger=0)
        self._words.close()

    # -- an episode -------------------------------------------------------------------------------------------------

    def play(self, episode: int, asked_to_stop: Callable[[], bool]) -> Played | None:
        """One place, from home; None: asked to stop.

        Raises:
            EdgeVLAError: the deployment ended, or does not do as it is told.
        """
        self._order("home")
        self._await(lambda: self._mode == "paused", HOMING_S, "the arm did not come home")
        self._begin(episode)
        time.sleep(SEEN_S)
        self._hear()
        self._begin(episode)
        self._heard, before = [], self._counters.copy()
        self._order("resume")
        until = time.monotonic() + self.task.episode_s + LATE_S
        while time.monotonic() < until:
            self._hear()
            if asked_to_stop():
                return None
            if self._mode not in ("running", "holding", "paused", "homing"):
                self.has_stopped = True
                return self._played(None, before)
            for message in self._heard:
                if isinstance(message.body, Judged) and message.body.episode == episode:
                    return self._played(message.body, before)
        raise EdgeVLAError(f"the emulator did not judge episode {episode}; its words are in {self.log}")

    def _begin(self, episode: int) -> None:
        """The world to the episode's places."""
        seq, until = self._world.send(BeginEpisode(episode)), time.monotonic() + 5.0
        while time.monotonic() < until:
            if seq is None:
                seq = self._world.send(BeginEpisode(episode))
            for message in self._world.poll(0.1):
                if isinstance(message.body, Ack) and message.body.of_seq == seq:
                    return
        raise WireError("the emulator does not answer", "timeout")

    def _order(self, action: str) -> None:
        answer = self._commands.request(action, timeout_s=10.0)  # type: ignore[arg-type]
        if not answer.is_accepted:
            raise EdgeVLAError(f"'{action}' was refused: {answer.reason}")

    def _played(self, judged: Judged | None, before: Counter[str]) -> Played:
        """judged: None where the arm stopped itself."""
        last = self._heard[-1].observed_ns if self._heard else 0
        bodies = [m.body for m in self._heard]
        scenes = [b for b in bodies if isinstance(b, World)]
        chunks = [m for m in self._heard if isinstance(m.body, Chunk)]
        played = Played(self._verdict(judged), [b for b in bodies if isinstance(b, State)])
        played.scenes = _sampled(scenes, self.task.fps)
        played.counters = self._counters - before
        played.delays_ms = [(m.header.sent_ns - m.observed_ns) / 1e6 for m in chunks]
        played.infer_ms = [m.body.timing_ns.total / 1e6 for m in chunks if isinstance(m.body, Chunk)]
        played.seconds = (last - self._heard[0].observed_ns) / 1e9 if self._heard else 0.0
        played.stopped = "" if judged is not None else self._reason or self._mode
        return played

    @staticmethod
    def _verdict(j: Judged | None) -> Verdict:
        if j is None:
            return Verdict(False, None, 0.0, 0.0, (), STOPPED)
        return Verdict(
            j.is_success, j.time_to_success_s, j.max_reward, j.sum_reward, j.place, j.outcome, j.figures
        )

    # -- what it says -----------------------------------------------------------------------------------------------

    def _await(self, is_so: Callable[[], bool], limit_s: float, words: str) -> None:
        until = time.monotonic() + limit_s
        while not is_so():
            self._hear()
            if time.monotonic() > until or self._mode in ("emergency", "stopped"):
                raise EdgeVLAError(f"{words} ({self._mode}: {self._reason}); its words are in {self.log}")

    def _hear(self) -> None:
        """
        Raises:
            EdgeVLAError: the deployment has ended.
        """
        if self._process.poll() is not None and self._mode not in ("emergency", "stopped"):
            raise EdgeVLAError(
                f"the deployment ended with code {self._process.returncode}; its words are in {self.log}"
            )
        self._inbox.wait(0.05)
        messages: list[Message[MessageBody]] = [
            m for cls in (State, Heartbeat, World, Judged, Chunk) for m in self._inbox.drain(cls)
        ]
        for message in sorted(messages, key=lambda m: m.observed_ns):
            if isinstance(message.body, State):
                self._mode, self._reason = message.body.mode, message.body.reason
            if isinstance(message.body, Heartbeat):
                self._counters = Counter(message.body.counters)
            else:
                self._heard.append(message)


def _sampled(scenes: Sequence[World], fps: float) -> list[World]:
    """One per policy step of what came 60 times a second."""
    found: list[World] = []
    for scene in scenes:
        if not found or scene.sim_ns * fps >= len(found) * 1e9:
            found.append(scene)
    return found


def find_run(pid: int, is_alive: Callable[[], bool]) -> Path:
    """Run directory of the deployment whose supervisor is `pid`.

    Raises:
        EdgeVLAError: it ended, or did not come up in time.
    """
    deadline = time.monotonic() + STARTED_S
    while time.monotonic() < deadline and is_alive():
        for note in runtime_root().glob(f"*/{NOTE}"):
            try:
                if read_deployment(note.parent).supervisor_pid == pid:
                    return note.parent
            except EdgeVLAError:
                continue
        time.sleep(0.05)
    raise EdgeVLAError("the deployment did not come up; read its words")
