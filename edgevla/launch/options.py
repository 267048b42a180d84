"""Options that `deploy`, `teleop`, `replay` and `record` share, and what their values may be.

All of it is judged before a process is started: one sentence with the allowed range, exit code 2.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from edgevla.errors import UsageError
from edgevla.words import check_task, check_text

YEAR_S = 366 * 24 * 3600


@dataclass(frozen=True)
class Number:
    """The type of an option whose value is a number from `low` to `high`. above: `low` itself is too little."""

    low: float
    high: float
    is_whole: bool = False
    above: bool = False
    unit: str = ""

    def __call__(self, text: str) -> int | float:
        """
        Raises:
            ArgumentTypeError: no number, or outside of the range; says it.
        """
        try:
            value: int | float = int(text) if self.is_whole else float(text)
        except ValueError:
            value = float("nan")
        if not self.low <= value <= self.high or (self.above and value == self.low):
            shown = text[:40] if text and text.isprintable() else ascii(text[:40])
            raise argparse.ArgumentTypeError(f"{shown} must be {self.range}")
        return value

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        kind = "a whole number " if self.is_whole else ""
        if not self.above:
            ends = f"from {self.low:g} to {self.high:.10g}"
        elif self.low == 0 and self.unit:
            ends = f"positive and at most {self.high:.10g}"
        else:
            ends = f"above {self.low:g} and at most {self.high:.10g}"
        return f"{kind}{ends}{', in ' if self.unit else ''}{self.unit}"


def whole(low: int, high: int) -> Number:
    """The type of an option whose value is a whole number, both ends allowed."""
    return Number(low, high, is_whole=True)


SECONDS = Number(0, YEAR_S, above=True, unit="seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `deploy`, `teleop` and `replay` have in common."""
    add = parser.add_argument
    add("--robot", required=True, help="so101, so101_bimanual, aloha, or the path of your own .toml")
    add("--sim", action="store_true", help="emulate servos and cameras; everything else is real")
    add("--port", action="append", default=[], metavar="[BUS=]PATH",
        help="serial port of the robot; repeat for several buses, or name a folder with one link per bus")  # fmt: skip
    add("--calibration", metavar="ID|FILE", help="LeRobot calibration of the robot")
    add("--sim-trace", metavar="FILE", type=Path,
        help="with --sim: write every frame on the robot's emulated lines there")  # fmt: skip
    add("--log", metavar="DIR", type=Path,
        help="where this run leaves the folder with its log and summary (DIR/latest is the newest); 'none': nowhere; "
        "default: ~/.local/state/edgevla/runs")  # fmt: skip
    add("--json", action="store_true", help="print the summary as JSON on stdout")


def add_recording(group: argparse._ActionsContainer) -> None:
    """The option `--recorded-into`, of a verb with a leader arm."""
    group.add_argument(
        "--recorded-into",
        metavar="DATASET",
        type=Path,
        help="refuse, before torque, what could not be recorded into this dataset; edgevla record --leader says it",
    )


def log_place(args: argparse.Namespace) -> Path | None:
    """Where the run leaves its folder; None: nowhere."""
    if args.log is None:
        return default_place()
    return None if str(args.log) == "none" else Path(args.log)


def default_place() -> Path:
    """Of a unit its state directory, else the user's."""
    unit = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if unit:
        return Path(unit) / "runs"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "edgevla/runs"


def add_duration(parser: argparse.ArgumentParser) -> None:
    """The option `--duration`."""
    parser.add_argument(
        "--duration",
        type=SECONDS,
        metavar="S",
        help="stop in order after so many seconds; without it, Ctrl-C ends",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: options that contradict each other, cannot take effect, or hold what is no text.
    """
    check_texts(args)
    for name in ("port", "leader_port", "calibration", "leader_calibration"):
        if args.sim and getattr(args, name, None):
            raise UsageError(f"--sim makes its own arm; leave out {_option(name)}")
    for name in ("sim_task", "sim_trace"):
        if getattr(args, name, None) and not args.sim:
            raise UsageError(f"{_option(name)} needs --sim")


def check_texts(args: argparse.Namespace) -> None:
    """Every text and path among the options; a task loses the blanks around it.

    Raises:
        UsageError: one is no plain text, or too long.
    """
    for name, value in vars(args).items():
        option = _option(name)
        if name == "task" and value is not None:
            args.task = check_task(value, option)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str | Path):
                check_text(str(text), option)


POSITIONAL = ("bundle", "dataset", "output")


def _option(name: str) -> str:
    return name if name in POSITIONAL else f"--{name.replace('_', '-')}"
