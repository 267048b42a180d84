"""What `edgevla eval --robot` is asked, and what follows from it before a process is started."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.errors import UsageError
from edgevla.evaluation.episodes import UNSEEN
from edgevla.launch.options import SECONDS, Number, whole
from edgevla.serve.transport import is_served
from edgevla.simulated import TASKS, task_named
from edgevla.vocabulary import once

if TYPE_CHECKING:
    from edgevla.launch.deployment import DeployOptions

N_EPISODES, SECONDS_EACH = 20, 60.0
MOST_POLICIES = 2
EXECUTIONS = ("sync", "ensemble", "async", "rtc")


def add_arguments(group: Any) -> None:
    """Those that another kind of evaluation has, too, are left to it where it comes first."""

    def add(option: str, **how: Any) -> None:
        if option not in group._option_string_actions:
            group.add_argument(option, **how)

    add("--port", action="append", default=[], metavar="[BUS=]PATH",
        help="serial port of the robot; repeat for several buses, or name a folder with one link per bus")  # fmt: skip
    add("--calibration", metavar="ID|FILE", help="LeRobot calibration of the robot")
    add("--seconds", type=SECONDS, metavar="S",
        help=f"an episode's length at most; a key ends it earlier (default {SECONDS_EACH:g}, or the simulated task's)",
    )  # fmt: skip
    add("--execution", type=_executions, action="extend", metavar="LIST",
        help=f"{', '.join(EXECUTIONS)}; two are compared (default: the bundle's)")  # fmt: skip
    add("--blend", type=_numbers(0, 100_000), action="extend", metavar="LIST",
        help="actions in which one chunk fades into the next; two are compared (default 0)")  # fmt: skip
    add("--select", type=_numbers(1, 64), action="extend", metavar="LIST",
        help="chunks drawn per inference, of which the nearest is taken; two are compared (default 1)")  # fmt: skip
    add("--n-steps", type=whole(1, 1000), metavar="N", help="denoise steps (default: the bundle's)")
    add(
        "--provider",
        choices=("cpu", "cuda", "tensorrt"),
        help="inference engine (default: the bundle's target)",
    )
    add("--threads", type=whole(1, 1024), metavar="N", help="of the CPU engine (default: all cores but one)")
    add("--servo-hz", type=Number(0, 1000, above=True), metavar="HZ",
        help="upper bound of the control loop's rate (default: the robot's)")  # fmt: skip
    add("--allow-lost-cameras", action="store_true", help="go on without a camera where the policy can")
    add("--allow-blind-cameras", action="store_true", help="start although a camera shows no picture at all")
    add("--log", type=Path, metavar="DIR", help="where the deployments write their logs")
    add("--expect", type=Number(0, 1), metavar="SHARE",
        help="exit code 1 where a policy succeeds less often, e.g. 0.85")  # fmt: skip
    add("--sim", action="store_true", help="emulate servos and cameras; everything else is real")
    add("--sim-task", metavar="NAME", help=f"with --sim: the simulated task: {', '.join(TASKS)}")
    add(
        "--sim-trace",
        type=Path,
        metavar="FILE",
        help="with --sim: write every frame on the emulated lines there",
    )


def _executions(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words or [text]:
        if word not in EXECUTIONS:
            raise argparse.ArgumentTypeError(f"'{word}' must be one of {', '.join(EXECUTIONS)}")
    return words


def _numbers(low: int, high: int) -> Callable[[str], list[int]]:
    number = whole(low, high)
    return lambda text: [int(number(word.strip())) for word in text.split(",")]


@dataclass(frozen=True)
class Trials:
    """policies: folders of bundles, or addresses of policy servers. options: of each, in the same order. n: rounds; each
    gives every policy one turn."""

    policies: tuple[str, ...]
    options: tuple[DeployOptions, ...]
    n: int
    seconds: float


def trials_from(args: argparse.Namespace) -> Trials:
    """
    Raises:
        UsageError: options that contradict each other, or more than two policies.
    """
    executions: list[str | None] = [*once(args.execution or [], "--execution")] or [None]
    blends = once(args.blend or [0], "--blend")
    selects = once(args.select or [1], "--select")
    ways = [_said(*way) for way in product(executions, blends, selects)]
    chosen = [(_spelled(policy), way) for policy in args.policies for way in ways]
    if len(chosen) > MOST_POLICIES:
        raise UsageError(
            f"{len(chosen)} policies and settings: a person can compare {MOST_POLICIES} at a time; name two bundles, or "
            "one and two of --execution, --blend or --select"
        )
    if any(one in chosen[:k] for k, one in enumerate(chosen)):
        raise UsageError(
            f"{chosen[0][0]} is named twice; compare it with another bundle, or with another --execution"
        )
    asked = _deploy_options(args)
    options = tuple(replace(asked, execution=way or None) for _, way in chosen)
    usual = task_named(asked.sim_task).episode_s if asked.sim_task else SECONDS_EACH
    seconds = float(args.seconds or usual)
    return Trials(tuple(policy for policy, _ in chosen), options, _n_episodes(args.episodes), seconds)


def _said(kind: str | None, blend: int, select: int) -> dict[str, Any]:
    given = {"kind": kind, "blend": blend or None, "select": select if select > 1 else None}
    return {name: value for name, value in given.items() if value is not None}


def _spelled(policy: str) -> str:
    """A folder in one way of writing it."""
    return policy if is_served(policy) else str(Path(policy).expanduser())


def _n_episodes(text: str | None) -> int:
    try:
        return int(whole(1, 100_000)(text or str(N_EPISODES)))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--episodes {error}: how many rounds; each gives every policy one turn") from None


def _deploy_options(args: argparse.Namespace) -> DeployOptions:
    """As `edgevla deploy` reads the same options."""
    from edgevla.launch import deploy_cli

    parser = argparse.ArgumentParser()
    deploy_cli.add_arguments(parser)
    asked = parser.parse_args(["--robot", args.robot])
    for name in vars(asked):
        if name in vars(args) and name not in ("execution", "every", "blend", "select"):
            setattr(asked, name, getattr(args, name))
    options: DeployOptions = deploy_cli.options_from(asked)
    return replace(options, seed=UNSEEN + options.seed) if options.is_sim else options
