"""How good is a policy? On recorded episodes, in a simulated task, or on an arm: say one of the three.

    edgevla eval bundles/act --dataset datasets/so101 --episodes 40-49      what it would have done against what was done
    edgevla eval bundles/act --task follow_cube --episodes 200              how often it succeeds in a world it never saw
    edgevla eval bundles/act bundles/act-int8 --task follow_cube --execution sync,async --delay-ms 0,100,200
    edgevla eval bundles/act bundles/act-2 --robot so101 --episodes 20      on an arm, blindly, a key for every verdict

Several bundles and settings are compared on the same frames, or on the same places. Ctrl-C keeps what is done.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgevla.dataset.reading_options import add_reading_arguments
from edgevla.errors import UsageError
from edgevla.evaluation.episodes import CONTROLS
from edgevla.evaluation.on_arm import options as on_arm
from edgevla.evaluation.on_arm.options import EXECUTIONS
from edgevla.launch.options import Number, whole
from edgevla.simulated import TASKS
from edgevla.strict import nearest
from edgevla.vocabulary import camera_help


@dataclass(frozen=True)
class EvaluationKind:
    """One kind of evaluation. option: what chooses it. words: what it is. module: has `run(args, say)`."""

    option: str
    words: str
    module: str
    add: Callable[[Any], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "policies",
        nargs="+",
        metavar="POLICY",
        help="bundles; on a dataset also checkpoints, else also tcp://HOST:PORT/NAME, what a policy server runs; the "
        "others are compared with the first",
    )
    chosen = parser.add_argument_group("on what (exactly one)")
    chosen.add_argument(
        "--dataset", metavar="PATH|REPO", help="a recorded LeRobot dataset: a folder or a hub id"
    )
    chosen.add_argument("--task", metavar="NAME",
        help=f"a simulated task: {', '.join(TASKS)}; with --robot: what the policy shall do, in words")  # fmt: skip
    chosen.add_argument(
        "--robot",
        metavar="NAME",
        help="an arm, judged by a person: so101, ..., or the path of your own .toml",
    )
    common = parser.add_argument_group("on all of them")
    common.add_argument("--episodes", metavar="N|LIST",
        help="a dataset: such as 0,2-5 or 0:40 (default: all); a task, an arm: how many (default 100, 20)",
    )  # fmt: skip
    common.add_argument("--camera", action="append", default=[], metavar="NAME=SOURCE",
        help=camera_help("a camera of the dataset, or of the task"))  # fmt: skip
    common.add_argument(
        "--seed", type=whole(0, 100_000_000), default=0, metavar="N",
        help="of the noise, the same for all; of a task's places, too (default 0)",
    )  # fmt: skip
    common.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="where eval_info.json and pictures go (default: evals/NAME-TIME)",
    )
    common.add_argument(
        "--json", action="store_true", help="print eval_info.json on stdout instead of tables"
    )
    for kind in KINDS:
        kind.add(parser.add_argument_group(f"only with --{kind.option}: {kind.words}"))


def _add_dataset_arguments(group: Any) -> None:
    add = group.add_argument
    add("--every", type=whole(1, 10**9), metavar="N",
        help="evaluate every N-th frame (default: so many that it takes about a minute)")  # fmt: skip
    add("--frames", type=whole(1, 10**9), metavar="N", help="evaluate at most N frames, spread evenly")
    add_reading_arguments(group)
    add("--joint-units", choices=["degrees", "range100"],
        help="units of a checkpoint's joints, where nothing states them")  # fmt: skip
    add("--device", help="where torch computes a checkpoint: cpu, cuda, ... (default: a GPU if there is one)")
    add("--pages", type=whole(0, 10**6), metavar="N",
        help="draw the N episodes with the largest errors (default 12; 0: no pictures)")  # fmt: skip


def _add_task_arguments(group: Any) -> None:
    add = group.add_argument
    add("--execution", type=_list_of(EXECUTIONS), action="extend", metavar="LIST",
        help=f"{', '.join(EXECUTIONS)}; several are compared (default: the bundle's)")  # fmt: skip
    add("--blend", type=_numbers(whole(0, 100_000)), action="extend", metavar="LIST",
        help="actions in which one chunk fades into the next, such as 0,10 (default 0)")  # fmt: skip
    add("--select", type=_numbers(whole(1, 64)), action="extend", metavar="LIST",
        help="chunks drawn per inference, of which the nearest is taken, such as 1,8 (default 1)")  # fmt: skip
    add("--delay-ms", type=_delays, action="extend", metavar="LIST",
        help="from each request to its chunk, such as 0,100,200 (default 0)")  # fmt: skip
    add("--control", type=_list_of(CONTROLS), action="extend", metavar="LIST",
        help=f"what must fail, and what cannot be done better: {', '.join(CONTROLS)}")  # fmt: skip
    add(
        "--jitter-ms",
        type=Number(0, 60_000),
        metavar="MS",
        help="chunks come so much later at most, evenly spread",
    )
    add("--drop", type=Number(0, 1), metavar="SHARE", help="share of the chunks that never come")
    add("--servo-hz", type=Number(0, 1000, above=True), metavar="HZ",
        help="upper bound of the control loop's rate (default: the policy's; in real time 60)")  # fmt: skip
    add("--n-steps", type=whole(1, 1000), metavar="N", help="denoise steps (default: the bundle's)")
    add("--real-time", action="store_true", help="through the real processes instead of a virtual clock")
    add("--jobs", type=whole(1, 1024), metavar="N", help="episodes at once (default: all cores but one)")
    add("--videos", choices=("none", "failures", "all"), help="of which episodes (default none)")
    add(
        "--expect",
        type=Number(0, 1),
        metavar="SHARE",
        help="exit code 1 where a cell succeeds less often, e.g. 0.85",
    )


KINDS = (
    EvaluationKind(
        "dataset",
        "predicted against recorded actions",
        "edgevla.evaluation.on_dataset",
        _add_dataset_arguments,
    ),
    EvaluationKind("task", "success, counted", "edgevla.robots.trials.on_task", _add_task_arguments),
    EvaluationKind(
        "robot",
        "success, as a person judges it; also --execution, --blend, --select, --n-steps, --servo-hz, --expect",
        "edgevla.evaluation.on_arm.verb",
        on_arm.add_arguments,
    ),
)


def _list_of(known: Sequence[str] | Any) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words or [text]:
            if word not in known:
                raise argparse.ArgumentTypeError(
                    f"'{word}' must be one of {', '.join(known)}{nearest(word, known)}"
                )
        return words

    return read


def _delays(text: str) -> list[float]:
    return [float(ms) for ms in _numbers(Number(0, 60_000, unit="ms"))(text)]


def _numbers(number: Number) -> Callable[[str], list[Any]]:
    return lambda text: [number(word.strip()) for word in text.split(",")]


def run(args: argparse.Namespace) -> int:
    from edgevla.evaluation.page import folded
    from edgevla.launch.options import check_texts
    from edgevla.progress import columns_of, tell

    kind = _chosen(args)
    check_texts(args)
    stream = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        tell(folded(text, columns_of(stream)), stream)

    code: int = importlib.import_module(kind.module).run(args, say)
    return code


def _chosen(args: argparse.Namespace) -> EvaluationKind:
    """
    Raises:
        UsageError: none or several of the three, or an option of another.
    """
    named = [kind for kind in KINDS if getattr(args, kind.option) is not None]
    if args.robot is not None:  # there a task is said in words
        named = [kind for kind in named if kind.option != "task"]
    if len(named) != 1:
        options = ", ".join(f"--{kind.option}" for kind in KINDS)
        given = " and ".join(f"--{kind.option}" for kind in named) or "none"
        raise UsageError(f"say on what, one of {options}; given: {given}")
    for kind in KINDS:
        if kind is not named[0]:
            _refuse(args, kind, named[0])
    return named[0]


def _refuse(args: argparse.Namespace, other: EvaluationKind, chosen: EvaluationKind) -> None:
    """Options of another kind, which could have no effect.

    Raises:
        UsageError: names the first.
    """
    own = {action.dest for action in _actions_of(chosen)}
    for action in _actions_of(other):
        if action.dest not in own and getattr(args, action.dest) not in (None, False, []):
            raise UsageError(
                f"{action.option_strings[0]} is for --{other.option}, and would have no effect with --{chosen.option}"
            )


def _actions_of(kind: EvaluationKind) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    kind.add(parser)
    return parser._actions
