"""Watch and steer a running deployment in this terminal.

Attaches to the deployment of this user; where several run, it asks. Leaving the monitor leaves the robot as it is.

  e        emergency stop: the arm freezes; once more, after a pause, lets go (F12 and ctrl+e: also while typing)
  ctrl+r   clears the emergency stop: the arm is paused, and moves when it is resumed
  space    pause, resume        h  home        s  stop: to rest, then released
  t        type a task, or paste it: all that follows is text; Enter sends it, Escape leaves
  c, 1..9  one camera large     /  search the events; up, down, PageUp, PageDown scroll them     ?  all keys
  q        leave (ctrl+c too; in `edgevla deploy --monitor` ctrl+c is the deployment's: rest, freeze, let go)

A key that is held down is one press. What is pasted outside of the task, or typed before there is a screen, is obeyed by
nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from edgevla.errors import UsageError
from edgevla.launch.attach import add_run_dir, attach
from edgevla.launch.options import check_texts
from edgevla.nodes.vitals import ENDS

if TYPE_CHECKING:
    from edgevla.monitor.app import MonitorApp

INTERRUPTED = 130
ESCAPE_MS = "50"
"""How long Textual waits whether Escape begins a sequence: less than from Escape to the next key of a hasty hand."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    check_texts(args)
    check_terminal()
    folder = attach(args)
    os.environ.setdefault("ESCDELAY", ESCAPE_MS)
    from edgevla.monitor.app import MonitorApp
    from edgevla.monitor.link import DeploymentLink

    app = MonitorApp(DeploymentLink(folder))
    obey_signals(app)
    app.run(mouse=False)
    if app.failure is not None and args.verbose:
        raise app.failure
    if app.reason:
        with contextlib.suppress(OSError):
            print(f"edgevla monitor: {app.reason}", file=sys.stderr)
    return app.return_code or 0


def check_terminal() -> None:
    """
    Raises:
        UsageError: keys or screen would go elsewhere.
    """
    streams = {"input": sys.stdin, "output": sys.stdout, "error output": sys.stderr}
    missing = [name for name, stream in streams.items() if stream is None or not stream.isatty()]
    if missing or os.environ.get("TERM") == "dumb":
        raise UsageError(
            f"the monitor needs a terminal, and its {missing[0] if missing else 'terminal'} is none that can be drawn "
            "on; over ssh use: ssh -t HOST edgevla monitor"
        )


def obey_signals(app: MonitorApp) -> None:
    """Whoever ends the monitor gets the terminal back as it was."""
    reasons: dict[int, str] = {
        signal.SIGTERM: "asked to terminate",
        signal.SIGHUP: "the terminal was closed",
        signal.SIGINT: "interrupted",
    }
    for number in ENDS:
        reason = reasons.get(number, "asked to terminate")
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_, reason=reason: app.leave_soon(reason, INTERRUPTED))
