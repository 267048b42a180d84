"""Episodes of a task that is judged: which settings are compared, what each came to, and the file that keeps them.

A *cell* is one setting: a bundle, how its chunks are executed, the delay injected, a control. All cells of one
evaluation meet the same places. `episodes.jsonl` gets a line as soon as an episode is over, so that what was stopped,
killed or cut off goes on where it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from edgevla.errors import UsageError
from edgevla.strict import Mismatch, UInt, read, write

EPISODES = "episodes.jsonl"
CONTROLS = ("none", "black", "zero-state", "misaligned", "expert")
EXPERT_EXECUTION = "async"
"""The expert is asked at every step, and what it said last is done."""
UNSEEN = 500_000_000
"""Places of evaluations begin at this seed, those of demonstrations at 0: no place is met twice."""


@dataclass(frozen=True)
class Cell:
    """bundle: its folder. label: a short name of it, unique in this evaluation. sha256: of its manifest.

    execution: the kind. blend: actions in which one chunk fades into the next; 0: none. select: chunks of which
    the nearest is taken.
    control: `none`; `black`: the cameras see nothing; `zero-state`: every joint is said to be at 0;
    `misaligned`: a new chunk is started at its action 0 instead of at the action that is due. `expert`: the task's
    scripted expert, which is told where everything is, moves the arm through the same loop: the best there is.
    """

    bundle: str
    label: str
    sha256: str
    execution: str
    delay_ms: float = 0.0
    control: str = "none"
    blend: UInt = 0
    select: UInt = 1

    @property
    def way(self) -> str:
        """How chunks are executed, in words: `async`, `async blend 10`."""
        return way_of(self.execution, self.blend, self.select)

    @property
    def options(self) -> dict[str, Any]:
        """The same, as the command line says it."""
        blend = {"blend": self.blend} if self.blend else {}
        return {"kind": self.execution, **blend, **({"select": self.select} if self.select > 1 else {})}

    @property
    def key(self) -> str:
        """What it is in `episodes.jsonl`, wherever the bundle lies."""
        return f"{self.sha256[:16]}/{self.way}/{self.delay_ms:g}/{self.control}"


def way_of(execution: str, blend: int, select: int) -> str:
    return execution + (f" blend {blend}" if blend else "") + (f" select {select}" if select > 1 else "")


def names_of(cells: Sequence[Cell]) -> list[str]:
    """The shortest names that tell the cells of one evaluation apart: `async 200 ms`, `async blend 10`, `int8 sync`."""
    differs = {name: len({getattr(cell, name) for cell in cells}) > 1 for name in ("label", "delay_ms")}
    return [
        "expert"
        if cell.control == "expert"
        else " ".join(
            [cell.label] * differs["label"]
            + [cell.way]
            + [f"{cell.delay_ms:g} ms"] * differs["delay_ms"]
            + [cell.control] * (cell.control != "none")
        )
        for cell in cells
    ]


def slug_of(cell: Cell) -> str:
    """For names of files: `act-5f0c21-sync-0ms`, `int8-90b7aa-async-200ms-black`, `act-5f0c21-expert`.

    With some of the bundle's hash: two runs into one folder may be of two bundles of the same name.
    """
    parts = [cell.label, cell.sha256[:6]]
    if cell.control != "expert":
        parts += [cell.way, f"{cell.delay_ms:g}ms"]
    text = "-".join([*parts, *([cell.control] if cell.control != "none" else [])])
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


@dataclass(frozen=True)
class Conditions:
    """What all cells of one evaluation have in common, and what would change results if it changed.

    servo_hz: of the control loop; None: the policy's rate. jitter_ms: chunks come so much later at most, evenly spread.
    drop: share of chunks that never come. n_steps: of the denoise loop, None: the bundle's. cameras: the policy's name
    of a camera -> the task's. versions: of whatever computes, by name.
    """

    task: str
    seed: UInt
    way: str = "lock-step"
    servo_hz: float | None = None
    jitter_ms: float = 0.0
    drop: float = 0.0
    n_steps: UInt | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EpisodeResult:
    """What one episode of one cell came to. cell: its key. seed: of the places; with `episode_ix` it names this one.

    sum_reward, max_reward, outcome, place, figures: as the task's judge says. seconds: of the episode, in its own
    time; eval_s: of the machine. n_clipped: ticks at which safety bent a goal; clipped: by reason and joint. delays_ms:
    from each request to its chunk, as injected or measured; None: it never came. infer_ms: of each inference, on this
    machine. seams, within: second differences of the goals where chunks meet, and elsewhere. stopped: why the arm ended
    it itself. video: its file, below the evaluation's folder.
    """

    cell: str
    episode_ix: UInt
    seed: UInt
    success: bool
    sum_reward: float
    max_reward: float
    outcome: str
    place: tuple[float, ...]
    figures: dict[str, float]
    time_to_success_s: float | None
    seconds: float
    eval_s: float
    n_ticks: UInt
    n_starved: UInt
    n_clipped: UInt
    clipped: dict[str, UInt]
    delays_ms: tuple[float | None, ...]
    infer_ms: tuple[float, ...]
    seams: tuple[float, ...]
    within: tuple[float, ...]
    stopped: str = ""
    video: str = ""


class EpisodeJournal:
    """`episodes.jsonl` of one folder: a line with the conditions, then one per episode.

    Open, it is this process's alone. done: episodes by (cell, episode), those of earlier runs included.
    """

    def __init__(self, folder: Path, conditions: Conditions) -> None:
        """
        Raises:
            UsageError: the file belongs to an evaluation under other conditions; names them. Or another process writes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / EPISODES
        self.done: dict[tuple[str, int], EpisodeResult] = {}
        self._file: TextIO = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(
                f"another evaluation is writing into {folder}; choose another --output"
            ) from None
        try:
            self._resume(conditions)
        except BaseException:
            self._file.close()
            raise

    def add(self, episode: EpisodeResult) -> None:
        """Keeps it, also when this process is killed the next moment."""
        self.done[episode.cell, episode.episode_ix] = episode
        self._write(write(episode))

    def of(self, cell: Cell, n: int) -> list[EpisodeResult]:
        """Those of the first n places, in their order."""
        found = (self.done.get((cell.key, number)) for number in range(n))
        return [episode for episode in found if episode is not None]

    def close(self) -> None:
        self._file.close()

    def _write(self, data: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()

    def _resume(self, conditions: Conditions) -> None:
        self._file.seek(0)
        lines = self._file.read().split("\n")
        if lines[-1]:  # torn: whoever wrote it was killed; what follows begins on a line of its own
            self._file.write("\n")
        kept = [line for line in lines if _is_whole(line)]
        if not kept:
            self._file.truncate(0)
            self._write({"conditions": write(conditions)})
            return
        try:
            before = read(Conditions, json.loads(kept[0])["conditions"], "it")
            episodes = [read(EpisodeResult, json.loads(line), "an episode") for line in kept[1:]]
        except (KeyError, TypeError, Mismatch) as error:
            raise UsageError(
                f"{self.path} is of another version of EdgeVLA ({error}); choose another --output"
            ) from None
        _check_same(self.path.parent, before, conditions)
        self.done = {(episode.cell, episode.episode_ix): episode for episode in episodes}


def _is_whole(line: str) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(json.loads(line), dict)
    return False


def _check_same(folder: Path, before: Conditions, now: Conditions) -> None:
    """
    Raises:
        UsageError: something differs that changes results; names the first.
    """
    for name in (f.name for f in fields(Conditions) if f.name != "versions"):
        then, today = getattr(before, name), getattr(now, name)
        if then != today:
            words = name.replace("_", "-")
            raise _other(folder, words, then, today)
    for name in {**before.versions, **now.versions}:
        then, today = before.versions.get(name), now.versions.get(name)
        if then != today:
            raise _other(folder, f"the version of {name}", then, today)


def _other(folder: Path, what: str, then: object, today: object) -> UsageError:
    shown = [("none" if value is None else value) for value in (then, today)]
    return UsageError(
        f"{folder} was begun with {what} {shown[0]}, now it is {shown[1]}; go on as it was begun, or choose another "
        "--output"
    )
