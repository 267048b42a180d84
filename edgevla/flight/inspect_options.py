"""What `edgevla inspect RUN` takes; in a module of its own, because `--help` loads nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

RUN_OPTIONS = ("at", "picture", "lines", "replay_chunk", "save")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a run: a folder of --log, or DIR/latest")
    group.add_argument(
        "--picture", metavar="PNG", type=Path, help="where the timeline goes; default: beside the log"
    )
    add = group.add_mutually_exclusive_group().add_argument
    add("--at", metavar="MM:SS", help="explain one moment of the run time, with what the policy saw")
    add("--replay-chunk", metavar="N", type=int, help="infer a saved chunk again, and compare it bit by bit")
    add("--save", action="store_true", help="of a run that goes on: save its last 30 s for good")
    add("--lines", action="store_true", help="print all of the log as JSON, a line each, for other programs")
