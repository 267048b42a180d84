"""What a policy must remember of the data it was trained on: names, units, ranges, speeds, camera sizes and ages.

A checkpoint does not hold these; the trainer writes them beside it as `edgevla.json`, the exporter reads them into
the bundle, and the robot is judged by them. Needs neither pyarrow nor PyAV to be read back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edgevla import strict
from edgevla.dataset.chosen import episodes_text
from edgevla.dataset.layout import camera_age_key
from edgevla.dataset.reading import DatasetReading
from edgevla.dataset.stated import read_stated
from edgevla.dataset.stats import Stats
from edgevla.errors import DatasetError, UsageError
from edgevla.look import CameraLook, Glance, glance, look_of
from edgevla.types import (
    ACTION,
    ENVIRONMENT_STATE,
    STATE,
    CameraAge,
    Feature,
    FeatureKind,
    JointUnits,
    named_features,
)

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset

FACTS = "edgevla.json"
MID_RANGE = "mid_range"
"""Zero of an angle in LeRobot's SO arms: the middle of the calibrated range."""

BODY_LIMIT_100 = 100.0
FULL_TURN = 400.0
"""No joint of these arms turns further, in degrees."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a feature's elements, in its units."""

    q01: list[float]
    q99: list[float]


@dataclass(frozen=True)
class DatasetFacts:
    """Facts of one dataset. features: as the robot sees them, keyed by dataset name; cameras at their stored size.

    joint_units: `degrees` or `range100` as stated (by the recording or the user), None when nobody said.
    units_guess: what the statistics suggest, with the reason; only ever used to warn.
    trained_speed_p999: per joint, 99.9th percentile of |action change| between rows, unit/s.
    camera_looks: by camera; empty where no picture was looked at (see `camera_looks`).
    reading: how the dataset was read; `open_dataset(..., remembered=facts.reading)` reads one like it the same way.
    episodes: numbers of those that were opened, as `0,2-5`; None in facts written before they were kept.
    """

    fps: float
    features: dict[str, Feature]
    robot_type: str | None
    joint_units: str | None
    units_guess: str | None
    units_reason: str
    trained_range: dict[str, Statistics]
    trained_speed_p999: dict[str, list[float]]
    camera_ages: dict[str, CameraAge]
    repo_id: str | None
    sha256: str
    n_episodes: int
    n_frames: int
    tasks: list[str] = field(default_factory=list)
    camera_looks: dict[str, CameraLook] = field(default_factory=dict)
    reading: DatasetReading = field(default_factory=DatasetReading)
    episodes: str | None = None

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera feature -> (H, W)."""
        return {n: (f.shape[0], f.shape[1]) for n, f in self.features.items() if f.kind == "camera"}

    def to_json(self) -> dict[str, Any]:
        """Plain data, as checkpoints keep it and `from_json` reads it."""
        as_usual = ("reading",) if self.reading == DatasetReading() else ()
        return {
            "fps": self.fps,
            "features": {n: _feature_json(f) for n, f in self.features.items()},
            **{
                name: strict.write(getattr(self, name))
                for name in self.__dataclass_fields__
                if name not in ("fps", "features", *as_usual)
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "edgevla.json") -> DatasetFacts:
        """The inverse of `to_json`.

        Raises:
            DatasetError: a key is unknown or missing, or holds something else.
        """
        try:
            if isinstance(data, dict) and "features" in data:
                data = {**data, "features": named_features(data["features"])}
            return strict.read(cls, data, "it")
        except strict.Mismatch as error:
            raise DatasetError(f"{where} is not a description of a dataset: {error}", file=where) from error


def _feature_json(feature: Feature) -> dict[str, Any]:
    data = {"kind": feature.kind, "dtype": feature.dtype, "shape": list(feature.shape)}
    optional = {
        "names": list(feature.names),
        "units": list(feature.units),
        "zero": feature.zero,
        "encoding": feature.encoding,
    }
    return {**data, **{k: v for k, v in optional.items() if v}}


def read_facts(folder: Path) -> DatasetFacts | None:
    """What the trainer left beside a checkpoint; None for checkpoints of others.

    Raises:
        DatasetError: damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}); fetch the checkpoint again", file=str(path)
        ) from error
    return DatasetFacts.from_json(data, str(path))


def facts_of(dataset: Dataset, joint_units: str | None = None) -> DatasetFacts:
    """Gathers the facts. joint_units: what the user says; wins over what the recording stated, if anything.

    Raises:
        UsageError: joint_units is neither `degrees` nor `range100`.
    """
    if joint_units is not None and joint_units not in get_args(JointUnits):
        raise UsageError(f"joint units '{joint_units}' are unknown; say degrees or range100")
    stats = dataset.true_stats
    names = feature_names(dataset, ACTION)
    guess, reason = infer_joint_units(stats, names)
    units = joint_units or read_stated(dataset.root).joint_units
    vectors = [n for n in (STATE, ENVIRONMENT_STATE, ACTION) if n in dataset.columns]
    features = {c: _camera(c, dataset) for c in dataset.cameras}
    features.update({n: _vector(n, dataset, units) for n in vectors})
    return DatasetFacts(
        fps=dataset.fps,
        features=features,
        robot_type=dataset.info.robot_type,
        joint_units=units,
        units_guess=guess,
        units_reason=reason,
        trained_range={
            n: Statistics(stats[n]["q01"].ravel().tolist(), stats[n]["q99"].ravel().tolist())
            for n in vectors
            if n.startswith("observation")
        },
        trained_speed_p999={ACTION: action_speeds(dataset).tolist()} if ACTION in vectors else {},
        camera_ages=_camera_ages(dataset),
        repo_id=dataset.repo_id,
        sha256=dataset.sha256,
        n_episodes=dataset.n_episodes,
        n_frames=dataset.n_frames,
        tasks=_tasks(dataset),
        reading=dataset.reading,
        episodes=episodes_text(e.index for e in dataset.episodes),
    )


def feature_names(dataset: Dataset, name: str) -> tuple[str, ...]:
    """Names of a vector's elements, or () when info.json gives none that fit."""
    feature = dataset.info.features.get(name)
    if feature is None or len(feature.names) != int(np.prod(feature.shape)):
        return ()
    return feature.names


def _camera(name: str, dataset: Dataset) -> Feature:
    return Feature(name, "camera", (*dataset.camera_size(name), 3), "uint8", encoding="rgb8")


def _vector(name: str, dataset: Dataset, units: str | None) -> Feature:
    kind: FeatureKind = "action" if name == ACTION else "state" if name == STATE else "environment_state"
    shape = dataset.info.features[name].shape
    names = feature_names(dataset, name) or tuple(f"{i}" for i in range(int(np.prod(shape))))
    if kind == "environment_state" or units is None:
        return Feature(name, kind, shape, names=names)
    return Feature(name, kind, shape, names=names, units=joint_unit_names(names, units), zero=MID_RANGE)


def state_units(dataset: Dataset) -> tuple[str, ...]:
    """Of each element of the state as the recording states them, or nothing."""
    units, names = read_stated(dataset.root).joint_units, feature_names(dataset, STATE)
    return joint_unit_names(names, units) if units is not None else ()


def joint_unit_names(names: Sequence[str], units: str) -> tuple[str, ...]:
    """Unit of each joint: grippers are 0..100 in either convention."""
    body = "deg" if units == "degrees" else "range100"
    return tuple("percent" if is_gripper(name) else body for name in names)


def is_gripper(name: str) -> bool:
    """Whether a joint is a gripper, by its name: recordings say it in no other way."""
    return "gripper" in name.lower()


def infer_joint_units(stats: Stats, names: Sequence[str]) -> tuple[str | None, str]:
    """(`degrees`, `range100` or None, why), from the ranges of body joints in action and state.

    Beyond +-100 it cannot be range100. Joints that end exactly at +-100 and never pass it are a clipped range100.
    Everything else is ambiguous: an arm in degrees may well stay within +-100.
    """
    seen = []
    for feature in (ACTION, STATE):
        by = stats.get(feature, {})
        if "min" in by and "max" in by and by["min"].size == (len(names) or by["min"].size):
            is_body = np.array([not is_gripper(n) for n in names] or [True] * by["min"].size)
            seen += [by["min"].ravel()[is_body], by["max"].ravel()[is_body]]
    if not seen:
        return None, "there are no statistics of joints"
    values = np.concatenate(seen)
    most = float(np.abs(values).max())
    if most > BODY_LIMIT_100 + 0.5:
        if most > FULL_TURN:
            return None, f"values up to {most:.0f} are neither degrees nor -100..100"
        return "degrees", f"a joint reaches {most:.1f}, beyond -100..100"
    at_end = int((np.abs(np.abs(values) - BODY_LIMIT_100) < 0.05).sum())
    if at_end >= 2:
        return "range100", f"joints end {at_end} times exactly at 100 and never pass it"
    if most <= 2 * np.pi + 0.1:
        return None, f"no joint passes {most:.2f}: perhaps radians, or hardly any motion"
    return None, f"all joints stay within {most:.1f}, which both degrees and -100..100 allow"


def action_speeds(dataset: Dataset) -> np.ndarray:
    """float64 (D,): 99.9th percentile over rows of |action change| to the next row of the episode, unit/s."""
    actions = dataset.columns[ACTION].astype(np.float64)
    actions = actions.reshape(len(actions), -1)
    is_inside = np.ones(max(0, len(actions) - 1), bool)
    is_inside[[e.from_index - 1 for e in dataset.episodes if e.from_index > 0]] = False
    steps = np.abs(np.diff(actions, axis=0))[is_inside] * dataset.fps
    return np.quantile(steps, 0.999, axis=0) if len(steps) else np.zeros(actions.shape[1])


def camera_looks(dataset: Dataset, n_pictures: int = 64) -> dict[str, CameraLook]:
    """What each camera shows: so many pictures spread evenly, and the first of up to 16 episodes, where arms begin.

    Decodes pictures, some 10 ms each. A camera whose pictures cannot be decoded has none: training may not need it.
    """
    starts = np.array([e.from_index for e in dataset.episodes])
    evenly = np.linspace(0, dataset.n_frames - 1, min(n_pictures, dataset.n_frames)).round()
    some = starts[np.linspace(0, len(starts) - 1, min(16, len(starts))).round().astype(int)]
    rows = np.unique(np.concatenate([evenly, some]).astype(int))
    looks = {}
    for camera in dataset.cameras:
        with contextlib.suppress(DatasetError):
            if (look := look_of(_glances(dataset, camera, rows))) is not None:
                looks[camera] = look
    return looks


def _glances(dataset: Dataset, camera: str, rows: np.ndarray) -> list[Glance]:
    """A few pictures at a time: they are large, and a glance is small."""
    blocks = np.array_split(rows, max(1, len(rows) // 8))
    return [glance(picture) for block in blocks for picture in dataset.frames(camera, block)]


def _tasks(dataset: Dataset) -> list[str]:
    """Instructions of the rows that were opened; the table may list others."""
    used = set(np.unique(dataset.columns["task_index"]).tolist())
    return list(dict.fromkeys(text for number, text in dataset.task_table.items() if number in used))


def _camera_ages(dataset: Dataset) -> dict[str, CameraAge]:
    ages = {}
    for camera in dataset.cameras:
        column = dataset.columns.get(camera_age_key(dataset.info.features[camera].column))
        if column is not None and len(column):
            p50, p99 = np.quantile(column, [0.5, 0.99])
            ages[camera] = CameraAge(float(p50), float(p99), float(column.max()))
    return ages
