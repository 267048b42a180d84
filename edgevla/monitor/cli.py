"""Watch and steer a running deployment in this terminal.

Attaches to the deployment of this user; where several run, it asks. Leaving the monitor leaves the robot as it is.
Keys: space pause/resume, h home, t task, s stop, e emergency stop (F12 while typing), c clear, q quit.
"""

from __future__ import annotations

import argparse

from edgevla.launch.attach import add_run_dir, attach
from edgevla.launch.options import check_texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    check_texts(args)
    folder = attach(args)
    from edgevla.monitor.app import MonitorApp
    from edgevla.monitor.link import DeploymentLink

    MonitorApp(DeploymentLink(folder)).run()
    return 0
