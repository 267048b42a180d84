"""A bundle on the emulated arm through the real processes, judged from outside: what a person would see, counted.

Starts `edgevla deploy --sim` as a child and listens to the emulator's `world` messages, as the cameras do. Only
episodes that began while the arm was running count. Run as

    python -m edgevla.robots.trials.rollouts BUNDLE --task conveyor --execution async --delay-ms 200 --episodes 5
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgevla.errors import EdgeVLAError
from edgevla.messages import Body, Message, State, World
from edgevla.session import NOTE, read_deployment, runtime_root
from edgevla.simulated import TASKS, Task, task_named
from edgevla.wire import Inbox, Stream, endpoint

from ..world.contract import Verdict
from ..world.follow_cube.world import Judge
from .trials import UNSEEN, judged

STARTED_S = 60.0
ENDED_S = 60.0


class Gallery:
    """Verdicts of whole episodes, from `world` and `state` messages in the order they arrive.

    An arm that holds in between (an overloaded machine, a lost chunk) is judged all the same.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.verdicts: list[Verdict] = []
        self.is_running = False
        self._judge: Judge | None = None
        self._last_ns = -1

    def hear(self, body: Body) -> None:
        if isinstance(body, State):
            self.is_running = body.mode in ("running", "holding") and body.wanted is not None
            if not self.is_running:
                self._judge = None
        elif isinstance(body, World):
            self._see(body)

    def _see(self, world: World) -> None:
        cubes = np.array(world.places_of("cube"))
        if world.sim_ns < self._last_ns:  # the cube was put somewhere else
            if self._judge is not None:
                self.verdicts.append(self._judge.verdict())
            self._judge = None
            if self.is_running and len(cubes):
                self._judge = Judge(self.task.fps, tuple(map(float, cubes[:, :2].ravel())))
        self._last_ns = world.sim_ns
        if self._judge is not None and len(cubes):
            self._judge.see(world.sim_ns, world.gripper_m, cubes)


def command(bundle: Path, args: argparse.Namespace) -> list[str]:
    """The deployment, as a person would type it."""
    seconds = (args.episodes + 1.5) * task_named(args.task).episode_s
    words = [sys.executable, "-m", "edgevla", "deploy", str(bundle), "--robot", "so101", "--sim", "--json"]
    words += ["--sim-task", args.task, "--execution", args.execution, "--duration", f"{seconds:.1f}"]
    words += ["--seed", str(UNSEEN + args.seed), "--inject-delay-ms", f"{args.delay_ms:g}"]
    words += ["--servo-hz", f"{args.servo_hz:g}"]
    return words + (["--log", str(args.log)] if args.log else [])


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
    raise EdgeVLAError("the deployment did not come up; its own words are above")


def watch(process: subprocess.Popen[str], task: Task, n_episodes: int) -> list[Verdict]:
    """Listens until enough episodes were seen or the deployment has ended."""
    folder = find_run(process.pid, lambda: process.poll() is None)
    session = read_deployment(folder).session_bytes
    gallery, ctx = Gallery(task), zmq.Context()
    streams: dict[type[Body], Stream] = {
        World: (endpoint(folder, "emulator"), 512),
        State: (endpoint(folder, "robot"), 512),
    }
    inbox = Inbox(ctx, streams, session)
    try:
        while process.poll() is None and len(gallery.verdicts) < n_episodes:
            inbox.wait(0.1)
            messages: list[Message[Body]] = [*inbox.drain(State), *inbox.drain(World)]
            for message in sorted(messages, key=lambda m: m.observed_ns):
                gallery.hear(message.body)
    finally:
        inbox.stop()
        ctx.destroy(linger=0)
    return gallery.verdicts[:n_episodes]


def roll_out(args: argparse.Namespace) -> dict[str, Any]:
    """One deployment and its verdicts.

    Raises:
        EdgeVLAError: the deployment failed.
    """
    process = subprocess.Popen(
        command(args.bundle, args), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        verdicts = watch(process, task_named(args.task), args.episodes)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)  # enough seen: to rest, in order
        said, _ = process.communicate(timeout=ENDED_S)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(ENDED_S)
    if process.returncode not in (0, 130):
        raise EdgeVLAError(f"the deployment of {args.bundle} ended with code {process.returncode}")
    return _result(args, verdicts, json.loads(said))


def _result(args: argparse.Namespace, verdicts: list[Verdict], summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": args.task,
        "execution": args.execution,
        "delay_ms": args.delay_ms,
        **judged(verdicts),
        "summary": dict(summary),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.robots.trials.rollouts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--execution", choices=("sync", "ensemble", "async"), default="sync")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--servo-hz",
        type=float,
        default=60.0,
        help="emulator and loop share the machine: half the arm's rate",
    )
    parser.add_argument("--log", type=Path, help="folder for the deployment's log")
    args = parser.parse_args(argv)
    try:
        print(json.dumps(roll_out(args)))
        return 0
    except EdgeVLAError as error:
        print(f"edgevla rollouts: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
