"""*Follow the cube* from nothing to numbers, by the verbs a person would use; each step is a process of its own.

    demonstrate  ->  train  ->  export  ->  eval --real-time (real processes, serial emulator)  ->  eval (lock-step)

Two tasks run side by side, one core each. The evaluations meet places that no demonstration had; what is compared is
compared on the same places. `results.json` holds all that the closing table shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevla.demo.stage import DemoCommand, run_side_by_side
from edgevla.errors import EdgeVLAError, UsageError

DEMONSTRATE = "edgevla.robots.trials.demonstrate"
DELAY_MS = 200


@dataclass(frozen=True)
class Size:
    """How much of everything, per task (rest, conveyor). rollouts: episodes in wall-clock time."""

    demos: tuple[int, int]
    steps: tuple[int, int]
    trials: tuple[int, int]
    rollouts: tuple[int, int]
    learns: bool = True


FULL = Size(demos=(160, 80), steps=(1000, 1200), trials=(100, 60), rollouts=(6, 5))
QUICK = Size(demos=(4, 2), steps=(20, 20), trials=(2, 2), rollouts=(1, 0), learns=False)
TASKS = ("rest", "conveyor")
"""As folders and the table call them."""
TASK = {"rest": "follow_cube", "conveyor": "follow_cube/conveyor"}
WORDS = {"rest": "cube at rest", "conveyor": "cube on a conveyor"}


@dataclass(frozen=True)
class StoryCell:
    """One line of the table."""

    task: str
    execution: str
    delay_ms: int
    control: str = "none"

    @property
    def name(self) -> str:
        extra = "" if self.control == "none" else f"-{self.control}"
        return f"{self.task}-{self.execution}-{self.delay_ms}ms{extra}"


CELLS = (
    StoryCell("rest", "sync", 0),
    StoryCell("conveyor", "sync", 0),
    StoryCell("conveyor", "async", 0),
    StoryCell("conveyor", "sync", DELAY_MS),
    StoryCell("conveyor", "async", DELAY_MS),
)
CONTROLS = (StoryCell("rest", "sync", 0, "black"), StoryCell("conveyor", "async", DELAY_MS, "misaligned"))


def read_result(folder: Path) -> dict[str, Any]:
    """What the closing table needs of an evaluation of one cell."""
    info = json.loads((folder / "eval_info.json").read_text())
    (cell,) = info["cells"]
    figures = {name: figure["value"] for name, figure in cell["figures"].items()}
    return {
        "task": info["conditions"]["task"],
        **{name: cell[name] for name in ("execution", "delay_ms", "control", "interval")},
        "n": cell["aggregated"]["n_episodes"],
        "n_success": cell["aggregated"]["n_success"],
        "success": cell["aggregated"]["pc_success"] / 100,
        "rms_mm": figures["rms_mm"],
    }


def default_folder() -> Path:
    """A new folder below `demo-runs`, named by the time."""
    return Path("demo-runs") / time.strftime("%Y-%m-%d-%H%M%S")


class Story:
    """One demo, into one folder."""

    def __init__(
        self, folder: Path, size: Size, *, seed: int, with_controls: bool, say: Callable[[str], None]
    ) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty; give another --output, or remove it")
        if seed < 0 or seed > 100_000:
            raise UsageError(f"--seed is {seed}; it must be 0 to 100000")
        self.folder, self.size, self.seed, self._say = folder, size, seed, say
        self.cells = CELLS + (CONTROLS if with_controls else ())
        self.results: dict[str, Any] = {
            "seed": seed,
            "size": asdict(size),
            "folder": str(folder),
            "seconds": {},
            "trials": [],
            "rollouts": [],
        }
        self._began = time.monotonic()

    def tell(self) -> dict[str, Any]:
        """All steps; the results.

        Raises:
            EdgeVLAError: a step failed; names its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        n_rest, n_belt = self.size.demos
        self._say("Follow the cube: a simulated SO101 learns to hold its gripper above a red cube,")
        self._say(f"at rest and on a conveyor. Everything it makes lands in {self.folder}/\n")
        self._step(1, f"record {n_rest} + {n_belt} demonstrations of a scripted expert", self._demonstrate)
        self._step(2, "train a small ACT policy for each task (edgevla train)", self._train)
        self._step(3, "compile them into ONNX bundles, compared with PyTorch (edgevla export)", self._export)
        self._step(
            4,
            "deploy: real processes, real serial protocol, emulated servos (edgevla deploy --sim)",
            self._deploy,
        )
        self._step(
            5, "measure success over places it has never seen (exact, on a virtual clock)", self._measure
        )
        self.results["seconds"]["all"] = round(time.monotonic() - self._began, 1)
        self.results["passed"] = self._passed()
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
        return self.results

    def _step(self, number: int, text: str, work: Callable[[], None]) -> None:
        self._say(f"[{number}/5] {text}")
        began = time.monotonic()
        work()
        seconds = time.monotonic() - began
        self.results["seconds"][work.__name__.strip("_")] = round(seconds, 1)
        self._say(f"      done in {seconds:.0f} s\n")

    # -- the steps ----------------------------------------------------------------------------------------

    def _run(self, works: list[DemoCommand], at_once: int = 2) -> list[DemoCommand]:
        run_side_by_side(works, self.folder / "logs", self._say, at_once=at_once)
        return works

    def _demonstrate(self) -> None:
        self._run(
            [
                DemoCommand(f"demonstrate {task}", [DEMONSTRATE, "--task", TASK[task], "--output",
                     str(self.folder / "datasets" / task), "--episodes", str(n), "--seed", str(self.seed)])
                for task, n in zip(TASKS, self.size.demos, strict=True)
            ]
        )  # fmt: skip
        for task in TASKS:
            self._run(
                [DemoCommand(f"inspect {task}", ["edgevla", "inspect", str(self.folder / "datasets" / task)])]
            )

    def _train(self) -> None:
        works = []
        for task, steps in zip(TASKS, self.size.steps, strict=True):
            words = ["edgevla", "train", "--policy", "act", "--recipe", "act_small", "--threads", "1"]
            words += ["--dataset", str(self.folder / "datasets" / task), "--steps", str(steps)]
            words += [
                "--output",
                str(self.folder / "runs" / task),
                "--seed",
                str(self.seed),
                "--device",
                "cpu",
            ]
            works.append(DemoCommand(f"train {task}", words))
        self._run(works)

    def _export(self) -> None:
        works = []
        for task in TASKS:
            words = ["edgevla", "export", str(self.folder / "runs" / task), "-o", str(self._bundle(task))]
            words += ["--dataset", str(self.folder / "datasets" / task), "--name", f"follow-{task}"]
            works.append(DemoCommand(f"export {task}", words))
        self._run(works)

    def _bundle(self, task: str) -> Path:
        return self.folder / "bundles" / task

    def _deploy(self) -> None:
        """One after the other: wall-clock runs must not take each other's time."""
        settings = (("rest", "sync", 0), ("conveyor", "async", DELAY_MS))
        for (task, execution, delay), n in zip(settings, self.size.rollouts, strict=True):
            if not n:
                continue
            folder = self.folder / "evals" / f"deploy-{task}"
            words = self._eval_words(StoryCell(task, execution, delay), n, folder)
            result = self._roll_out(f"deploy {task}", [*words, "--real-time"], folder)
            summaries = list(folder.glob("deploy/*/latest/summary.json"))  # of its one cell
            result["summary"] = json.loads(summaries[0].read_text()) if summaries else {}
            self.results["rollouts"].append(result)
            good, seen = result["n_success"], result["n"]
            self._say(f"      {WORDS[task]}, {execution}, {delay} ms: {good} of {seen} episodes")

    def _roll_out(self, name: str, words: list[str], folder: Path) -> dict[str, Any]:
        """Once more when a machine that is busy with other things has tripped the guardian: the verb goes on where it
        was.

        Raises:
            EdgeVLAError: it failed twice.
        """
        try:
            return self._evaluated(DemoCommand(name, words), folder)
        except EdgeVLAError as error:
            self._say(f"      the deployment stopped itself, as it should: {error}")
            self._say("      once more (is this machine busy with other work?)")
        return self._evaluated(DemoCommand(f"{name} again", words), folder)

    def _evaluated(self, work: DemoCommand, folder: Path) -> dict[str, Any]:
        self._run([work])
        return read_result(folder)

    def _eval_words(self, cell: StoryCell, n: int, folder: Path) -> list[str]:
        words = ["edgevla", "eval", str(self._bundle(cell.task)), "--task", TASK[cell.task]]
        words += ["--execution", cell.execution, "--delay-ms", str(cell.delay_ms), "--episodes", str(n)]
        return [*words, "--seed", str(self.seed), "-o", str(folder)]

    def _measure(self) -> None:
        works = []
        for cell in self.cells:
            n = self.size.trials[TASKS.index(cell.task)]
            words = self._eval_words(cell, n, self.folder / "evals" / cell.name)
            words += ["--control", cell.control, "--jobs", "1"]
            works.append(DemoCommand(f"eval {cell.name}", words))
        self._run(works)
        self.results["trials"] = [read_result(self.folder / "evals" / cell.name) for cell in self.cells]

    # -- was it good? -------------------------------------------------------------------------------------

    def success(self, cell: StoryCell) -> float:
        """Share of trials of one cell that succeeded."""
        index = self.cells.index(cell)
        return float(self.results["trials"][index]["success"])

    def _passed(self) -> bool:
        """Whether the figures are what the README promises; a smoke run passes when every step ran."""
        if not self.size.learns:
            return True
        rest, _, quick, late, ahead = (self.success(cell) for cell in CELLS)
        return rest >= 0.95 and quick >= 0.9 and ahead >= 0.9 and late < 0.2
