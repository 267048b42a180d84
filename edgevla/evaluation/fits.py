"""Whether a dataset can say something about a policy: joints by name and unit, rate, cameras, history, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgevla.dataset.facts import feature_names, infer_joint_units, joint_unit_names
from edgevla.dataset.layout import Episode
from edgevla.dataset.stated import read_stated
from edgevla.dataset.stats import vector_stats
from edgevla.errors import DatasetError, UsageError
from edgevla.evaluation.subjects import Subject
from edgevla.joint_units import joint_name
from edgevla.types import ACTION, ENVIRONMENT_STATE, STATE, Feature
from edgevla.vocabulary import NONE, Side, join, matches, robots_name, short_name

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset


def sources_of(
    subject: Subject, dataset: Dataset, cameras: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Policy feature -> feature of the dataset for all that the policy takes and gives, and what a person should know.

    cameras: as `--camera` says, NAME=SOURCE.

    Raises:
        DatasetError: the dataset lacks what the policy uses, or has it in another form; says both sides.
        UsageError: a camera that must be named.
    """  # fmt: skip
    m = subject.manifest
    notes = []
    for feature in m.features.values():
        if feature.kind in ("state", "environment_state", "action"):
            notes += _check_vector(subject, feature, dataset)
    if abs(m.fps - dataset.fps) > 1e-3 * m.fps:
        raise DatasetError(
            f"{subject.path} acts at {m.fps:g} Hz, {dataset.root} was recorded at {dataset.fps:g} Hz: its actions are "
            "steps of another length"
        )
    sources = _cameras(subject, dataset, cameras)
    for name, source in sources.items():
        notes += _check_size(subject, m.features[name], source, dataset)
    return sources, notes


def check_same_joints(subjects: Sequence[Subject]) -> None:
    """
    Raises:
        UsageError: two policies act with other joints or units, so that no table can hold both.
    """
    first = subjects[0].manifest.action
    for other in subjects[1:]:
        action = other.manifest.action
        if (action.names, action.units) != (first.names, first.units):
            raise UsageError(
                f"{subjects[0].path} and {other.path} act in other joints or units ({_listed(first.names)} in "
                f"{_listed(first.units)}; {_listed(action.names)} in {_listed(action.units)}); evaluate them one by one"
            )


# -- vectors ------------------------------------------------------------------------------------------------


def _check_vector(subject: Subject, feature: Feature, dataset: Dataset) -> list[str]:
    """What a person should know of a state or of the actions."""
    column = dataset.columns.get(feature.name)
    if column is None:
        raise DatasetError(
            f"{subject.path} uses '{feature.name}', which {dataset.root} does not have; it has "
            f"{', '.join(dataset.info.features)}",
            feature=feature.name,
        )
    width = int(np.prod(column.shape[1:]))
    if width != feature.shape[0]:
        raise DatasetError(
            f"'{feature.name}' has {width} values in {dataset.root} and {feature.shape[0]} in {subject.path}; the "
            f"dataset is of another robot ({_listed(feature_names(dataset, feature.name))}) than the policy "
            f"({_listed(feature.names)})",
            feature=feature.name,
        )
    if feature.kind == "environment_state":
        return []
    _check_names(subject, feature, dataset)
    return _check_units(subject, feature, dataset)


def _check_names(subject: Subject, feature: Feature, dataset: Dataset) -> None:
    """Names that say nothing (`0`, `action_0`) are not compared."""
    theirs = [joint_name(n) for n in feature_names(dataset, feature.name)]
    ours = [joint_name(n) for n in feature.names]
    if not theirs or theirs == ours or any(_is_number(n) for n in [*ours, *theirs]):
        return
    what = "in another order" if sorted(theirs) == sorted(ours) else "other joints"
    raise DatasetError(
        f"'{feature.name}' of {dataset.root} holds {what}: {_listed(theirs)}; {subject.path} has {_listed(ours)}",
        feature=feature.name,
    )


def _check_units(subject: Subject, feature: Feature, dataset: Dataset) -> list[str]:
    stated = read_stated(dataset.root).joint_units
    if "raw" in feature.units or not feature.units:
        return (
            []
            if feature.name != ACTION
            else [f"{subject.name}: nothing states its joints' units: they count as recorded"]
        )
    if stated is not None:
        recorded = joint_unit_names(feature.names, stated)
        wrong = [i for i, (a, b) in enumerate(zip(recorded, feature.units, strict=True)) if a != b]
        if wrong:
            i = wrong[0]
            raise DatasetError(
                f"{dataset.root} states that joint '{feature.names[i]}' is in {recorded[i]}, {subject.path} has it in "
                f"{feature.units[i]}: its numbers cannot be compared; evaluate on data in the policy's units",
                feature=feature.name,
            )
        return []
    stats = {feature.name: vector_stats(dataset.columns[feature.name])}
    guess, reason = infer_joint_units(stats, feature.names)
    if (
        feature.name == ACTION
        and guess is not None
        and joint_unit_names(feature.names, guess) != feature.units
    ):
        return [
            f"{dataset.root} looks like {guess} ({reason}), {subject.name} is in {_listed(sorted(set(feature.units)))}"
        ]
    return []  # fmt: skip


def _is_number(name: str) -> bool:
    return name.rpartition("_")[2].isdigit()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no names"


# -- cameras ------------------------------------------------------------------------------------------------


def _cameras(subject: Subject, dataset: Dataset, wanted: Mapping[str, str]) -> dict[str, str]:
    """Policy camera -> camera of the dataset: as said, else of the same name, else called like the robot's camera."""
    m = subject.manifest
    absent = [name for name, f in m.features.items() if f.kind == "absent_camera"]
    said = join(wanted, Side("the policy", [*m.cameras, *absent]), Side("the dataset", dataset.cameras))
    bound: dict[str, str] = {}
    for name in m.cameras:
        source = said.get(name) or (name if name in dataset.cameras else None)
        alike = _called(m.features[name].camera_name, dataset.cameras)
        source = source or (alike[0] if len(alike) == 1 else None)
        if source is None or source == NONE:
            free = [c for c in dataset.cameras if c not in bound.values()]
            taker, example = short_name(name, m.cameras), short_name(free[0], dataset.cameras) if free else ""
            cure = f"; say where it gets its pictures: --camera {taker}={example}" if free else ""
            raise DatasetError(
                f"{subject.path} sees through the camera '{name}', which {dataset.root} does not have; it has "
                f"{_listed(dataset.cameras)}{cure}",
                feature=name,
            )
        bound[name] = source
    return bound


def _called(robots: str, cameras: Sequence[str]) -> list[str]:
    """The cameras that a robot would call so."""
    return [c for c in cameras if robots_name(c, cameras) == robots] or matches(robots, cameras)


def _check_size(subject: Subject, feature: Feature, source: str, dataset: Dataset) -> list[str]:
    height, width = dataset.camera_size(source)
    if (height, width) == feature.shape[:2]:
        return []
    return [
        f"{subject.name}: camera '{short_name(source)}' was recorded at {width}x{height} and is resized to the "
        f"{feature.shape[1]}x{feature.shape[0]} that the policy takes"
    ]


# -- rows ---------------------------------------------------------------------------------------------------


def check_rows(dataset: Dataset, subjects: Sequence[Subject]) -> None:
    """
    Raises:
        DatasetError: an episode shorter than what a policy looks back over, or numbers that are not finite.
    """
    for subject in subjects:
        n = subject.runner.n_moments
        short = next((e for e in dataset.episodes if e.length < n), None)
        if short is not None:
            raise DatasetError(
                f"{subject.path} looks back over {n} frames, episode {short.index} of {dataset.root} has "
                f"{short.length}: there is no history; leave it out with --episodes",
                episode=short.index,
            )
    used = {
        name for s in subjects for name in (ACTION, STATE, ENVIRONMENT_STATE) if name in s.manifest.features
    }
    for name in sorted(used):
        values = dataset.columns[name].reshape(dataset.n_frames, -1)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            row, element = map(int, wrong[0])
            episode: Episode = dataset.episode_of(row)
            names = feature_names(dataset, name) or tuple(map(str, range(values.shape[1])))
            raise DatasetError(
                f"'{name}' of joint '{names[element]}' is {values[row, element]} in episode {episode.index}, frame "
                f"{row - episode.from_index}, of {dataset.root}; leave that episode out with --episodes",
                feature=name,
                episode=episode.index,
            )
