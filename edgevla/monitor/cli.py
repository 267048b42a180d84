"""Watch and steer a running deployment in this terminal.

Attaches to the deployment of this user; where several run, a page shows a line for each: up, down and Enter (or its
number) open one, and b comes back. No key of that page acts on a robot. Leaving the monitor leaves the robot as it is.

  edgevla monitor --policy tcp://HOST:PORT    the page, with the robots that a policy server serves on other machines:
                                              how often they ask, how long their actions last, what they are answered

  e        emergency stop: the arm freezes; once more, after a pause, lets go (F12 and ctrl+e: also while typing)
  ctrl+r   clears the emergency stop: the arm is paused, and moves when it is resumed
  space    pause, resume        h  home        s  stop: to rest, then released
  t        type a task, or paste it: all that follows is text; Enter sends it, Escape leaves
  c, 1..9  one camera large     /  search the events; up, down, PageUp, PageDown scroll them     ?  all keys
  b        back to the page of all deployments
  q        leave (ctrl+c too; in `edgevla deploy --monitor` ctrl+c is the deployment's: rest, freeze, let go)

A key that is held down is one press. What is pasted outside of the task, or typed before there is a screen, is obeyed by
nobody; e, typed while the page gives way to a cockpit, stops the robot of that cockpit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgevla.errors import UsageError, WireError
from edgevla.launch.attach import add_run_dir
from edgevla.launch.options import check_texts
from edgevla.nodes.vitals import ENDS, use_one_blas_thread
from edgevla.session import deployments, find_deployment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgevla.monitor.base import KeyboardApp
    from edgevla.serve.transport import Address

INTERRUPTED = 130
PicturesBy = Literal["auto", "blocks", "kitty"]
PICTURES: tuple[PicturesBy, ...] = ("auto", "blocks", "kitty")
VARIABLE = "EDGEVLA_PICTURES"
ESCAPE_MS = "50"
"""How long Textual waits whether Escape begins a sequence: less than from Escape to the next key of a hasty hand."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_dir(parser)
    parser.add_argument(
        "--fleet", action="store_true", help="begin with the page of all deployments, however many run"
    )
    parser.add_argument(
        "--policy", metavar="tcp://HOST:PORT[/NAME][,...]",
        help="show there also the robots of these policy servers; off this machine with the key of `edgevla pair`",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", choices=PICTURES,
        help="of cameras: by the graphics of Kitty or Ghostty, or in half blocks; default: what $EDGEVLA_PICTURES "
        "says, else auto, which asks the terminal",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    use_one_blas_thread()
    check_texts(args)
    pictures = pictures_of(args)
    servers = servers_of(args)
    check_terminal()
    is_page = args.fleet or bool(servers) or (args.run_dir is None and len(deployments()) > 1)
    folder = None if is_page else find_deployment(args.run_dir)
    os.environ.setdefault("ESCDELAY", ESCAPE_MS)
    app = show(folder, servers, pictures)
    if app.failure is not None and args.verbose:
        raise app.failure
    if app.reason:
        with contextlib.suppress(OSError):
            print(f"edgevla monitor: {app.reason}", file=sys.stderr)
    return app.return_code or 0


def servers_of(args: argparse.Namespace) -> tuple[Address, ...]:
    """Policy servers whose robots are to be shown, with the keys they are known by.

    Raises:
        UsageError: options that exclude each other, no such addresses, or this machine is not paired with one of them.
    """
    for option, is_given in (("--fleet", args.fleet), ("--policy", args.policy is not None)):
        if is_given and args.run_dir is not None:
            raise UsageError(f"{option} shows all deployments and --run-dir names one; leave one of them out")
    if args.policy is None:
        return ()
    from edgevla.serve.authority import introduced
    from edgevla.serve.transport import addresses

    return introduced(addresses(args.policy, "--policy"), "--policy")


def pictures_of(args: argparse.Namespace) -> PicturesBy:
    """How pictures are drawn.

    Raises:
        UsageError: the environment says what is none of the ways.
    """
    said = args.pictures or os.environ.get(VARIABLE) or "auto"
    found = next((way for way in PICTURES if way == said), None)
    if found is None:
        raise UsageError(f"{VARIABLE}={said}: expected one of {', '.join(PICTURES)}")
    return found


def show(
    folder: Path | None, servers: Sequence[Address] = (), pictures: PicturesBy = "blocks"
) -> KeyboardApp:
    """One screen after the other; the one that was left.

    folder: of the deployment to begin with; None: all of them. servers: whose robots are among them. pictures: how those
    of cameras are drawn.

    Raises:
        WireError: `folder` describes no deployment.
    """
    from edgevla.monitor.app import MonitorApp
    from edgevla.monitor.elsewhere import Elsewhere
    from edgevla.monitor.fleet import Fleet
    from edgevla.monitor.fleet_app import FleetApp
    from edgevla.monitor.link import DeploymentLink

    fleet, at, notice = Fleet([Elsewhere(server) for server in servers]), folder, ""
    cockpit = None if folder is None else DeploymentLink(folder)
    left: KeyboardApp | None = None
    while True:
        if cockpit is not None:
            app = MonitorApp(cockpit, has_fleet=not cockpit.is_ours, pictures=pictures)
            _run(app, left)
            if not app.goes_back:
                return app
            cockpit, left, notice = None, app, ""
        page = FleetApp(fleet, at, notice)
        _run(page, left)
        if page.chosen is None:
            return page
        at, left = page.chosen, page
        try:
            cockpit = DeploymentLink(at)
        except WireError as error:  # it ended just now
            notice = str(error)


def _run(app: KeyboardApp, before: KeyboardApp | None) -> None:
    """A signal that came while one screen gave way to the next one ends that one; an emergency key is obeyed by it."""
    obey_signals(app)
    app.follows = before
    if before is not None and before.asked_to_leave is not None:
        app.leave_soon(*before.asked_to_leave)
    app.run(mouse=False)


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


def obey_signals(app: KeyboardApp) -> None:
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
