"""Draw what was recorded: episodes of a dataset or a run, as pictures, or as files for Rerun and Foxglove.

    edgevla view datasets/cube                                        the first episodes, a picture each
    edgevla view datasets/cube --episode 3,7-9 -o pictures
    edgevla view ~/.local/state/edgevla/runs --rerun run.rrd          the newest run, for Rerun's viewer
    edgevla view RUN --mcap run.mcap                                  for Foxglove, and whoever reads MCAP

A picture has frames of every camera at even times, and below them every joint. Of a run: its timeline, and what the
policy saw in each moment that was saved. With --rerun or --mcap no pictures are drawn, unless -o says where.
Exit code 0: all was drawn; 1: something could not be, each said in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgevla.dataset.reading_options import add_reading_arguments, reading_of

if TYPE_CHECKING:
    from edgevla.flight.reader import Run
    from edgevla.view.scene import Scene

FIRST = 4
"""Episodes that are drawn where nobody says which."""
READING = ("features", "without", "task_from")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", help="folder of a dataset or run (of a folder of runs the newest), or a dataset's hub id"
    )
    parser.add_argument(
        "--episode",
        metavar="EPISODES",
        help=f"such as 3 or 3,7-9 (both ends) or 0:40 (without 40); default: the first {FIRST}",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="where the pictures go; default: views/NAME"
    )
    parser.add_argument("--rerun", metavar="FILE.rrd", type=Path, help="write a file for Rerun's viewer")
    parser.add_argument(
        "--mcap", metavar="FILE.mcap", type=Path, help="write an MCAP file, as Foxglove reads"
    )
    add_reading_arguments(parser.add_argument_group("how a dataset is read"))


def run(args: argparse.Namespace) -> int:
    from edgevla.errors import UsageError
    from edgevla.flight.reader import run_folder

    path = Path(args.subject).expanduser()
    if (folder := run_folder(path)) is None:
        return _view_dataset(args)
    for option in ("episode", *READING):
        if getattr(args, option) is not None:
            name = "feature" if option == "features" else option.replace("_", "-")
            raise UsageError(f"--{name} is for datasets, and {path} is a run")
    return _view_run(args, folder)


# -- a dataset ----------------------------------------------------------------------------------------------


def _view_dataset(args: argparse.Namespace) -> int:
    from edgevla.dataset.chosen import episodes_text, parse_episodes
    from edgevla.dataset.reader import episode_numbers, open_dataset
    from edgevla.errors import DatasetError
    from edgevla.view.of_dataset import scene
    from edgevla.view.sheet import write_sheet

    numbers = episode_numbers(args.subject)
    wanted = numbers[:FIRST]
    if args.episode is not None:
        wanted = parse_episodes(args.episode, max(numbers, default=-1) + 1, what="--episode")
    elif len(numbers) > FIRST:
        print(f"the first {FIRST} of {len(numbers)} episodes; others with --episode {episodes_text(numbers)}")
    reading = reading_of(args.features, args.without, args.task_from)
    dataset = open_dataset(args.subject, wanted, reading=reading)
    try:
        if not dataset.episodes:
            raise DatasetError(f"episodes {episodes_text(wanted)} of {dataset.root} have no rows")
        scenes = [scene(dataset, episode) for episode in dataset.episodes]
        problems = _export(args, scenes)
        if (folder := _folder(args, dataset.root.resolve().name)) is not None:
            for one in scenes:
                problems += _draw(folder / f"{one.name}.png", partial(write_sheet, one))
    finally:
        dataset.close()
    return _end(problems)


# -- a run --------------------------------------------------------------------------------------------------


def _view_run(args: argparse.Namespace, folder: Path) -> int:
    from edgevla.flight.reader import load
    from edgevla.view.of_run import whole

    run = load(folder)
    scene, problems = whole(run)
    problems += _export(args, [scene])
    place = _folder(args, folder.name)
    if place is not None:
        problems += _run_pictures(run, place)
    return _end(problems)


def _run_pictures(run: Run, folder: Path) -> list[str]:
    """Its timeline, and each saved moment; one that is damaged has been said."""
    from edgevla.errors import UsageError
    from edgevla.flight.findings import find
    from edgevla.flight.frames import NOT_SAVED
    from edgevla.flight.moments import about, moments
    from edgevla.flight.picture import write_picture
    from edgevla.view.of_run import moment
    from edgevla.view.sheet import write_sheet

    problems = []
    if run.n_ticks:
        problems += _draw(folder / "timeline.png", partial(write_picture, run, find(run)))
    for saved in moments(run.folder):
        try:
            scene = moment(run, saved, about(saved))
        except UsageError:
            continue
        problems += _draw(folder / f"{saved.name}.png", partial(write_sheet, scene))
    if not moments(run.folder):
        print(f"no pictures of cameras: {NOT_SAVED}")
    return problems


# -- both ---------------------------------------------------------------------------------------------------


def _folder(args: argparse.Namespace, name: str) -> Path | None:
    """Where pictures go; None where only files for other programs were asked for."""
    if args.output is None and (args.rerun or args.mcap):
        return None
    folder: Path = args.output or Path("views") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _draw(path: Path, write: Callable[[Path], list[str] | None]) -> list[str]:
    """What could not be drawn, in sentences.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from edgevla.errors import MissingExtraError

    try:
        problems = write(path) or []
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise MissingExtraError("eval", "matplotlib", "pictures need it") from error
    print(path)
    return problems


def _export(args: argparse.Namespace, scenes: Sequence[Scene]) -> list[str]:
    problems = []
    if args.rerun:
        from edgevla.view.rerun_file import write_rerun

        problems += write_rerun(scenes, args.rerun)
        print(args.rerun)
    if args.mcap:
        from edgevla.view.mcap_file import write_mcap

        problems += write_mcap(scenes, args.mcap)
        print(args.mcap)
    return problems


def _end(problems: Sequence[str]) -> int:
    for words in dict.fromkeys(problems):
        print(f"edgevla view: {words}", file=sys.stderr)
    return 1 if problems else 0
