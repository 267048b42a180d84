"""Whether new episodes may join a dataset: everything that a reader takes to be the same in all of them must be.

A dataset says once, for all its episodes, what the joints are called and in which units and order they come, which robot
it was, how fast and through which cameras. Episodes that differ would be read wrongly, and in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevla.dataset.cells import feature_infos, with_bookkeeping
from edgevla.dataset.encode import choose_codec
from edgevla.dataset.layout import EPISODES_GLOB, INFO, STATED, FeatureInfo, Findings, read_info, short_name
from edgevla.dataset.open import read_all
from edgevla.dataset.stated import read_stated
from edgevla.dataset.whole import kept_still
from edgevla.errors import DatasetError

SAME_RATE = 1e-5
"""A robot's grid is whole nanoseconds: 29.97 Hz on one arm and on another differ beyond the sixth digit."""


@dataclass(frozen=True)
class DatasetKind:
    """What the episodes of a dataset have in common. joint_units, robot_type: None where nothing says it.

    also_called: other names of this robot, such as LeRobot's.
    """

    fps: float
    features: Mapping[str, FeatureInfo]
    robot_type: str | None = None
    joint_units: str | None = None
    also_called: Sequence[str] = ()


def existing_kind(root: Path) -> DatasetKind | None:
    """Of the dataset in `root`; None where there is none, or one without an episode, which binds nobody.

    Raises:
        DatasetError: it cannot be read, or is of a version that nothing can be appended to.
    """
    if not (root / INFO).is_file():
        return None
    info = read_info(root)
    if info.version != (3, 0):
        raise DatasetError(f"{root} has version {info.version_text}; only v3.0 can be resumed", file=INFO)
    if not list(root.glob(EPISODES_GLOB)):
        return None
    return DatasetKind(info.fps, info.features, info.robot_type, read_stated(root).joint_units)


def check_joining(root: Path, here: DatasetKind) -> None:
    """
    Raises:
        DatasetError: the dataset in `root` was recorded otherwise than `here`; names every difference, both sides.
    """
    there = existing_kind(root)
    if there is None:
        return
    found = list(differences(there, here))
    if found:
        raise DatasetError(
            f"{root} cannot be appended to: {'; '.join(found)}. Record into another folder"
            + _cure(root, there, here),
            file=INFO,
        )


def check_recording(
    root: Path,
    *,
    fps: float,
    features: Mapping[str, Mapping[str, Any]],
    robot_type: str | None,
    joint_units: str | None,
    also_called: Sequence[str],
) -> None:
    """Whether `DatasetWriter(root, resume=True, ...)` would take such episodes: better known before an arm moves.

    Raises:
        DatasetError: it would not; names every difference to the episodes that are there.
    """
    infos = feature_infos(with_bookkeeping(features), root / INFO)
    check_joining(root, DatasetKind(fps, infos, robot_type, joint_units, also_called))
    if sizes := [f.hwc[:2] for f in infos.values() if f.dtype == "video"]:
        choose_codec("auto", sizes, fps)


def check_resumable(root: Path) -> None:
    """Whether the dataset in `root`, if there is one, can be gone on with now. Nothing is changed.

    Raises:
        DatasetError: another recording into it is running, or it is damaged.
    """
    if (root / INFO).exists():
        with kept_still(root, is_changed=True):
            if existing_kind(root) is not None:
                read_all(root, Findings())


def differences(there: DatasetKind, here: DatasetKind, what: str = "this recording") -> Iterator[str]:
    """Why episodes of `here` do not belong to `there`, each a clause. what: how `here` is called in it."""
    if there.joint_units != here.joint_units:
        yield f"its joints are in {_units(there)}, those of {what} in {_units(here)}"
    names = {here.robot_type, *here.also_called}
    if there.robot_type and here.robot_type and there.robot_type not in names:
        yield f"its robot is {there.robot_type}, that of {what} is {here.robot_type}"
    if not math.isclose(there.fps, here.fps, rel_tol=SAME_RATE):
        yield f"it has {there.fps:g} fps, {what} {here.fps:g}"
    yield from _features(there.features, here.features, what)


def _units(kind: DatasetKind) -> str:
    return kind.joint_units or "units that nothing states"


def _features(there: Mapping[str, FeatureInfo], here: Mapping[str, FeatureInfo], what: str) -> Iterator[str]:
    for is_camera, word in ((True, "camera"), (False, "column")):
        only_there, only_here = (
            [_name(f) for n, f in one.items() if n not in other and f.is_camera is is_camera]
            for one, other in ((there, here), (here, there))
        )
        if only_there:
            yield f"it has the {word} {', '.join(only_there)}, which {what} lacks"
        if only_here:
            yield f"it lacks the {word} {', '.join(only_here)}, which {what} has"
    for name in there:
        if name in here and (difference := _difference(there[name], here[name])):
            yield f"its {_name(there[name])} {difference[0]}, that of {what} {difference[1]}"


def _name(feature: FeatureInfo) -> str:
    return f"'{short_name(feature.name) if feature.is_camera else feature.name}'"


def _difference(there: FeatureInfo, here: FeatureInfo) -> tuple[str, str] | None:
    """What the one is and what the other is, None when they are the same."""
    if there.is_camera and here.is_camera and there.hwc != here.hwc:
        (height, width, _), (other_height, other_width, _) = there.hwc, here.hwc
        return f"has {width}x{height} px", f"{other_width}x{other_height}"
    if there.dtype != here.dtype:
        return f"is stored as {there.dtype}", f"as {here.dtype}"
    if not there.is_camera and there.shape != here.shape:
        return f"has the shape {list(there.shape)}", f"{list(here.shape)}"
    if not there.is_camera and there.names and here.names and there.names != here.names:
        return f"is {', '.join(there.names)}", f"is {', '.join(here.names)}"
    return None


def _cure(root: Path, there: DatasetKind, here: DatasetKind) -> str:
    if there.joint_units is None and here.joint_units is not None:
        line = f'{{"joint_units": "{here.joint_units}"}}'
        return f"; or, if its joints are in {here.joint_units} too, write {line} into {root / STATED}"
    return ""
