"""`episodes.jsonl`: one line as soon as something is known, on the disk before the next thing happens.

    {"evaluation": {...}}                                 what is compared with what: the first line
    {"verdict": 0, "round": 0, "place": 0, "success": true, ...}
    {"rollout": 0, "episode": 0}                          verdict 0 lies in the dataset as episode 0
    {"correction": 0, "success": false}
    {"taken_back": 0}                                     it is run again
    {"void": "the camera was lost", "round": 0, "place": 1}

Which policy a verdict is about follows from the order (`rounds.py`); nobody who reads along is told. A line that a
power cut has torn is cut off; what it would have said is run again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgevla import strict
from edgevla.errors import DatasetError, UsageError
from edgevla.evaluation.episodes import way_of
from edgevla.strict import UInt

EPISODES = "episodes.jsonl"


@dataclass(frozen=True)
class Contestant:
    """One of the policies compared. name: unique. sha256: of its bundle. execution, blend, select: as of a `Cell`."""

    name: str
    bundle: str
    sha256: str
    execution: str
    blend: UInt = 0
    select: UInt = 1

    @property
    def way(self) -> str:
        return way_of(self.execution, self.blend, self.select)


@dataclass(frozen=True)
class CommonSetting:
    """What all episodes have in common; a later session must have the same. seed: of noise, and of a simulated world's
    places. order_seed: drawn once."""

    policies: tuple[Contestant, ...]
    robot: str
    task: str
    seconds: float
    is_sim: bool
    n_steps: UInt | None
    servo_hz: float | None
    sim_task: str | None = None
    seed: UInt = 0
    order_seed: UInt = 0
    edgevla: str = ""


@dataclass(frozen=True)
class HumanVerdict:
    """verdict: its number in the file. seconds: from the first motion to the key, or to the end of time. figures: what
    was measured meanwhile. simulated: what a simulated world's judge says; nobody was told before the key."""

    verdict: UInt
    round: UInt
    place: UInt
    success: bool
    seconds: float
    at: str
    figures: dict[str, Any] = field(default_factory=dict)
    simulated: dict[str, Any] | None = None


class Journal:
    """The file, open for this process alone. verdicts: those that count, by (round, place)."""

    def __init__(self, folder: Path, setting: CommonSetting) -> None:
        """
        Raises:
            UsageError: it belongs to another evaluation, says how; or another process has it.
            DatasetError: it is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / EPISODES
        self.setting = setting
        self.verdicts: dict[tuple[int, int], HumanVerdict] = {}
        self.rollouts: dict[int, int] = {}
        """HumanVerdict -> episode of the dataset."""
        self.n_void = 0
        self._numbers = 0
        self.last: HumanVerdict | None = None
        """The newest that counts, of this session or of an earlier one."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._resume()
        except BaseException:
            os.close(self._fd)
            raise

    # -- what happens ------------------------------------------------------------------------------------------------

    def judge(
        self,
        turn: tuple[int, int],
        success: bool,
        seconds: float,
        at: str,
        figures: Mapping[str, Any],
        simulated: Mapping[str, Any] | None = None,
    ) -> HumanVerdict:
        """turn: (round, place).

        Raises:
            OSError: it is not on the disk, so it was not given.
        """
        found = None if simulated is None else dict(simulated)
        made = HumanVerdict(self._numbers, *turn, success, round(seconds, 3), at, dict(figures), found)
        self._write(strict.write(made))
        self._take_verdict(made)
        return made

    def correct(self, success: bool) -> HumanVerdict:
        """The newest verdict was another one."""
        assert self.last is not None
        self._write({"correction": self.last.verdict, "success": success})
        return self._correct(self.last.verdict, success)

    def take_back(self) -> HumanVerdict:
        """The newest verdict does not count; its turn comes again."""
        assert self.last is not None
        last = self.last
        self._write({"taken_back": last.verdict})
        self._take_back(last.verdict)
        return last

    def void(self, turn: tuple[int, int], why: str) -> None:
        """An episode that does not count, and why. turn: its round and place."""
        self._write({"void": why, "round": turn[0], "place": turn[1]})
        self.n_void += 1

    def keep_rollout(self, verdict: int, episode: int) -> None:
        """Which recorded episode shows what was judged. verdict: its number."""
        self._write({"rollout": verdict, "episode": episode})
        self.rollouts[verdict] = episode

    def close(self) -> None:
        os.close(self._fd)

    # -- the file ------------------------------------------------------------------------------------------------------

    def _write(self, data: Mapping[str, Any]) -> None:
        """Whole and on the disk, or not there at all."""
        line = (json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n").encode()
        size = os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            error.filename = str(self.path)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another evaluation writes into {self.path.parent}; end it, or choose another -o"
            ) from None

    def _resume(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole, _, torn = text.rpartition("\n")
        if torn:
            os.ftruncate(self._fd, len(text[: len(text) - len(torn)].encode()))
        lines = whole.split("\n") if whole else []
        if not lines:
            self._write({"evaluation": strict.write(self.setting)})
            _sync_folder(self.path.parent)
            return
        for number, line in enumerate(lines, 1):
            try:
                self._take(json.loads(line), number)
            except (ValueError, KeyError, TypeError, strict.Mismatch) as error:
                raise DatasetError(
                    f"{self.path}, line {number}, is damaged ({error}); take the line out, or choose another -o"
                ) from error

    def _take(self, data: dict[str, Any], number: int) -> None:
        """One line of before."""
        if number == 1:
            self._begin(strict.read(CommonSetting, data["evaluation"], "the evaluation"))
        elif "verdict" in data:
            self._take_verdict(strict.read(HumanVerdict, data, "the verdict"))
        elif "correction" in data:
            self._correct(data["correction"], data["success"])
        elif "taken_back" in data:
            self._take_back(data["taken_back"])
        elif "rollout" in data:
            self.rollouts[data["rollout"]] = data["episode"]
        elif "void" in data:
            self.n_void += 1
        else:
            raise ValueError("it says nothing that is known")

    def _begin(self, before: CommonSetting) -> None:
        """
        Raises:
            UsageError: something differs that changes results.
        """
        now, then = replace(self.setting, order_seed=before.order_seed, edgevla=before.edgevla), before
        for name in (f.name for f in fields(CommonSetting)):
            if getattr(now, name) != getattr(then, name):
                raise UsageError(
                    f"{self.path.parent} holds an evaluation with {_words(name, then)}, and now it is "
                    f"{_words(name, now)}; go on as it was begun, or choose another -o"
                )
        self.setting = now

    def _take_verdict(self, verdict: HumanVerdict) -> None:
        self.verdicts[verdict.round, verdict.place] = self.last = verdict
        self._numbers = verdict.verdict + 1

    def _correct(self, number: int, success: bool) -> HumanVerdict:
        turn, old = self._find(number)
        new = replace(old, success=bool(success))
        self.verdicts[turn] = new
        self.last = new if self.last is not None and self.last.verdict == number else self.last
        return new

    def _take_back(self, number: int) -> None:
        turn, _ = self._find(number)
        del self.verdicts[turn]
        self.last = max(self.verdicts.values(), key=lambda v: v.verdict, default=None)

    def _find(self, number: int) -> tuple[tuple[int, int], HumanVerdict]:
        for turn, verdict in self.verdicts.items():
            if verdict.verdict == number:
                return turn, verdict
        raise KeyError(f"there is no verdict {number}")


def _sync_folder(folder: Path) -> None:
    """So that the file's name is there after a power cut, too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _words(name: str, setting: CommonSetting) -> str:
    value = getattr(setting, name)
    if name == "policies":
        return " and ".join(f"{p.name} ({p.way}, {p.sha256[:8]})" for p in value)
    known = {"is_sim": "--sim", "n_steps": "--n-steps", "servo_hz": "--servo-hz", "sim_task": "--sim-task"}
    known |= {"seconds": "--seconds", "seed": "--seed"}
    return f"{known.get(name, name)} {'not given' if value is None else repr(value)}"
