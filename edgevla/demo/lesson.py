"""One simulated task from nothing to numbers, by the verbs a person would use; each step is a process of its own.

    demonstrate  ->  train  ->  export  ->  eval (lock-step, places that no demonstration had)

What is there is not made again, and training and evaluation go on where they were interrupted: a task that takes hours
is begun once and called again until it is done.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevla.checkpoints import CHECKPOINTS, last_of, step_of
from edgevla.demo.stage import DemoCommand, run_side_by_side
from edgevla.errors import UsageError
from edgevla.simulated import Task, task_named


@dataclass(frozen=True)
class Lesson:
    """How much of everything a task takes. size: of the pictures. recipe, steps: of the training.

    minutes: all together, about, on two cores.
    """

    n_demos: int
    size: str
    recipe: str
    steps: int
    n_evals: int
    minutes: int


SMALL = Lesson(160, "64x64", "act_small", 1000, 100, 6)
TWO_ARMS = Lesson(200, "120x160", "act_two_arms", 40_000, 200, 420)
LESSONS = {"aloha/transfer_cube": TWO_ARMS, "aloha/insertion": TWO_ARMS}
"""The others are small."""


def lesson_of(task: Task, is_quick: bool) -> Lesson:
    """How much is recorded, trained and tried for a task. is_quick: as little as shows that it runs."""
    lesson = LESSONS.get(task.name, SMALL)
    return Lesson(1, lesson.size, lesson.recipe, 20, 1, 2) if is_quick else lesson


class OneTask:
    """Teaches one task into one folder."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        is_quick: bool,
        seed: int,
        with_controls: bool,
        say: Callable[[str], None],
    ) -> None:
        if seed < 0 or seed > 100_000:
            raise UsageError(f"--seed is {seed}; it must be 0 to 100000")
        self.task = task_named(name)
        self.folder, self.seed, self.with_controls, self._say = folder, seed, with_controls, say
        self.lesson = lesson_of(self.task, is_quick)
        self.dataset, self.training = folder / "dataset", folder / "run"
        self.bundle, self.evaluation = folder / "bundle", folder / "eval"

    def tell(self) -> dict[str, Any]:
        """All steps; what `eval_info.json` says.

        Raises:
            UsageError: the folder belongs to another task.
            EdgeVLAError: a step failed; names its log.
        """
        self._claim()
        lesson = self.lesson
        self._say(f"{self.task.name}: {self.task.instruction}")
        self._say(
            f"About {lesson.minutes} minutes on two cores; after Ctrl-C the same command goes on where it was."
        )
        self._say(f"Everything it makes lands in {self.folder}/\n")
        self._step(1, f"record {lesson.n_demos} demonstrations", self.dataset.exists(), self._demonstrate)
        is_trained = self._trained_steps() >= lesson.steps
        self._step(2, f"train ACT, recipe {lesson.recipe}, {lesson.steps} steps", is_trained, self._train)
        self._step(3, "compile it, compared with PyTorch", self.bundle.exists(), self._export)
        self._step(4, f"{lesson.n_evals} episodes from places it has never seen", False, self._evaluate)
        info: dict[str, Any] = json.loads((self.evaluation / "eval_info.json").read_text())
        return info

    def _claim(self) -> None:
        """What the folder is for is written into it: another task, seed or size does not go on with its data."""
        mine = {"task": self.task.name, "seed": self.seed, "lesson": vars(self.lesson)}
        note = self.folder / "lesson.json"
        if note.is_file():
            if json.loads(note.read_text()) != mine:
                raise UsageError(
                    f"{self.folder} was begun for something else (see {note}); give another --output"
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UsageError(f"{self.folder} is not empty; give another --output, or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(mine, indent=1) + "\n")

    def _step(self, number: int, text: str, is_done: bool, work: Callable[[], None]) -> None:
        if is_done:
            self._say(f"[{number}/4] {text}: done before")
            return
        self._say(f"[{number}/4] {text}")
        began = time.monotonic()
        work()
        self._say(f"      done in {time.monotonic() - began:.0f} s\n")

    def _run(self, name: str, words: list[str]) -> None:
        run_side_by_side([DemoCommand(name, words)], self.folder / "logs", self._say)

    def _demonstrate(self) -> None:
        half = self.folder / "recording"
        shutil.rmtree(half, ignore_errors=True)
        words = [
            "edgevla.robots.trials.demonstrate",
            "--task",
            self.task.name,
            "--episodes",
            str(self.lesson.n_demos),
        ]
        words += ["--size", self.lesson.size, "--seed", str(self.seed), "--jobs", "2", "--output", str(half)]
        self._run("demonstrate", words)
        half.rename(self.dataset)

    def _trained_steps(self) -> int:
        """0: nothing to go on with."""
        checkpoint = last_of(self.training / CHECKPOINTS)
        return 0 if checkpoint is None else max(0, step_of(checkpoint))

    def _train(self) -> None:
        words = ["edgevla", "train"]
        if self._trained_steps():
            words += ["--resume", str(self.training)]
        else:
            shutil.rmtree(self.training, ignore_errors=True)
            words += ["--policy", "act", "--recipe", self.lesson.recipe, "--dataset", str(self.dataset)]
            words += [
                "--steps",
                str(self.lesson.steps),
                "--output",
                str(self.training),
                "--seed",
                str(self.seed),
            ]
            words += ["--device", "cpu"]
        self._run("train", [*words, "--threads", "1"])

    def _export(self) -> None:
        """What was measured with another bundle does not count."""
        shutil.rmtree(self.evaluation, ignore_errors=True)
        words = [
            "edgevla",
            "export",
            str(self.training),
            "-o",
            str(self.bundle),
            "--dataset",
            str(self.dataset),
        ]
        self._run("export", [*words, "--robot", self.task.world, "--name", self.task.name.replace("/", "-")])

    def _evaluate(self) -> None:
        words = ["edgevla", "eval", str(self.bundle), "--task", self.task.name, "--seed", str(self.seed)]
        words += ["--episodes", str(self.lesson.n_evals), "-o", str(self.evaluation)]
        self._run("eval", [*words, *(["--control", "none,black"] if self.with_controls else [])])


def closing_words(info: Mapping[str, Any], folder: Path) -> str:
    """What was reached, where things are, and how to look on."""
    lines = []
    for cell in info["cells"]:
        good, n = cell["aggregated"]["n_success"], cell["aggregated"]["n_episodes"]
        low, high = (round(100 * share) for share in cell["interval"])
        control = "" if cell["control"] == "none" else f", control {cell['control']}"
        lines.append(
            f"{cell['execution']}{control}: {good} of {n} succeeded (95 % interval {low} to {high} %)"
        )
    task = info["conditions"]["task"]
    robot = task_named(task).world
    lines += [
        f"Look at: {folder}/eval (pictures, eval_info.json), {folder}/run/loss.png, {folder}/bundle/report.html",
        f"Watch it live: edgevla deploy {folder}/bundle --robot {robot} --sim --sim-task {task} --monitor",
    ]
    return "\n".join(lines)
