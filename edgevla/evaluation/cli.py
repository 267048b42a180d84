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
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.errors import UsageError
from edgevla.launch.options import whole
from edgevla.vocabulary import camera_help, pairs

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset
    from edgevla.evaluation.plan import Frame
    from edgevla.evaluation.replayed import Replay, Seat
    from edgevla.evaluation.result import Evaluation

INFO = "eval_info.json"
USUAL_S = 60.0
"""So long an evaluation takes where nobody says how many frames."""
Say = Callable[[str], None]


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
    from edgevla.launch.options import check_texts

    check_texts(args)
    if args.dataset is None:
        raise UsageError("say on which recorded episodes: --dataset PATH_OR_REPO")
    if args.every is not None and args.frames is not None:
        raise UsageError("--every and --frames both say how many frames; give one of them")
    stream = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    return _Evaluating(args, pairs(args.camera, "--camera"), say).run()


class _Evaluating:
    """One evaluation on a dataset, step by step."""

    def __init__(self, args: argparse.Namespace, cameras: dict[str, str], say: Say) -> None:
        self.args, self.cameras, self.say = args, cameras, say

    def run(self) -> int:
        from edgevla.evaluation.overlap import Overlaps
        from edgevla.evaluation.result import evaluate
        from edgevla.interruption import Interruption

        dataset, n_all = open_episodes(self.args.dataset, self.args.episodes)
        seats = self._seats(dataset)
        folder = claim_output(self.args.output, dataset.root.resolve().name)
        try:
            with Interruption() as interruption:
                frames, every = self._plan(dataset, seats, n_all)
                overlaps = Overlaps(dataset, n_all, (f.episode for f in frames))
                standing = [overlaps.of(seat.subject.manifest.provenance.dataset) for seat in seats]
                done = self._replay(dataset, seats, frames, lambda: interruption.signal is not None)
            if not done.frames:
                raise done.error or KeyboardInterrupt
            evaluation = evaluate(
                dataset, done, standing, every=every, n_planned=len(frames), seed=self.args.seed
            )
            self._tell(evaluation, folder)
        finally:
            _remove_if_empty(folder)
        if done.error is not None:
            raise done.error
        return 130 if done.stopped else 0

    def _seats(self, dataset: Dataset) -> list[Seat]:
        """Every policy, held against the dataset."""
        from edgevla.evaluation.fits import check_rows, check_same_joints, sources_of
        from edgevla.evaluation.replayed import Seat
        from edgevla.evaluation.subjects import Opening, open_subjects

        opening = Opening(self.args.seed, self.cameras, self.args.joint_units, self.args.device)
        subjects = open_subjects(self.args.policies, dataset, opening, self.say)
        check_same_joints(subjects)
        seats = []
        for subject in subjects:
            sources, notes = sources_of(subject, dataset, self.cameras)
            self.say(subject.text)
            for note in notes:
                self.say(f"note: {note}")
            seats.append(Seat(subject, sources))
        check_rows(dataset, subjects)
        return seats

    def _plan(self, dataset: Dataset, seats: list[Seat], n_all: int) -> tuple[list[Frame], int]:
        """The frames, and every how many-th they are; says it, with the time it will take."""
        from edgevla.evaluation.plan import every_for, plan, some_of
        from edgevla.evaluation.replayed import check_pictures, seconds_per_frame
        from edgevla.progress import duration

        n = seats[0].subject.manifest.n_action_steps
        cost = seconds_per_frame(dataset, seats, plan(dataset.episodes[:1], n, 1)[0])
        episodes, every = dataset.episodes, self.args.every
        if every is None:
            most = self.args.frames or max(1, int(USUAL_S / cost))
            every = every_for(episodes, n, most)
            if len(plan(episodes, n, every)) > most:
                episodes = some_of(episodes, max(1, most // 2))
        frames = plan(episodes, n, every)
        check_pictures(dataset, seats, frames)
        policies = "1 policy" if len(seats) == 1 else f"{len(seats)} policies"
        self.say(
            f"{policies} on {len(frames)} of {dataset.n_frames} frames ({_every(every)}) of {len(episodes)} of "
            f"{n_all} episodes of {dataset.root}: about {duration(cost * len(frames))}"
        )
        return frames, every

    def _replay(
        self, dataset: Dataset, seats: list[Seat], frames: list[Frame], asked: Callable[[], bool]
    ) -> Replay:
        from edgevla.evaluation.replayed import replay
        from edgevla.progress import ProgressLine

        line = ProgressLine(len(frames), "frames", out=sys.stderr)
        done = replay(dataset, seats, frames, show=line.show, asked_to_stop=asked)
        line.close()
        return done

    def _tell(self, evaluation: Evaluation, folder: Path) -> None:
        """As a table, as JSON, as pictures."""
        from edgevla.evaluation.info import as_json
        from edgevla.evaluation.table import tables

        for old in [folder / "horizon.png", *folder.glob("episode-*.png")]:
            old.unlink(missing_ok=True)
        info = json.dumps(as_json(evaluation), indent=2, allow_nan=False)
        (folder / INFO).write_text(info + "\n")
        if self.args.json:
            print(info)
        else:
            self.say("\n" + "\n".join(tables(evaluation)))
        drawn = self._draw(evaluation, folder) if self.args.pages else []
        self.say(f"written to {folder}: " + ", ".join([INFO, *drawn]))

    def _draw(self, evaluation: Evaluation, folder: Path) -> list[str]:
        """Names of the pictures, those of episodes as one."""
        from edgevla.evaluation.pictures import write_pictures

        try:
            written = write_pictures(evaluation, folder, self.args.pages)
        except ModuleNotFoundError:
            self.say('no pictures: matplotlib is not installed. Install it with: pip install "edgevla[eval]"')
            return []
        n = len(written) - 1
        every = (
            ""
            if n == len(evaluation.episodes)
            else f" of the {n} worst of {len(evaluation.episodes)} episodes"
        )
        return ["horizon.png", f"episode-*.png{every}"]


def _every(n: int) -> str:
    """`every frame`, `every 2nd`, `every 15th`."""
    if n == 1:
        return "every frame"
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"every {n}{ending}"


def open_episodes(path: str, episodes: str | None) -> tuple[Dataset, int]:
    """The dataset, or some episodes of it, and how many it has.

    Raises:
        DatasetError: not there, empty, damaged. UsageError: episodes that do not exist.
    """
    from edgevla.dataset.chosen import parse_episodes
    from edgevla.dataset.hub import local_folder
    from edgevla.dataset.layout import read_info
    from edgevla.dataset.reader import open_dataset

    if episodes is None:
        dataset = open_dataset(path)
        return dataset, dataset.n_episodes
    folder, _ = local_folder(path)
    said: Any = read_info(folder).raw.get("total_episodes")
    if not isinstance(said, int) or said < 1:
        dataset = open_dataset(path)
        said = dataset.n_episodes
    return open_dataset(path, parse_episodes(episodes, said)), said


def claim_output(output: str | None, name: str) -> Path:
    """A folder for what is written: new, empty, or of an earlier evaluation, whose files stay until there are new ones.

    Raises:
        UsageError: it holds something else.
    """
    from datetime import datetime

    if output is None:
        for again in range(1000):
            folder = Path("evals") / f"{name}-{datetime.now():%m%d-%H%M%S}{f'-{again}' if again else ''}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
    folder = Path(output or "evals").expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / INFO).is_file():
        raise UsageError(f"{folder} holds something else than an evaluation; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()
    return folder


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
