"""Plays episodes one after the other and keeps what there is to look at: in this process, or in one of several.

As a process (`python -m edgevla.robots.trials.worker`) it reads JSON lines on standard input: what is evaluated, then
`[cell, episode]` for each job; and answers each with a line. It ends when its input does, so whoever started it may be
killed at any moment.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgevla.errors import EdgeVLAError, made_again
from edgevla.evaluation.episodes import Cell, Conditions, EpisodeResult, slug_of
from edgevla.simulated import Task
from edgevla.strict import read, write

from ..world.contract import Painter
from .contest import Contest, Played
from .film import CELL_PX, HEIGHT, WIDTH, draw_strip, save_picture, save_video

Videos = Literal["none", "failures", "all"]
Job = tuple[int, int]
"""Number of the cell, of the episode."""
STRIPS, VIDEOS = "strips", "videos"
SHOWN = 4
"""Episodes of each cell on the contact sheet."""


@dataclass(frozen=True)
class Assignment:
    """All that a worker must know. folder: where pictures and videos go."""

    conditions: Conditions
    cells: tuple[Cell, ...]
    folder: str
    videos: Videos = "none"


def strip_of(folder: Path, slug: str, number: int) -> Path:
    """The strip of pictures of one episode."""
    return folder / STRIPS / f"{slug}-ep{number:03d}.png"


class TrialWorker:
    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self._contest = Contest(assignment.conditions)
        self._album = Album(assignment, self._contest.task, self._contest.painter)

    def close(self) -> None:
        self._contest.close()

    def play(self, job: Job) -> EpisodeResult:
        """One episode; its video or strip is written.

        Raises:
            EdgeVLAError: it could not be played; says which.
        """
        number_of_cell, number = job
        cell = self.assignment.cells[number_of_cell]
        try:
            episode, played = self._contest.play(cell, number)
        except EdgeVLAError as error:
            where = f"{slug_of(cell)}, episode {number}"
            raise made_again(type(error), f"{where}: {error}", vars(error)) from error
        return self._album.keep(cell, episode, played)


class Album:
    """What there is to look at of episodes."""

    def __init__(self, assignment: Assignment, task: Task, painter: Painter) -> None:
        self.assignment, self._task, self._painter = assignment, task, painter
        self._folder = Path(assignment.folder)
        self._camera = task.cameras[0]
        self._opened: set[tuple[int, int]] = set()

    def keep(self, cell: Cell, episode: EpisodeResult, played: Played) -> EpisodeResult:
        """The same, with the name of its video; that or a strip is written where it is wanted."""
        slug, number = slug_of(cell), episode.episode_ix
        if not played.scenes:
            return episode
        if number < SHOWN:
            self._open(CELL_PX, CELL_PX)
            caption = (slug, f"episode {number}: {episode.outcome}")
            image = draw_strip(self._painter, self._camera, played.scenes, caption, episode.success)
            save_picture(strip_of(self._folder, slug, number), image)
        return replace(episode, video=self._film(slug, episode, played))

    def _film(self, slug: str, episode: EpisodeResult, played: Played) -> str:
        """Its name below the folder; empty where none is wanted."""
        videos = self.assignment.videos
        if videos == "none" or (videos == "failures" and episode.success):
            return ""
        self._open(WIDTH, HEIGHT)
        name = f"{slug}-ep{episode.episode_ix:03d}-{episode.outcome.replace(' ', '-')}.mp4"
        path = self._folder / VIDEOS / name
        save_video(path, self._painter, self._camera, played.scenes, self._task.fps)
        return f"{VIDEOS}/{name}"

    def _open(self, width: int, height: int) -> None:
        if (width, height) not in self._opened:
            self._painter.open(self._camera, width, height)
            self._opened.add((width, height))


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    worker = None
    for line in sys.stdin:
        try:
            if worker is None:
                worker = TrialWorker(read(Assignment, json.loads(line), "the assignment"))
                continue
            cell, number = json.loads(line)
            said = {"episode": write(worker.play((cell, number)))}
        except EdgeVLAError as error:
            said = {"error": [type(error).__name__, str(error)]}
        print(json.dumps(said), file=answers, flush=True)
        if worker is None:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
