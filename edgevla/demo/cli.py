"""The whole story on a simulated arm, in minutes: demonstrations, training, export, deployment, success rates.

    edgevla demo              *follow the cube*, at rest and on a conveyor (about ten minutes on two cores)
    edgevla demo --quick      every step once and small, to see that it works (about one minute; learns nothing)
    edgevla demo --task aloha/transfer_cube
                              another simulated task: demonstrations, training, bundle, success; hours for two arms in
                              physics, and the same command goes on where it was

Everything lands in demo-runs/<date>/, or with --task in demo-runs/<task>/: datasets, training runs, policy bundles,
logs, pictures, results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from edgevla.simulated import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="NAME", help="teach only this simulated task: " + ", ".join(TASKS))
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: small, untrained, under two minutes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of demonstrations, training and trials")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: below demo-runs/")
    parser.add_argument(
        "--controls", action="store_true", help="also run what must fail: black images, a misaligned executor"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON; progress goes to stderr"
    )


def run(args: argparse.Namespace) -> int:
    import json
    import signal
    import sys

    from edgevla.demo.story import FULL, QUICK, Story, default_folder
    from edgevla.demo.table import closing_words

    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started is ended first
        signal.signal(number, signal.default_int_handler)
    stream = sys.stderr if args.json else sys.stdout
    if args.task is not None:
        return _one_task(args, lambda text: print(text, file=stream, flush=True))
    story = Story(
        args.output or default_folder(),
        QUICK if args.quick else FULL,
        seed=args.seed,
        with_controls=args.controls,
        say=lambda text: print(text, file=stream, flush=True),
    )
    results = story.tell()
    print(json.dumps(results, indent=1) if args.json else closing_words(results))
    return 0 if results["passed"] else 1


def _one_task(args: argparse.Namespace, say: Callable[[str], None]) -> int:
    import json

    from edgevla.demo.lesson import OneTask, closing_words

    folder = args.output or Path("demo-runs") / args.task.replace("/", "-")
    lesson = OneTask(
        args.task, folder, is_quick=args.quick, seed=args.seed, with_controls=args.controls, say=say
    )
    info = lesson.tell()
    print(json.dumps(info, indent=1) if args.json else closing_words(info, folder))
    return 0
