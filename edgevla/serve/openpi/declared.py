"""What a person declares of an openpi server in place of the manifest that it lacks: the map of `deploy --keys`.

All that `deploy` would read in a manifest before it moves an arm stands here: which joints in which order and unit, at
which rate, how many actions, which pictures of which size. The server is then held to it, answer by answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from edgevla import __version__
from edgevla.descriptions import AboutRobot
from edgevla.errors import BundleError, ConfigError, UsageError
from edgevla.joint_units import joint_name
from edgevla.kinds import say
from edgevla.manifest import Batch, Execution, Manifest, PromptRecipe, Target, TokenizerRecipe
from edgevla.manifest_record import CheckpointOrigin, Provenance
from edgevla.predictor import blank_observation
from edgevla.serve.openpi.keys import (
    GRIPPER,
    Gripper,
    Place,
    check_paths,
    gripper_affine,
    path_of,
    placed,
    read_toml,
    units_of,
)
from edgevla.strict import Within, write
from edgevla.types import ACTION, STATE, Feature, Observation
from edgevla.words import check_task

ALLOWED = ("sync", "async", "ensemble")
"""Real-time chunking is not among them: openpi's requests do not hold the actions that the arm is committed to."""
ENSEMBLE_DECAY = 0.01
_ANGLES = ("deg", "rad")
_Side = Annotated[int, Within(1, 8192)]
_Many = Annotated[int, Within(1, 10_000)]
Size = tuple[_Side, _Side]
"""(height, width)."""


@dataclass(frozen=True)
class DeclaredJoints:
    """One name, unit per value, in the server's order. zero: where angles count from, as a robot's profile says it."""

    names: tuple[str, ...]
    units: str | tuple[str, ...]
    zero: str | None = None
    key: str | tuple[str, ...] = "state"


@dataclass(frozen=True)
class DeclaredActions:
    """speeds: the fastest in the training data per value, its unit per second; the arm is kept to 1.5 times that."""

    names: tuple[str, ...]
    units: str | tuple[str, ...]
    zero: str | None = None
    speeds: tuple[Annotated[float, Within(0, None)], ...] | None = None


@dataclass(frozen=True)
class DeclaredPicture:
    """size: of the robot's camera. sent: scaled into it, with black bars, as openpi's clients do; None: as it is."""

    key: str | tuple[str, ...]
    layout: Literal["hwc", "chw"]
    size: Size
    sent: Size | None = None


@dataclass(frozen=True)
class Declared:
    """The file. images: by the robot's cameras. prompt: the key of the task. task: for a deployment that names none."""

    fps: Annotated[float, Within(0.1, 1000)]
    chunk_size: _Many
    actions: DeclaredActions
    images: dict[str, DeclaredPicture] = field(default_factory=dict)
    state: DeclaredJoints | None = None
    n_action_steps: _Many | None = None
    prompt: str | tuple[str, ...] | None = None
    task: str | None = None
    gripper: Gripper | None = None


class ServerMap:
    """A map, read and judged. sha256: of what it says.

    Raises:
        ConfigError: the file is not there, or says what cannot be.
    """

    def __init__(self, path: Path) -> None:
        self.path, said = path, read_toml(path, Declared)
        self._said = said
        self.sha256 = hashlib.sha256(json.dumps(write(said), sort_keys=True).encode()).hexdigest()
        if said.n_action_steps is not None and said.n_action_steps > said.chunk_size:
            raise ConfigError(
                f"{path}: n_action_steps {said.n_action_steps} is more than the chunk_size {said.chunk_size}"
            )
        try:
            if said.task is not None:
                check_task(said.task, f"{path}: task")
        except UsageError as error:
            raise ConfigError(str(error)) from None
        self._scales: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._paths = self._places()
        self.manifest = self._manifest()

    def _places(self) -> dict[str, Place]:
        """Where the state, the task and each camera's pictures lie."""
        said = self._said
        keys: dict[str, Any] = {name: picture.key for name, picture in said.images.items()}
        paths = {f"image {name}": path_of(key) for name, key in keys.items()}
        if said.state is not None:
            paths["state"] = path_of(said.state.key)
        if said.prompt is not None:
            paths["prompt"] = path_of(said.prompt)
        check_paths(paths.values(), str(self.path))
        return paths

    def _feature(
        self, name: str, kind: Literal["state", "action"], said: DeclaredJoints | DeclaredActions
    ) -> Feature:
        """In units of ours; what the [gripper] says is done in `request` and `actions`."""
        where, gripper = f"[{'state' if kind == 'state' else 'actions'}] of {self.path}", self._said.gripper
        units = units_of(said.units, said.names, gripper, where)
        if "raw" in units:
            raise ConfigError(f"{where} has the unit 'raw', which no joint of a robot has")
        self._scales[name] = gripper_affine(units, gripper)
        plain = tuple("unit" if unit == GRIPPER else unit for unit in units)
        return Feature(name, kind, (len(units),), names=tuple(said.names), units=plain, zero=said.zero)

    def _manifest(self) -> Manifest:
        """As a bundle's would be, without graphs."""
        said = self._said
        features = {
            f"observation.images.{name}": Feature(
                f"observation.images.{name}",
                "camera",
                (*picture.size, 3),
                "uint8",
                encoding="rgb8",
                camera=name,
            )
            for name, picture in said.images.items()
        }
        if said.state is not None:
            features[STATE] = self._feature(STATE, "state", said.state)
        features[ACTION] = self._feature(ACTION, "action", said.actions)
        speeds = said.actions.speeds
        if speeds is not None and len(speeds) != len(said.actions.names):
            raise ConfigError(
                f"[actions] of {self.path} has {len(said.actions.names)} names and {len(speeds)} speeds"
            )
        fastest = None if speeds is None else tuple((np.abs(self._scales[ACTION][0]) * speeds).tolist())
        return Manifest(
            schema=1, policy="openpi", name=self.path.stem, fps=said.fps, chunk_size=said.chunk_size,
            n_action_steps=said.n_action_steps or said.chunk_size, n_obs_steps=1, batch=Batch(1, 1),
            features=features, trained_range=None,
            trained_speed_p999=None if fastest is None else {ACTION: fastest},
            prompt=self._prompt(), sample=None, schedule=None, settings={}, rtc=None, graphs={},
            execution=Execution({"kind": "async"}, ALLOWED, ENSEMBLE_DECAY),
            target=Target("openpi", "elsewhere", 0, 0, {}), parity=None, latency=None,
            provenance=Provenance(
                CheckpointOrigin(str(self.path), self.sha256, "openpi"), None, str(self.path),
                __version__, "", "", "", "",
            ),
            files=(),
        )  # fmt: skip

    def _prompt(self) -> PromptRecipe | None:
        """That the policy reads a task; how it becomes tokens is the server's."""
        if self._said.prompt is None:
            return None
        tokens = TokenizerRecipe("", 0, "max_length", "right", False, 0)
        return PromptRecipe("openpi", "{task}", (), None, tokens, self._said.task)

    def check_zero(self, robot: AboutRobot) -> None:
        """
        Raises:
            BundleError: the robot's angles count from somewhere, and the map does not say that the server's do.
        """
        zeros = {joint.name: joint.zero for joint in robot.joints if joint.zero is not None}
        for table, said in (("state", self._said.state), ("actions", self._said.actions)):
            if said is None or said.zero is not None or not zeros:
                continue
            if any(unit in _ANGLES for unit in ([said.units] if isinstance(said.units, str) else said.units)):
                zero = next(iter(zeros.values()))
                raise BundleError(
                    f"[{table}] of {self.path} does not say where its angles count from, and those of {robot.robot} "
                    f"count from '{zero}'; if the server's policy was trained on such angles, add "
                    f'zero = "{zero}" there'
                )

    def differs(self, metadata: Mapping[str, Any]) -> str | None:
        """How an EdgeVLA server's own word contradicts the map; other servers tell nothing that could be compared."""
        told = metadata.get("edgevla")
        if not isinstance(told, dict):
            return None
        said, actions = self._said, self._said.actions
        mine: dict[str, Any] = {"fps": said.fps, "chunk_size": said.chunk_size}
        mine["actions_names"] = [joint_name(name) for name in actions.names]
        mine["actions_units"] = units_of(actions.units, actions.names, said.gripper, str(self.path))
        for key, value in mine.items():
            theirs = told.get(key, value)
            if key == "actions_names" and isinstance(theirs, list):
                theirs = [joint_name(str(name)) for name in theirs]
            if theirs != value:
                return f"says {key} {say(theirs)}, and {self.path} declares {say(value)}"
        return None

    # -- request and chunk -----------------------------------------------------------------------------------------

    def blank(self) -> Observation:
        """Black pictures and a usual state, for a first question."""
        return replace(blank_observation(self.manifest), task=self._said.task or "")

    def request(self, seen: Observation) -> dict[str, Any]:
        """
        Raises:
            BundleError: a camera is lost.
        """
        values: dict[Place, Any] = {}
        for name, picture in self._said.images.items():
            image = seen.images.get(f"observation.images.{name}")
            if image is None:
                raise BundleError(f"the camera '{name}' is lost, and an openpi server cannot be told so")
            values[self._paths[f"image {name}"]] = _sent(image, picture)
        if "state" in self._paths:
            scale, offset = self._scales[STATE]
            values[self._paths["state"]] = ((np.asarray(seen.state, np.float64) - offset) / scale).astype(
                np.float32
            )
        if "prompt" in self._paths:
            values[self._paths["prompt"]] = seen.task
        return placed(values)

    def chunk(self, reply: Mapping[str, Any]) -> np.ndarray | str:
        """Actions float32 (T, A) in the manifest's units; or what is wrong, after `answered`."""
        actions, wanted = reply.get("actions"), (self.manifest.chunk_size, *self.manifest.action.shape)
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
            return f"no numbers as 'actions' (its keys are {', '.join(map(str, reply))[:80] or 'none'})"
        if actions.shape != wanted:
            return f"a chunk of shape {actions.shape}; {self.path} declares {wanted}"
        scale, offset = self._scales[ACTION]
        with np.errstate(over="ignore", invalid="ignore"):
            made: np.ndarray = (actions.astype(np.float64) * scale + offset).astype(np.float32)
        return made if np.isfinite(made).all() else "actions that are not finite"


def _sent(image: np.ndarray, picture: DeclaredPicture) -> np.ndarray:
    """uint8 (H, W, 3) as the server wants it."""
    sent = image if picture.sent is None else _boxed(image, picture.sent)
    return np.ascontiguousarray(sent.transpose(2, 0, 1)) if picture.layout == "chw" else sent


def _boxed(image: np.ndarray, size: Size) -> np.ndarray:
    """Scaled until it fits, in the middle, the rest black."""
    (height, width), (to_height, to_width) = image.shape[:2], size
    if (height, width) == size:
        return image
    share = max(width / to_width, height / to_height)
    inner = (int(height / share), int(width / share))
    how = cv2.INTER_AREA if share > 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, (max(1, inner[1]), max(1, inner[0])), interpolation=how)
    boxed = np.zeros((*size, 3), np.uint8)
    top, left = (to_height - scaled.shape[0]) // 2, (to_width - scaled.shape[1]) // 2
    boxed[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return boxed
