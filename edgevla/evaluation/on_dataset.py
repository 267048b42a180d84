"""One evaluation on recorded episodes, from the options to what is written.

An evaluation in a simulated task or on an arm stands beside this one, behind the same verb: edgevla/robots/trials.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edgevla.bundle import is_bundle, load_bundle
from edgevla.checkpoints import policy_folder
from edgevla.dataset.chosen import parse_episodes
from edgevla.dataset.facts import read_facts
from edgevla.dataset.hub import local_folder
from edgevla.dataset.layout import read_info
from edgevla.dataset.reader import Dataset, open_dataset
from edgevla.dataset.reading import DatasetReading
from edgevla.dataset.reading_options import reading_of
from edgevla.errors import MissingExtraError, UsageError
from edgevla.evaluation.fits import check_rows, check_same_joints, sources_of
from edgevla.evaluation.info import as_json
from edgevla.evaluation.overlap import Overlaps
from edgevla.evaluation.plan import EvaluatedFrame, every_for, plan, some_of
from edgevla.evaluation.replayed import Replay, Seat, check_pictures, replay, seconds_per_frame
from edgevla.evaluation.result import Evaluation, evaluate
from edgevla.evaluation.subjects import Opening, Say, open_subjects
from edgevla.evaluation.table import tables
from edgevla.interruption import Interruption
from edgevla.progress import ProgressLine, columns_of, duration, tell
from edgevla.vocabulary import pairs

INFO = "eval_info.json"
USUAL_S = 60.0
"""So long an evaluation takes where nobody says how many frames."""


N_PAGES = 12


def run(args: argparse.Namespace, say: Say) -> int:
    """The verb."""
    if args.every is not None and args.frames is not None:
        raise UsageError("--every and --frames both say how many frames; give one of them")
    if args.pages is None:
        args.pages = N_PAGES
    reading = reading_of(args.features, args.without, args.task_from)
    return OnDataset(args, pairs(args.camera, "--camera"), reading, say).run()


class OnDataset:
    """One evaluation, step by step."""

    def __init__(
        self, args: argparse.Namespace, cameras: dict[str, str], reading: DatasetReading, say: Say
    ) -> None:
        self.args, self.cameras, self.reading, self.say = args, cameras, reading, say

    def run(self) -> int:
        dataset, n_all = open_episodes(
            self.args.dataset, self.args.episodes, self.reading, remembered_reading(self.args.policies)
        )
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

    def _plan(self, dataset: Dataset, seats: list[Seat], n_all: int) -> tuple[list[EvaluatedFrame], int]:
        """The frames, and every how many-th they are; says it, with the time it will take."""
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
        self, dataset: Dataset, seats: list[Seat], frames: list[EvaluatedFrame], asked: Callable[[], bool]
    ) -> Replay:
        line = ProgressLine(len(frames), "frames", out=sys.stderr)
        done = replay(dataset, seats, frames, show=line.show, asked_to_stop=asked)
        line.close()
        return done

    def _tell(self, evaluation: Evaluation, folder: Path) -> None:
        """As a table, as JSON, as pictures."""
        for old in [folder / "horizon.png", *folder.glob("episode-*.png")]:
            old.unlink(missing_ok=True)
        info = json.dumps(as_json(evaluation), indent=2, allow_nan=False)
        (folder / INFO).write_text(info + "\n")
        if self.args.json:
            tell(info, sys.stdout)
        else:
            self.say("\n" + "\n".join(tables(evaluation, columns_of(sys.stdout))))
        drawn = self._draw(evaluation, folder) if self.args.pages else []
        self.say(f"written to {folder}: " + ", ".join([INFO, *drawn]))

    def _draw(self, evaluation: Evaluation, folder: Path) -> list[str]:
        """Names of the pictures, those of episodes as one."""
        from edgevla.evaluation.pictures import write_pictures

        try:
            written = write_pictures(evaluation, folder, self.args.pages)
        except ModuleNotFoundError:
            self.say(f"no pictures: {MissingExtraError('eval', 'matplotlib')}")
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


def remembered_reading(policies: Sequence[str]) -> DatasetReading:
    """How the training data of the first of these policies that says it were read."""
    for path in policies:
        if is_bundle(Path(path).expanduser()):
            origin = load_bundle(Path(path).expanduser(), verify=False).manifest.provenance.dataset
            found = None if origin is None else origin.reading
        else:
            folder = policy_folder(Path(path).expanduser())
            facts = None if folder is None else read_facts(folder)
            found = None if facts is None else facts.reading
        if found is not None:
            return found
    return DatasetReading()


def open_episodes(
    path: str, episodes: str | None, reading: DatasetReading, remembered: DatasetReading
) -> tuple[Dataset, int]:
    """The dataset, or some episodes of it, and how many it has. remembered: how the policies' data were read.

    Raises:
        DatasetError: not there, empty, damaged. UsageError: episodes that do not exist.
    """
    if episodes is None:
        dataset = open_dataset(path, reading=reading, remembered=remembered)
        return dataset, dataset.n_episodes
    folder, _ = local_folder(path)
    said: Any = read_info(folder).raw.get("total_episodes")
    if not isinstance(said, int) or said < 1:
        said = open_dataset(path).n_episodes
    numbers = parse_episodes(episodes, said)
    return open_dataset(path, numbers, reading=reading, remembered=remembered), said


def claim_output(output: str | None, name: str) -> Path:
    """A folder for what is written: new, empty, or of an earlier evaluation, whose files stay until there are new ones.

    Raises:
        UsageError: it holds something else.
    """
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
