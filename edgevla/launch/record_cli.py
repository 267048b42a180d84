"""Record what a running robot does into a LeRobotDataset v3.0: a policy's rollouts, or a person's teleoperation.

    edgevla deploy bundles/act --robot so101        in one terminal (or: edgevla teleop ...)
    edgevla record datasets/mine --task 'pick up the cube'      in another

Keys: r record   k keep   d discard   a again (discard, and record anew)   q quit. Without a terminal the same letters
are read as lines. With --episodes and --seconds it works by itself. A kept episode is on disk at once; a recording
that is killed loses at most the open one, and recording into the same folder later goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgevla.errors import DatasetError, EdgeVLAError, UsageError, WireError
from edgevla.launch.attach import add_run_dir, attach
from edgevla.launch.options import SECONDS, YEAR_S, Number, check_texts, whole
from edgevla.nodes.vitals import ENDS
from edgevla.vocabulary import NONE, camera_help, pairs

if TYPE_CHECKING:
    from edgevla.nodes.recorder import RecorderNode

PAUSE_S = 2.0
NO_PAUSE = "! Ctrl-Z is refused: the episode would have a hole. k keeps it, d discards it, q ends"
KEYS = {"r": "record", "k": "keep", "d": "discard", "a": "again", "q": "quit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="DATASET", help="folder; an existing one is appended to")
    parser.add_argument(
        "--task", help="instruction of the episodes, in words, where the robot has none of its own"
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=none",
        help=camera_help("the robot's camera of that name"),
    )
    parser.add_argument(
        "--episodes", type=whole(1, 1_000_000), metavar="N", help="stop after so many kept episodes"
    )
    parser.add_argument(
        "--seconds", type=SECONDS, metavar="S", help="length of an episode: keeps it then by itself"
    )
    parser.add_argument(
        "--pause",
        type=Number(0, YEAR_S, unit="seconds"),
        metavar="S",
        help="with --seconds: between episodes (default 2)",
    )
    add_run_dir(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    import zmq

    from edgevla.nodes.recorder import RecorderNode
    from edgevla.session import read_deployment

    _check(args)
    folder = attach(args)
    deployment = read_deployment(folder)
    running = [n.removeprefix("camera/") for n in deployment.nodes if n.startswith("camera/")]
    cameras = _cameras(args.camera, running)
    stream = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    say(f"recording {deployment.robot} into {args.output}; cameras: {', '.join(cameras) or 'none'}")
    ctx = zmq.Context()
    node = RecorderNode(ctx, folder, deployment.session_bytes, args.output, cameras, args.task or "")
    node.episode_s, node.heard = args.seconds, lambda text: say(f"! {text}")
    session = Session(node, args, say, lambda: folder.is_dir())
    obey_signals(lambda: say(NO_PAUSE))
    try:
        # A robot that is not ready yet is no reason to end: `record` says so, and checks again.
        with contextlib.suppress(UsageError, WireError):
            node.check_output()
        with keys() as read_key:
            session.run(read_key)
    finally:
        node.close()
        ctx.destroy(linger=200)
    if args.json:
        print(json.dumps(session.result()))
    else:
        then = f". Next: edgevla inspect {args.output}" if session.n_kept else ""
        say(f"{session.n_kept} episodes kept{then}")
    return 0


def obey_signals(refuse: Callable[[], None]) -> None:
    """Whatever ends a process ends as Ctrl-C does, with the keyboard as it was; Ctrl-Z is refused."""
    for number in ENDS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGTSTP, lambda *_: refuse())


def _check(args: argparse.Namespace) -> None:
    check_texts(args)
    if args.pause is not None and args.seconds is None:
        raise UsageError("--pause is between episodes of a fixed length: give --seconds too")
    args.pause = PAUSE_S if args.pause is None else args.pause


def _cameras(texts: list[str], running: list[str]) -> list[str]:
    """All that run but those that are left out."""
    for text in texts:
        if text in running:
            others = " ".join(f"--camera {name}={NONE}" for name in running if name != text)
            raise UsageError(
                f"--camera {text}: say which cameras are not to be recorded"
                + (f": {others}" if others else "; it is the only one, leave the option out")
            )
    said = pairs(texts, "--camera")
    for name, source in said.items():
        if name not in running:
            raise UsageError(
                f"--camera {name}={source}: not among the running ones: {', '.join(running) or 'none'}"
            )
        if source not in (name, NONE):
            raise UsageError(
                f"--camera {name}={source}: a recording shows the robot's cameras under their own names; leave one "
                f"out with {name}={NONE}"
            )
    return [name for name in running if said.get(name) != NONE]


class Session:
    """Drives one recorder node by keys, or by the clock where --seconds is given."""

    def __init__(
        self,
        node: RecorderNode,
        args: argparse.Namespace,
        say: Callable[[str], None],
        is_alive: Callable[[], bool],
    ) -> None:
        self.node, self.args, self._say, self._is_alive = node, args, say, is_alive
        self.n_kept, self.n_discarded = 0, 0
        # With --seconds the clock begins episodes; what fills them is rows, so that their length is exact.
        self._due_s = time.monotonic() + args.pause if args.seconds else float("inf")
        self._must_quit = False

    @property
    def is_recording(self) -> bool:
        """Whether an episode is open and takes frames."""
        return self.node.recording is not None and self.node.recording.is_recording

    def run(self, read_key: Callable[[float], str | None]) -> None:
        """Until q, the wanted number of episodes, or the deployment's end."""
        if not self.args.seconds:
            self._say("keys: r record, k keep, d discard, a again, q quit")
        while not self._must_quit and self._is_alive():
            key = read_key(0.02)
            if key is not None and key in KEYS:
                self._obey(KEYS[key])
            self.node.step(time.monotonic_ns())
            self._by_clock()
            if self.args.episodes is not None and self.n_kept >= self.args.episodes:
                return
        if not self._is_alive():
            self._say("the deployment has ended; an episode that was open is discarded")

    def _by_clock(self) -> None:
        recording = self.node.recording
        if self.is_recording and recording is not None and recording.is_full:
            self._obey("keep")
            self._due_s = time.monotonic() + self.args.pause
        elif not self.is_recording and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self.args.pause
            self._obey("record")

    def _obey(self, word: str) -> None:
        try:
            if word == "quit":
                if self.is_recording:
                    self._obey("discard")
                self._must_quit = True
                return
            if word == "again":
                if self.is_recording:
                    self._obey("discard")
                word = "record"
            if word == "keep" and self.is_recording:
                self._say("saving the episode ...")
            self._say(self.node.obey(word))
            self.n_kept += word == "keep"
            self.n_discarded += word == "discard"
        except UsageError as error:
            self._say(f"! {error}")
        except EdgeVLAError as error:
            if self.is_recording or word == "keep" or isinstance(error, DatasetError):
                raise  # the dataset cannot be written: nothing more to do here
            self._say(f"! {error}")

    def result(self) -> dict[str, Any]:
        """What `--json` prints at the end."""
        recording = self.node.recording
        return {
            "output": str(self.args.output),
            "n_kept": self.n_kept,
            "n_discarded": self.n_discarded,
            "counters": {k: int(v) for k, v in (recording.counters if recording else {}).items()},
        }


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str | None]]:
    """A function (seconds to wait) -> key or None; the terminal gives single keys meanwhile, a pipe whole lines."""
    stream = sys.stdin
    if not stream.isatty():
        yield _Lines(stream).read
        return
    import termios
    import tty

    before = termios.tcgetattr(stream)
    try:
        tty.setcbreak(stream)
        yield lambda seconds: stream.read(1).lower() if select.select([stream], [], [], seconds)[0] else None
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)


class _Lines:
    """Keys as lines of a pipe; after its end there are none."""

    def __init__(self, stream: TextIO) -> None:
        self._fd, self._read, self._has_ended = stream.fileno(), b"", False

    def read(self, seconds: float) -> str | None:
        if b"\n" not in self._read and self._has_ended:
            time.sleep(seconds)
        elif b"\n" not in self._read and select.select([self._fd], [], [], seconds)[0]:
            more = os.read(self._fd, 4096)
            self._has_ended = not more
            self._read += more
        line, newline, rest = self._read.partition(b"\n")
        if not newline:
            return None
        self._read = rest
        return line.decode(errors="replace").strip().lower()[:1] or None
