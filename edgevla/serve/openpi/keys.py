"""The map between openpi's names and ours: a small TOML file, read strictly. Its parts; who uses them says the whole.

openpi has no manifest: which key holds the state, in which order and unit, and whether a picture is (H, W, 3) or
(3, H, W), only the people on both sides know. A key is a text, or several where maps lie in maps:

    key = "observation/image"             {"observation/image": ...}
    key = ["images", "cam_high"]          {"images": {"cam_high": ...}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from edgevla.descriptions import AboutJoint
from edgevla.errors import ConfigError
from edgevla.joint_units import JointMap, joint_map, joint_name
from edgevla.kinds import Mismatch
from edgevla.manifest import UNITS
from edgevla.strict import nearest, read
from edgevla.toml import load_toml
from edgevla.types import Feature

T = TypeVar("T")
Place = tuple[str, ...]
"""Where a value lies in a message: keys of maps in maps."""
GRIPPER = "gripper"
"""A unit: the numbers that the table [gripper] declares."""


@dataclass(frozen=True)
class Gripper:
    """What openpi's side writes for a closed and an open gripper; between them it is linear."""

    closed: float
    open: float


@dataclass(frozen=True)
class CameraKey:
    """One camera of openpi's side. layout: of the pixels, uint8 RGB."""

    key: str | tuple[str, ...]
    layout: Literal["hwc", "chw"]


def read_toml(path: Path, cls: type[T]) -> T:
    """
    Raises:
        ConfigError: no such file, no TOML, or it says something wrong.
    """
    try:
        data = load_toml(path)
    except FileNotFoundError:
        raise ConfigError(f"the map {path} does not exist; docs/openpi.md shows one") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the map {path} is not valid TOML: {error}") from error
    try:
        return read(cls, data, f"{path}:")
    except Mismatch as error:
        raise ConfigError(str(error)) from None


def path_of(key: str | Sequence[str]) -> Place:
    """A key, or keys within keys, as a path."""
    return (key,) if isinstance(key, str) else tuple(key)


def shown(path: Place) -> str:
    """The path as sentences name it."""
    return " > ".join(path)


def check_paths(paths: Iterable[Place], where: str) -> None:
    """
    Raises:
        ConfigError: a key is empty, two values would lie at one place, or one inside the other.
    """
    ordered = sorted(paths)
    if any(not path or "" in path for path in ordered):
        raise ConfigError(f"{where}: a key is empty")
    for one, other in pairwise(ordered):
        if other[: len(one)] == one:
            raise ConfigError(
                f"{where}: the key '{shown(other)}' is used twice, or lies inside of '{shown(one)}'"
            )


def leaves(message: Mapping[str, Any], before: Place = ()) -> dict[Place, Any]:
    """All that lies in a message, by its place."""
    found: dict[Place, Any] = {}
    for key, value in message.items():
        inner = leaves(value, (*before, key)) if isinstance(value, dict) else {}
        found.update(inner or {(*before, key): value})
    return found


def placed(values: Mapping[Place, Any]) -> dict[str, Any]:
    """The message in which every value lies at its place."""
    message: dict[str, Any] = {}
    for path, value in values.items():
        inside = message
        for step in path[:-1]:
            inside = inside.setdefault(step, {})
        inside[path[-1]] = value
    return message


# -- joints ------------------------------------------------------------------------------------------------------


def units_of(
    units: str | Sequence[str], names: Sequence[str], gripper: Gripper | None, where: str
) -> list[str]:
    """One unit per name; one word stands for all.

    Raises:
        ConfigError: another number of them, an unknown one, or a gripper that nothing is said of.
    """
    found = [units] * len(names) if isinstance(units, str) else list(units)
    if len(found) != len(names):
        raise ConfigError(f"{where} has {len(names)} names and {len(found)} units; they must agree")
    if len({joint_name(n) for n in names}) < len(names):
        raise ConfigError(f"{where} names a joint twice")
    for unit in found:
        if unit not in (*UNITS, GRIPPER):
            raise ConfigError(f"{where} has the unknown unit '{unit}'{nearest(unit, (*UNITS, GRIPPER))}")
    if GRIPPER in found and (gripper is None or gripper.open == gripper.closed):
        raise ConfigError(
            f"{where} has the unit 'gripper'; say in the table [gripper] which numbers are `closed` and `open`"
        )
    return found


def fitted(
    feature: Feature,
    names: Sequence[str],
    units: Sequence[str],
    zero: str | None,
    gripper: Gripper | None,
    where: str,
) -> JointMap:
    """From openpi's joints ("robot" of the map) to a feature of a bundle ("policy").

    Raises:
        BundleError: joints that one side lacks, or units that do not convert.
    """
    plain = ["unit" if unit == GRIPPER else unit for unit in units]
    joints = [
        AboutJoint(name, unit, 0.0, 1.0, 1.0, False, None, zero)
        for name, unit in zip(names, plain, strict=True)
    ]
    found = joint_map(feature, joints, where)
    scale, offset = gripper_affine(units, gripper)
    scale, offset = scale[found.index], offset[found.index]
    return JointMap(found.index, found.scale * scale, found.offset + found.scale * offset)


def gripper_affine(units: Sequence[str], gripper: Gripper | None) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset) per joint, from openpi's numbers to units of ours: a gripper's become 0 (closed) to 1 (open)."""
    is_gripper = np.array([unit == GRIPPER for unit in units])
    if gripper is None or not is_gripper.any():
        return np.ones(len(units)), np.zeros(len(units))
    width = gripper.open - gripper.closed
    return np.where(is_gripper, 1 / width, 1.0), np.where(is_gripper, -gripper.closed / width, 0.0)
