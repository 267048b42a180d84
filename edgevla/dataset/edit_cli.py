"""Change a LeRobotDataset v3.0: take episodes out, join datasets, divide one, correct the instruction; and check it.

    edgevla dataset datasets/cube delete 3,7-9
    edgevla dataset datasets/cube merge datasets/cube2 datasets/cube3 -o datasets/all
    edgevla dataset datasets/cube split train=80% val=20% -o datasets/parts
    edgevla dataset datasets/cube retask 'put the red cube into the bowl' 0:20
    edgevla dataset datasets/cube check

Episodes are numbered anew; statistics and indices follow; pictures are not encoded again. A dataset that is changed
where it lies is replaced in one step: whoever is killed on the way leaves the old one or the new one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPISODES_HELP = "such as 3 or 0,2-5 (both ends) or 0:40 (without 40)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DIR", help="folder of the dataset")
    acts = parser.add_subparsers(dest="act", metavar="WHAT", required=True)

    delete = acts.add_parser("delete", help="take episodes out")
    delete.add_argument("episodes", metavar="EPISODES", help=EPISODES_HELP)
    _add_output(delete, is_needed=False)

    merge = acts.add_parser("merge", help="put other datasets behind this one, into a new one")
    merge.add_argument("others", nargs="+", type=Path, metavar="OTHER", help="folder of another dataset")
    _add_output(merge, is_needed=True)

    split = acts.add_parser("split", help="divide it into new ones, OUT/NAME each")
    split.add_argument(
        "specs",
        nargs="+",
        metavar="NAME=EPISODES",
        help="episodes, or a share in percent: train=80%% val=20%%",
    )
    _add_output(split, is_needed=True)

    retask = acts.add_parser("retask", help="give episodes another instruction")
    retask.add_argument("task", metavar="TASK", help="the instruction, in words")
    retask.add_argument("episodes", nargs="?", metavar="EPISODES", help=f"{EPISODES_HELP}; default: all")
    _add_output(retask, is_needed=False)

    check = acts.add_parser("check", help="read all of it and say what is wrong, as `edgevla inspect` does")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _add_output(parser: argparse.ArgumentParser, *, is_needed: bool) -> None:
    otherwise = "" if is_needed else "; default: the dataset itself is changed"
    parser.add_argument(
        "-o", "--output", type=Path, required=is_needed, metavar="OUT", help=f"a new folder{otherwise}"
    )


def run(args: argparse.Namespace) -> int:
    from edgevla.errors import DatasetError

    args.dataset = args.dataset.expanduser()
    if not args.dataset.is_dir():
        raise DatasetError(f"there is no dataset folder {args.dataset}", file=str(args.dataset))
    if args.act == "check":
        return _check(args)
    stands_in_it = _stands_in(args.dataset)
    print(_edit(args))
    if stands_in_it and not _stands_in(args.dataset):
        print('this shell still stands in the old folder, which is removed: cd "$PWD"', file=sys.stderr)
    return 0


def _stands_in(folder: Path) -> bool:
    """Whether the current folder is this one or lies in it; not, once it is removed."""
    try:
        return Path.cwd().is_relative_to(folder.resolve())
    except FileNotFoundError:
        return False


def _edit(args: argparse.Namespace) -> str:
    from edgevla.dataset import edit

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if args.act == "delete":
        return edit.delete(args.dataset, args.episodes, args.output, say)
    if args.act == "merge":
        return edit.merge(args.dataset, args.others, args.output, say)
    if args.act == "split":
        return edit.split(args.dataset, args.specs, args.output, say)
    return edit.retask(args.dataset, args.task, args.episodes, args.output, say)


def _check(args: argparse.Namespace) -> int:
    from edgevla import inspect_cli

    parser = argparse.ArgumentParser()  # inspect's own, so that an option it gains is here with its default
    inspect_cli.add_arguments(parser)
    return inspect_cli.run(parser.parse_args(["--json"] * args.json + ["--", str(args.dataset)]))
