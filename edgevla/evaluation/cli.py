"""Look at what a policy would do before an arm does it: predicted chunks against recorded actions, joint by joint.

    edgevla eval bundles/act --dataset datasets/so101 --episodes 40-49
    edgevla eval runs/act bundles/act bundles/act-int8 --dataset datasets/so101     side by side, same frames and noise

Each POLICY is a bundle, or a checkpoint (a run, a LeRobot folder, a hub id; needs edgevla[train]). All are compared with
what was recorded, with each other, and with an arm that holds still. Best on episodes that were not trained on: train
with --eval-episodes N and name those here. Figures are for joints and recorded states; whether the task succeeds, only
an arm or a simulator tells.
"""

from __future__ import annotations

import argparse
import sys

from edgevla.dataset.reading_options import add_reading_arguments, reading_of
from edgevla.errors import UsageError
from edgevla.launch.options import whole
from edgevla.vocabulary import camera_help, pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "policies",
        nargs="+",
        metavar="POLICY",
        help="bundle or checkpoint; several are compared with the first",
    )
    add("--dataset", metavar="PATH|REPO", help="LeRobot dataset to evaluate on: a folder or a hub id")
    add("--episodes", metavar="LIST", help="episodes such as 0,2-5 or 0:40 (default: all)")
    add("--every", type=whole(1, 10**9), metavar="N",
        help="evaluate every N-th frame (default: so many that it takes about a minute)")  # fmt: skip
    add("--frames", type=whole(1, 10**9), metavar="N", help="evaluate at most N frames, spread evenly")
    add("--camera", action="append", default=[], metavar="NAME=SOURCE",
        help=camera_help("a camera of the dataset"))  # fmt: skip
    add_reading_arguments(parser)
    add("--joint-units", choices=["degrees", "range100"],
        help="units of a checkpoint's joints, where nothing states them")  # fmt: skip
    add("--device", help="where torch computes a checkpoint: cpu, cuda, ... (default: a GPU if there is one)")
    add(
        "--seed",
        type=whole(0, 2**31 - 1),
        default=0,
        metavar="N",
        help="of the noise, the same for all (default 0)",
    )
    add("--pages", type=whole(0, 10**6), default=12, metavar="N",
        help="draw the N episodes with the largest errors (default 12; 0: no pictures)")  # fmt: skip
    add(
        "-o",
        "--output",
        metavar="DIR",
        help="where eval_info.json and pictures go (default: evals/DATASET-TIME)",
    )
    add("--json", action="store_true", help="print eval_info.json on stdout instead of tables")


def run(args: argparse.Namespace) -> int:
    from edgevla.evaluation.on_dataset import OnDataset
    from edgevla.launch.options import check_texts

    check_texts(args)
    if args.dataset is None:
        raise UsageError("say on which recorded episodes: --dataset PATH_OR_REPO")
    if args.every is not None and args.frames is not None:
        raise UsageError("--every and --frames both say how many frames; give one of them")
    stream = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    reading = reading_of(args.features, args.without, args.task_from)
    return OnDataset(args, pairs(args.camera, "--camera"), reading, say).run()
