"""Play a recorded episode on a robot: the actions of a LeRobot dataset, through the same safety as a policy's.

    edgevla replay datasets/mine --episode 3 --robot so101 --port /dev/ttyACM0
    edgevla replay datasets/mine --robot so101 --sim

The arm goes slowly to where the episode begins, plays it once, moves to rest and is released. At the end it says how
far the arm was from what had been recorded. Ctrl-C stops in order.
"""

from __future__ import annotations

import argparse

from edgevla.launch import options
from edgevla.launch.foreground import carry_out, report
from edgevla.launch.options import whole
from edgevla.launch.screen import Screen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="LeRobot dataset: a folder or a hub id")
    parser.add_argument(
        "--episode", type=whole(0, 10**9), default=0, metavar="N", help="which one (default 0)"
    )
    parser.add_argument(
        "--joint-units", choices=("degrees", "range100"), help="of the dataset, where it does not say"
    )
    options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from edgevla.launch.deployment import DeployOptions
    from edgevla.launch.episode import EpisodeSource
    from edgevla.launch.supervisor import Supervisor
    from edgevla.nodes.replay import DONE, NEVER_THERE

    options.check_arguments(args)
    shown = Screen(to_stderr=args.json)
    last_words: list[str] = []

    def heard(severity: str, source: str, text: str) -> None:
        shown(severity, source, text)
        if source == "policy" and text.startswith((DONE, NEVER_THERE)):
            last_words.append(text)
            if text.startswith(NEVER_THERE):
                supervisor.failure = text

    wanted = DeployOptions(
        robot=args.robot,
        is_sim=args.sim,
        ports=args.port,
        calibration=args.calibration,
        log_dir=options.log_place(args),
        sim_trace=args.sim_trace,
    )
    supervisor = Supervisor(wanted, EpisodeSource(args.dataset, args.episode, args.joint_units), heard)
    supervisor.stop_when(lambda: bool(last_words))
    return report(args, carry_out(supervisor), shown)
