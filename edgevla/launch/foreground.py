"""A deployment in the foreground: what `deploy`, `teleop` and `replay` have in common.

Started, watched, ended in order whatever happens, and the summary at the end with its exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgevla.errors import EdgeVLAError
from edgevla.launch.screen import Screen, write

if TYPE_CHECKING:
    from edgevla.launch.supervisor import Supervisor


def carry_out(
    supervisor: Supervisor, watcher: contextlib.AbstractContextManager[None] | None = None
) -> dict[str, Any]:
    """Starts, watches, and ends in order whatever happens; the summary. watcher: stands around the watching.

    Raises:
        EdgeVLAError, OSError: why the arm was never switched on, after everything was ended.
    """
    supervisor.asked.obey_signals()
    reason: BaseException | None = None
    try:
        supervisor.start()
        with watcher or contextlib.nullcontext():
            supervisor.watch()
    except BaseException as error:  # the arm comes first; what it was is told below
        reason = error
        supervisor.note_failure(error)
    try:
        summary = supervisor.end()
    except BaseException as error:
        supervisor.note_failure(error)
        summary = supervisor.end()  # what was done already is done again without harm
    if isinstance(reason, EdgeVLAError | OSError) and not summary.get("was_on"):
        raise reason
    return summary


def report(args: argparse.Namespace, summary: Mapping[str, Any], shown: Screen) -> int:
    """Prints the summary of `carry_out`; the exit code.

    0: done, or asked to end by a signal. 1: it failed, or there was an emergency stop, cleared or not. 130: Ctrl-C, or
    the terminal has closed.
    """
    from edgevla.launch.runlog import plain
    from edgevla.launch.summary import describe_summary

    failure, stops = summary["failure"], summary["emergency_stops"]
    asked = 130 if summary.get("was_interrupted") else 0
    if not summary.get("was_on") and not failure:
        shown("info", "deploy", "stopped before the arm was switched on")
        return asked
    if args.json:
        write(sys.stdout, json.dumps(plain(dict(summary)), indent=1))
    elif "ticks" in summary:
        write(sys.stdout, describe_summary(summary))
        if summary["log"]:
            write(sys.stdout, f"log: {summary['log']}")
    if failure:
        shown("error", "deploy", str(failure))
    for stop in stops:
        shown("stop", "deploy", f"emergency stop {stop['words']}")
    return 1 if failure or stops else asked
