"""Watch and steer a running deployment in this terminal.

Attaches to the newest deployment of this user; leaving the monitor leaves the robot as it is.
Keys: space pause/resume, h home, t task, s stop, e emergency stop (F12 while typing), c clear, q quit.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=Path, help="run directory of the deployment (default: the newest running)"
    )


def run(args: argparse.Namespace) -> int:
    from edgevla.session import find_deployment

    folder = args.run_dir or find_deployment()
    from edgevla.monitor.app import MonitorApp
    from edgevla.monitor.link import DeploymentLink

    MonitorApp(DeploymentLink(folder)).run()
    return 0
