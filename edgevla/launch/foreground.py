"""A deployment in the foreground of a terminal: what `deploy`, `teleop` and `replay` have in common.

Their shared options, one line per event on the screen, Ctrl-C and the other signals, the summary at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgevla.errors import EdgeVLAError, UsageError

if TYPE_CHECKING:
    from edgevla.launch.supervisor import Supervisor

MARKS = {"warning": "! ", "error": "!! ", "stop": "!! ", "info": "", "log": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--robot", required=True, help="so101, so101_bimanual, aloha, or the path of your own .toml")
    add("--sim", action="store_true", help="emulate servos and cameras; everything else is real")
    add("--port", action="append", default=[], metavar="[BUS=]PATH",
        help="serial port of the robot; repeat for several buses, or name a folder with one link per bus")  # fmt: skip
    add("--calibration", metavar="ID|FILE", help="LeRobot calibration of the robot")
    add("--sim-trace", metavar="FILE", type=Path,
        help="with --sim: write every frame on the robot's emulated lines there")  # fmt: skip
    add("--log", metavar="DIR", type=Path, help="write run.jsonl and summary.json there")
    add("--json", action="store_true", help="print the summary as JSON on stdout")


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: options that contradict each other or cannot take effect.
    """
    for name in ("port", "leader_port", "calibration", "leader_calibration"):
        if args.sim and getattr(args, name, None):
            raise UsageError(f"--sim makes its own arm; leave out {_option(name)}")
    for name in ("sim_task", "sim_trace"):
        if getattr(args, name, None) and not args.sim:
            raise UsageError(f"{_option(name)} needs --sim")
    duration_s = getattr(args, "duration", None)
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise UsageError(f"--duration {duration_s:g} must be positive, in seconds; without it, Ctrl-C ends")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` texts."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value or not name:
            raise UsageError(f"{option} {text}: expected NAME=VALUE")
        if name in found:
            raise UsageError(f"{option} {name} is given twice")
        found[name] = value
    return found


def carry_out(
    supervisor: Supervisor, watcher: contextlib.AbstractContextManager[None] | None = None
) -> dict[str, Any] | None:
    """Starts, watches, stops, and closes whatever happens; the summary, None when Ctrl-C came before the arm was on.

    Raises:
        EdgeVLAError: what a person must act on, after everything was ended.
    """
    supervisor.obey_signals()
    failure: EdgeVLAError | None = None
    was_interrupted = False
    try:
        supervisor.start()
        with watcher or contextlib.nullcontext():
            supervisor.watch()
        supervisor.stop()
    except EdgeVLAError as error:
        failure = error
    except KeyboardInterrupt:
        was_interrupted = True
    summary = supervisor.close()
    if failure is not None:
        raise failure
    return None if was_interrupted else summary


def report(args: argparse.Namespace, summary: Mapping[str, Any] | None, shown: Screen) -> int:
    """Prints the summary of `carry_out`; the exit code."""
    from edgevla.launch.runlog import describe_summary, plain

    if summary is None:
        shown("info", "deploy", "stopped before the arm was switched on")
        return 130
    if args.json:
        _write(sys.stdout, json.dumps(plain(dict(summary)), indent=1))
    else:
        _write(sys.stdout, describe_summary(summary))
        if args.log:
            _write(sys.stdout, f"log: {args.log / 'run.jsonl'}")
    if summary["failure"]:
        shown("error", "deploy", str(summary["failure"]))
        return 1
    return 130 if summary["was_interrupted"] else 0


class Screen:
    """One clear line per event, with the time since the start and who says it.

    While the monitor has the terminal, lines wait; they are shown when it is left.
    """

    def __init__(self, to_stderr: bool) -> None:
        self._began = time.monotonic()
        self._waiting: list[str] | None = None
        self._stream = sys.stderr if to_stderr else sys.stdout

    def __call__(self, severity: str, source: str, text: str) -> None:
        line = f"{time.monotonic() - self._began:8.2f}  {source:<12} {MARKS[severity]}{text}"
        if self._waiting is not None:
            self._waiting.append(line)
            return
        _write(self._stream, line)

    def give_way(self) -> None:
        self._waiting = []

    def come_back(self) -> None:
        lines, self._waiting = self._waiting or [], None
        for line in lines:
            _write(self._stream, line)


def _write(stream: TextIO, line: str) -> None:
    """Past the stream's buffer: Ctrl-C's sentence may come while another is being written, and a buffer refuses that.

    Nothing is raised when the terminal has gone: the arm still has to be brought to rest.
    """
    left = (line + "\n").encode(stream.encoding or "utf-8", "replace")
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(stream.fileno(), left) :]
