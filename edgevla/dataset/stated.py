"""`meta/edgevla.json`: what a recording says of itself and LeRobot's own files have no place for.

One JSON object, all of it optional:

    joint_units        `degrees` or `range100`
    repeated_pictures  camera -> one entry per episode: how many rows show the picture of the row before to the last bit,
                       and how many of them in a row at most; null for an episode that somebody else recorded
    success            per episode whether a person judged it a success; null where nobody did, or took it back
    cut_off            per episode whether the recording was ended while it was open, and kept it as it was
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgevla import strict
from edgevla.dataset.layout import STATED
from edgevla.errors import DatasetError
from edgevla.types import JointUnits


@dataclass(frozen=True)
class Repeated:
    """Pictures of one episode that repeat the one before. longest: rows of the longest such stretch."""

    n: int
    longest: int


@dataclass(frozen=True)
class Stated:
    """others: keys that a newer EdgeVLA may have written, kept as they are."""

    joint_units: str | None = None
    repeated_pictures: Mapping[str, Sequence[Repeated | None]] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    success: Sequence[bool | None] = ()
    cut_off: Sequence[bool] = ()

    def with_episode(
        self, episode: int, repeated: Mapping[str, Repeated], is_cut_off: bool = False
    ) -> Stated:
        """After one more episode and its pictures; what was noted beyond it belongs to a save that failed."""
        lists = {}
        for camera, new in repeated.items():
            known = list(self.repeated_pictures.get(camera, ()))[:episode]
            lists[camera] = [*known, *[None] * (episode - len(known)), new]
        cut_off = list(self.cut_off)[:episode]
        if is_cut_off:
            cut_off += [False] * (episode - len(cut_off)) + [True]
        return replace(self, repeated_pictures={**self.repeated_pictures, **lists}, cut_off=tuple(cut_off))

    @property
    def cut_off_episodes(self) -> list[int]:
        """Numbers of those that were open when their recording ended."""
        return [number for number, is_cut_off in enumerate(self.cut_off) if is_cut_off]

    def to_json(self) -> dict[str, Any]:
        """What stands in `meta/edgevla.json`."""
        units = {"joint_units": self.joint_units} if self.joint_units else {}
        noted = {"repeated_pictures": strict.write(self.repeated_pictures)} if self.repeated_pictures else {}
        judged = {"success": list(self.success)} if self.success else {}
        ended = {"cut_off": list(self.cut_off)} if any(self.cut_off) else {}
        return {**self.others, **units, **noted, **judged, **ended}


def read_stated(root: Path) -> Stated:
    """What the dataset in `root` says; nothing where it has no such file.

    Raises:
        DatasetError: the file says something unknown, or is no JSON.
    """
    path = root / STATED
    if not path.is_file():
        return Stated()
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8")))
        units = data.pop("joint_units", None)
        noted = data.pop("repeated_pictures", {})
        success = strict.read(list[bool | None], data.pop("success", []), "success")
        cut_off = strict.read(list[bool], data.pop("cut_off", []), "cut_off")
        repeated = {str(camera): [_one(camera, r) for r in of_each] for camera, of_each in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is not readable: {error}", file=STATED) from error
    if units is not None and units not in get_args(JointUnits):
        raise DatasetError(f"{path} says joint_units = '{units}'; known: degrees, range100", file=STATED)
    return Stated(units, repeated, data, tuple(success), tuple(cut_off))


def _one(camera: str, data: Any) -> Repeated | None:
    return None if data is None else strict.read(Repeated, data, f"repeated_pictures.{camera}")


class RepeatCounter:
    """Looks at the pictures of one camera in an episode, one row after the other."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._n = self._run = self._longest = 0

    def see(self, picture: np.ndarray) -> None:
        """picture: uint8 (H, W, 3), not changed afterwards."""
        is_same = self._before is not None and (
            picture is self._before or np.array_equal(picture, self._before)
        )
        self._before = picture
        self._run = self._run + 1 if is_same else 0
        self._n += is_same
        self._longest = max(self._longest, self._run)

    def found(self) -> Repeated:
        """What was counted so far."""
        return Repeated(int(self._n), self._longest)
