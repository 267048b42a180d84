"""`edgevla eval --task`: from the options to what is written. The cells' episodes are played in lock-step by `crew`, or
one after the other through the real processes by `real_time`; what is made of them is the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edgevla import __version__
from edgevla.engines.options import n_cores
from edgevla.errors import EdgeVLAError, MissingExtraError, UsageError
from edgevla.evaluation.episodes import (
    EPISODES,
    EXPERT_EXECUTION,
    Cell,
    Conditions,
    EpisodeJournal,
    EpisodeResult,
)
from edgevla.evaluation.verdict_info import as_json
from edgevla.evaluation.verdict_table import expected, tables, what_it_shows
from edgevla.evaluation.verdicts import Evaluated, results_of
from edgevla.interruption import Interruption
from edgevla.launch.options import whole
from edgevla.progress import ProgressLine, columns_of, duration, tell
from edgevla.seam_methods import ONE_PER_REQUEST
from edgevla.serve.transport import is_served
from edgevla.simulated import Task, task_named
from edgevla.vocabulary import once, pairs

from . import crew, real_time
from .entrants import Entrant, entrant
from .film import check_video, save_sheet
from .inspection import Inspection
from .worker import SHOWN, Assignment, Job, strip_of

INFO = "eval_info.json"
SHEET = "sheet.png"
N_EPISODES, MOST_EPISODES = 100, 1_000_000
COMPUTE = ("numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "mujoco")
"""Packages whose version may change a result."""
Say = Callable[[str], None]


def run(args: argparse.Namespace, say: Say) -> int:
    """The verb. Exit code: 130 interrupted, 1 less success than expected."""
    return OnTask(args, say).run()


class OnTask:
    """One evaluation, step by step."""

    def __init__(self, args: argparse.Namespace, say: Say) -> None:
        self.args, self.say = args, say
        self.task = task_named(args.task)
        self.n = n_episodes_of(args.episodes)
        self.entrants = [entrant(place) for place in args.policies]
        self.cells = cells_of(self.entrants, args)
        if args.expect is not None and all(cell.control != "none" for cell in self.cells):
            raise UsageError("--expect judges no control, and there are only controls; add: --control none")
        self.conditions = conditions_of(args, self.task)
        if args.videos not in (None, "none"):
            check_video()
        if args.real_time:
            _check_real_time(args)
        self.notes = self._check()

    def run(self) -> int:
        folder = claim_output(self.args.output, self.task.name)
        journal = EpisodeJournal(folder, self.conditions)
        failure: EdgeVLAError | None = None
        with Interruption() as interruption:
            try:
                self._announce(folder, journal)
                self._play(folder, journal, lambda: interruption.signal is not None)
            except EdgeVLAError as error:
                failure = error
            is_cut = interruption.signal is not None
            journal.close()
            if not journal.done:
                _remove_if_unused(folder)
                raise failure or KeyboardInterrupt
            stopped = "interrupted" if is_cut else None if failure is None else str(failure)
            is_enough = self._tell(folder, journal, stopped)
        if failure is not None:
            raise failure
        return 130 if is_cut else 0 if is_enough else 1

    # -- before -----------------------------------------------------------------------------------------------------

    def _check(self) -> list[str]:
        """Whether bundles, settings, task and robot belong together; sentences about what is not quite as asked."""
        inspection = Inspection(self.task, self.conditions)
        manifests = {one.sha256: one.manifest for one in self.entrants}
        self.unit = inspection.unit
        notes = [note for cell in self.cells for note in inspection.notes(cell, manifests[cell.sha256])]
        return list(dict.fromkeys(notes))

    def _announce(self, folder: Path, journal: EpisodeJournal) -> None:
        todo, there = len(self._jobs(journal)), len(self.cells) * self.n - len(self._jobs(journal))
        cells = "1 cell" if len(self.cells) == 1 else f"{len(self.cells)} cells"
        episodes = "1 episode" if self.n == 1 else f"{self.n} episodes"
        way = "in lock-step" if self.conditions.way == "lock-step" else "in real time"
        self.say(
            f"{self.task.name}: {cells} x {episodes} {way}, places of seed {self.conditions.seed} that no "
            f"demonstration had; written to {folder}"
        )
        for sentence in what_it_shows(self.n, len(self.cells)):
            self.say(sentence)
        for note in self.notes:
            self.say(f"note: {note}")
        if there:
            self.say(f"{there} of {there + todo} episodes are there already; going on")

    # -- while --------------------------------------------------------------------------------------------------------

    def _jobs(self, journal: EpisodeJournal) -> list[Job]:
        """Place by place, so that what is ended early has met the same places in every cell."""
        return [
            (k, number)
            for number in range(self.n)
            for k, cell in enumerate(self.cells)
            if (cell.key, number) not in journal.done
        ]

    def _play(self, folder: Path, journal: EpisodeJournal, asked_to_stop: Callable[[], bool]) -> None:
        jobs = self._jobs(journal)
        if not jobs:
            return
        assignment = Assignment(
            self.conditions, tuple(self.cells), str(folder.resolve()), self.args.videos or "none"
        )
        n_jobs = min(self.args.jobs or max(1, n_cores() - 1), len(jobs))
        line = ProgressLine(len(jobs), "episodes", out=sys.stderr)
        try:
            for done, episode in enumerate(self._episodes(assignment, jobs, n_jobs, asked_to_stop), 1):
                journal.add(episode)
                if done == 1 and len(jobs) > 1:
                    line.close()
                    self._say_how_long(episode, len(jobs), n_jobs)
                good = sum(e.success for e in journal.done.values())
                line.show(done, f"success so far {good} of {len(journal.done)}")
        finally:
            line.close()

    def _episodes(
        self, assignment: Assignment, jobs: Sequence[Job], n_jobs: int, asked_to_stop: Callable[[], bool]
    ) -> Iterator[EpisodeResult]:
        if self.conditions.way == "real time":
            return real_time.play(assignment, jobs, asked_to_stop)
        return crew.play(assignment, jobs, n_jobs, asked_to_stop)

    def _say_how_long(self, first: EpisodeResult, n: int, n_jobs: int) -> None:
        at_once = "" if n_jobs == 1 else f", {n_jobs} at a time"
        self.say(
            f"{n} episodes, {first.eval_s:.1f} s the first{at_once}: about {duration(n * first.eval_s / n_jobs)}"
        )

    # -- after --------------------------------------------------------------------------------------------------------

    def _tell(self, folder: Path, journal: EpisodeJournal, stopped: str | None) -> bool:
        """As a table, as JSON, as pictures; whether it was as good as expected."""
        results = results_of(self.cells, journal, self.n)
        command = shlex.join(["edgevla", *sys.argv[1:]])
        e = Evaluated(
            self.conditions, results, self.unit, self.n, self.notes, machine_facts(), command, stopped
        )
        info = json.dumps(as_json(e), indent=1, allow_nan=False)
        part = folder / f"{INFO}.part"
        part.write_text(info + "\n")
        part.replace(folder / INFO)
        if self.args.json:
            tell(info, sys.stdout)
        else:
            self.say("\n" + "\n".join(tables(e, columns_of(sys.stdout))))
        self.say(f"\nwritten to {folder}: " + ", ".join([INFO, EPISODES, *self._draw(e, folder)]))
        if stopped == "interrupted":
            self.say("ended early (interrupted); the same command with the same --output goes on from here")
        if self.args.expect is None:
            return True
        is_enough, sentences = expected(results, self.args.expect)
        for sentence in sentences:
            self.say(sentence)
        return is_enough

    def _draw(self, e: Evaluated, folder: Path) -> list[str]:
        """Names of the pictures."""
        drawn = []
        strips = [strip_of(folder, r.slug, number) for r in e.results for number in range(SHOWN)]
        if save_sheet(folder / SHEET, strips):
            drawn.append(SHEET)
        try:
            from edgevla.evaluation.verdict_pictures import write_picture

            drawn.append(write_picture(e, folder).name)
        except ModuleNotFoundError:
            self.say(f"no picture: {MissingExtraError('eval', 'matplotlib')}")
        n_videos = sum(bool(episode.video) for r in e.results for episode in r.episodes)
        return drawn + ([f"{n_videos} videos"] if n_videos else [])


# -- from options -----------------------------------------------------------------------------------------------------


def n_episodes_of(text: str | None) -> int:
    """
    Raises:
        UsageError: no whole number, or out of range.
    """
    try:
        return int(whole(1, MOST_EPISODES)(text or str(N_EPISODES)))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--episodes {error}: how many places of the task, each is met once") from None


def cells_of(entrants: Sequence[Entrant], args: argparse.Namespace) -> list[Cell]:
    """Every bundle with every execution, blend, number to select from, delay and control.

    Raises:
        UsageError: a bundle or a setting is named twice.
    """
    by_sha: dict[str, Entrant] = {}
    for one in entrants:
        if one.sha256 in by_sha:
            raise UsageError(
                f"{one.place} and {by_sha[one.sha256].place} are the same bundle; name every bundle once"
            )
        by_sha[one.sha256] = one
    labels = _labels(entrants)
    executions = once(args.execution or [], "--execution")
    blends, selects = once(args.blend or [0], "--blend"), once(args.select or [1], "--select")
    for one in entrants:
        if max(selects) > 1 and is_served(one.place):
            raise UsageError(f"--select {max(selects)}: {one.place}: {ONE_PER_REQUEST}")
    controls = args.control or ["none"]
    cells = [
        Cell(one.place, label, one.sha256, execution, delay, control, blend, select)
        for one, label in zip(entrants, labels, strict=True)
        for execution in (executions or [str(one.manifest.execution.default["kind"])])
        for blend in blends
        for select in selects
        for delay in (args.delay_ms or [0.0])
        for control in controls
        if control != "expert"
    ]
    if "expert" in controls:  # one cell: no bundle acts in it, only its rate and its caps of speed are used
        first = entrants[0]
        cells.append(Cell(first.place, labels[0], first.sha256, EXPERT_EXECUTION, control="expert"))
    return cells


def _labels(entrants: Sequence[Entrant]) -> list[str]:
    """Names of the folders; where those are equal, their paths."""
    names = [one.name for one in entrants]
    return names if len(set(names)) == len(names) else [one.place for one in entrants]


def conditions_of(args: argparse.Namespace, task: Task) -> Conditions:
    return Conditions(
        task=task.name,
        seed=args.seed,
        way="real time" if args.real_time else "lock-step",
        servo_hz=args.servo_hz,
        jitter_ms=args.jitter_ms or 0.0,
        drop=args.drop or 0.0,
        n_steps=args.n_steps,
        cameras=pairs(args.camera, "--camera"),
        versions=versions_for(task),
    )


def _check_real_time(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: an option that only a virtual clock can carry out.
    """
    for name in ("control", "jitter_ms", "drop", "jobs", "camera"):
        if getattr(args, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for lock-step; it would have no effect with --real-time"
            )


def versions_for(task: Task) -> dict[str, str]:
    """Of what computes an episode; of MuJoCo and its renderer only where the task needs them."""
    found = {"edgevla": __version__}
    for package in COMPUTE:
        if package == "mujoco" and not task.has_physics:
            continue
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "mujoco" in found:
        from ..world.physics.gl import find_platform

        found["renderer"] = find_platform()
    return found


def machine_facts() -> dict[str, Any]:
    """The computer that the figures are of."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": n_cores(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def claim_output(output: str | None, name: str) -> Path:
    """A folder for what is written: new, empty, or of an earlier evaluation of a task.

    Raises:
        UsageError: it holds something else.
    """
    if output is None:
        output = str(Path("evals") / f"{name.replace('/', '-')}-{datetime.now():%m%d-%H%M%S}")
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EPISODES).is_file():
        raise UsageError(
            f"{folder} holds something else than an evaluation of a task; choose another --output"
        )
    return folder


def _remove_if_unused(folder: Path) -> None:
    (folder / EPISODES).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
