"""Record into a LeRobotDataset v3.0: a person's demonstrations with a leader arm, or whatever runs already.

    edgevla record datasets/mine --leader so101_leader --robot so101 --task 'pick up the cube' --episodes 50
    edgevla record datasets/mine --policy bundles/act --leader so101_leader --robot so101     a policy, corrected by hand
    edgevla record datasets/mine --task 'pick up the cube'      beside a running `edgevla deploy` or `edgevla teleop`

Keys: r record   k keep   d discard   a again (discard, and record anew)   p pause (what happens until the next p is
left out)   n next task   q quit. With --policy also t: you take over with the leader arm; t again: the policy goes on.
The column `intervention` tells for every row who drove. Without a terminal the same letters are read as lines. With
--episodes and --seconds it works by itself. A kept episode is on disk at once; a recording that is killed loses at
most the open one, and recording into the same folder later goes on (--resume: up to --episodes in all). With an
episode open, q asks what shall become of it; Ctrl-C, a signal or an arm that ends keep it, noted as cut off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from edgevla.errors import UsageError, WireError
from edgevla.launch.asked import Steps
from edgevla.launch.attach import add_run_dir, attach
from edgevla.launch.options import SECONDS, YEAR_S, Number, check_texts, whole
from edgevla.launch.record_place import (
    check_dataset,
    check_place,
    check_who_drove,
    episodes_there,
    told_before,
)
from edgevla.launch.record_screen import RecordScreen
from edgevla.nodes.vitals import ENDS
from edgevla.vocabulary import NONE, camera_help, pairs
from edgevla.words import check_task

if TYPE_CHECKING:
    from edgevla.launch.led import Led
    from edgevla.launch.record_session import RecordSession

PAUSE_S = 2.0
NO_PAUSE = (
    "! Ctrl-Z is refused: the episode would have a hole. p pauses it, k keeps it, d discards it, q ends"
)
OF_THE_ARM = (
    "policy",
    "robot",
    "leader_port",
    "leader_calibration",
    "port",
    "calibration",
    "sim",
    "fps",
    "log",
    "config",
)
"""Options of the arm that --leader starts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="DATASET", help="folder; an existing one is appended to")
    parser.add_argument(
        "--task", help="instruction of the episodes, in words, where the robot has none of its own"
    )
    parser.add_argument(
        "--next-task",
        action="append",
        default=[],
        metavar="TASK",
        help="another instruction, for key n; repeat for more",
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help=camera_help(
            "with --leader: a device, image folder or video; else the robot's camera of that name"
        ),
    )
    parser.add_argument(
        "--episodes", type=whole(1, 1_000_000), metavar="N", help="stop after so many kept episodes"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a recording: episodes that the dataset holds already count towards --episodes",
    )
    parser.add_argument(
        "--seconds", type=SECONDS, metavar="S", help="length of an episode: keeps it then by itself"
    )
    parser.add_argument(
        "--pause",
        type=Number(0, YEAR_S, unit="seconds"),
        metavar="S",
        help="with --seconds: between episodes, to put the scene back (default 2)",
    )
    parser.add_argument(
        "--bell",
        action="store_true",
        help="the terminal's bell: one where an episode begins and in its last seconds before, two where it ends",
    )
    add_run_dir(parser)
    _add_arm(
        parser.add_argument_group("the arm that is led; without --leader, what runs already is recorded")
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_arm(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--leader", metavar="PROFILE", help="start this leader arm and its follower: a profile, or a .toml")
    add("--policy", metavar="BUNDLE|ADDRESS",
        help="a bundle, or what policy servers run (tcp://HOST:PORT[/NAME]): it drives, and the leader arm takes over "
        "while you correct it")  # fmt: skip
    add("--robot", metavar="PROFILE", help="with --leader: the follower")
    add("--sim", action="store_true", help="emulate both arms; the leader sways")
    add("--leader-port", action="append", default=[], metavar="[BUS=]PATH", help="serial port of the leader")
    add("--port", action="append", default=[], metavar="[BUS=]PATH", help="serial port of the robot")
    add("--leader-calibration", metavar="ID|FILE", help="LeRobot calibration of the leader")
    add("--calibration", metavar="ID|FILE", help="LeRobot calibration of the robot")
    add(
        "--fps",
        type=Number(0, 10_000, above=True),
        metavar="HZ",
        help="rows per second; default: the robot's",
    )
    add("--log", metavar="DIR", type=Path, help="write the arm's log into a new folder there")


def run(args: argparse.Namespace) -> int:
    _check(args)
    stream = sys.stderr if args.json else sys.stdout
    screen = RecordScreen(stream, has_bell=args.bell)
    check_place(args.output)
    check_dataset(args.output)
    if args.leader is not None:
        check_who_drove(args.output, args.policy is not None)
    n_there = episodes_there(args.output) if args.resume else 0
    if args.episodes is not None and n_there >= args.episodes:
        screen.say(f"{args.output} holds {n_there} episodes already, and {args.episodes} were wanted")
        return 0
    for sentence in told_before(args.output):
        screen.say(sentence)
    obey_signals(lambda: screen.say(NO_PAUSE))
    if args.leader is None:
        return _record(args, screen, attach(args), n_there)
    from edgevla.launch.led import Led

    led = Led(args, screen.say)
    try:
        return _record(args, screen, led.start(), n_there, led)
    finally:
        screen.close()
        led.end()


def _record(
    args: argparse.Namespace, screen: RecordScreen, folder: Path, n_there: int, led: Led | None = None
) -> int:
    import zmq

    from edgevla.launch.record_session import RecordSession
    from edgevla.launch.takeover import Takeover
    from edgevla.nodes.recorder import RecorderNode
    from edgevla.session import read_deployment

    deployment = read_deployment(folder)
    running = [n.removeprefix("camera/") for n in deployment.nodes if n.startswith("camera/")]
    cameras = running if led is not None else _cameras(args.camera, running)
    has_leader = "leader" in deployment.nodes
    names = ", ".join(cameras) or "none"
    screen.say(f"recording {deployment.robot} into {args.output}; cameras: {names}")
    if n_there:
        screen.say(f"{_count(n_there)} there already")
    elif args.resume:
        screen.say(f"{args.output} holds no episode yet: this is its first recording")

    def is_alive() -> bool:
        if led is not None:
            led.tell()
            return led.is_alive
        return folder.is_dir()

    ctx = zmq.Context()
    node = RecorderNode(
        ctx, folder, deployment.session_bytes, args.output, cameras, args.task or "", has_leader
    )
    node.episode_s, node.heard = args.seconds, lambda text: screen.say(f"! {text}")
    takeover = Takeover(ctx, folder, deployment.session_bytes) if has_leader else None
    session = RecordSession(node, args, screen, is_alive, n_there, takeover)
    try:
        # A robot that is not ready yet is no reason to end: `record` says so, and checks again.
        with contextlib.suppress(UsageError, WireError):
            node.check_output()
        with keys(screen.say) as read_key, _signals_heard(session, led):
            session.run(read_key)
    finally:
        screen.close()
        node.close()
        if takeover is not None:
            takeover.close()
        ctx.destroy(linger=200)
    if args.json:
        print(json.dumps(session.result()))
    else:
        then = f". Next: edgevla inspect {shlex.quote(str(args.output))}" if session.n_kept else ""
        by_hand = f", {session.corrections}" if session.corrections is not None and session.n_kept else ""
        screen.say(f"{_count(session.n_kept)} kept{by_hand}{then}")
    if session.asked_by:
        raise KeyboardInterrupt
    return 0 if led is None or led.is_alive else 1


@contextlib.contextmanager
def _signals_heard(session: RecordSession, led: Led | None) -> Iterator[None]:
    """What ends the recording does not tear it: the arm goes to rest at once, and the open episode is kept meanwhile.

    A second Ctrl-C freezes the arm, a third lets go of it and gives up saving; where there is no arm, the second does.
    """
    names = {int(s): s.name for s in signal.Signals} | {int(signal.SIGINT): "Ctrl-C"}
    steps = Steps()

    def hear(number: int, _: object) -> None:
        is_press = number in (signal.SIGINT, signal.SIGQUIT)
        if session.asked_by and not is_press:  # kernel and shell both tell that a terminal has closed
            return
        step = steps.press(time.monotonic_ns())
        if step is None:
            return
        session.asked_by = session.asked_by or names.get(number, f"signal {number}")
        if led is not None:
            led.ask_to_end(again=step > 1)
        if step > (1 if led is None else 2):
            raise KeyboardInterrupt

    before = {n: signal.getsignal(n) for n in ENDS if signal.getsignal(n) is signal.default_int_handler}
    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _count(n: int) -> str:
    return f"{n} episode{'s' * (n != 1)}"


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
    args.next_task = [check_task(text, "--next-task") for text in args.next_task]
    if args.next_task and not args.task:
        raise UsageError("--next-task comes after another one: give --task too")
    if args.leader is None:
        for name in OF_THE_ARM:
            if getattr(args, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is of an arm that --leader starts: give --leader too"
                )
        return
    if args.robot is None:
        raise UsageError("--leader leads a follower: name it with --robot")
    if args.run_dir is not None:
        raise UsageError(
            "--run-dir names an arm that runs already, --leader starts one: leave one of them out"
        )
    if args.policy is not None and args.fps is not None:
        raise UsageError(
            "--fps is of a leader that drives alone: rows come at the policy's rate; leave it out"
        )
    if args.policy is not None and args.next_task:
        raise UsageError("--next-task: the policy has its own task, which the monitor changes; leave it out")
    for name in ("port", "leader_port", "calibration", "leader_calibration"):
        if args.sim and getattr(args, name):
            raise UsageError(f"--sim makes its own arm; leave out --{name.replace('_', '-')}")


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


@contextlib.contextmanager
def keys(say: Callable[[str], None]) -> Iterator[Callable[[float], str | None]]:
    """A function (seconds to wait) -> key or None; the terminal gives single keys meanwhile, a pipe whole lines."""
    stream = sys.stdin
    if not stream.isatty():
        yield _Lines(stream).read
        return
    import termios
    import tty

    from edgevla.launch.record_keys import TypedKeys
    from edgevla.launch.record_session import KEYS

    before = termios.tcgetattr(stream)
    try:
        tty.setcbreak(stream)
        modes = termios.tcgetattr(stream)
        modes[0] &= ~termios.IXON  # Ctrl-S would stop the terminal, and with it whoever writes to it
        termios.tcsetattr(stream, termios.TCSANOW, modes)
        yield TypedKeys(stream.fileno(), KEYS, say).read
    finally:
        with contextlib.suppress(termios.error):  # the terminal has closed
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
