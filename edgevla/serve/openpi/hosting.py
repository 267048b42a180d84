"""One bundle as openpi's clients see it: their request becomes an observation of ours, our chunk a reply of theirs.

A map says where things lie; without one, openpi's own layouts for ALOHA and LIBERO are tried on the bundle. What a map
or the protocol leaves over is named before the server listens: nothing is filled in, resized or dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import BundleError, ConfigError, EdgeVLAError, WireError
from edgevla.joint_units import JointMap
from edgevla.kinds import say
from edgevla.manifest import Manifest
from edgevla.serve.openpi.keys import (
    CameraKey,
    Gripper,
    Place,
    check_paths,
    fitted,
    leaves,
    path_of,
    read_toml,
    shown,
    units_of,
)
from edgevla.strict import nearest
from edgevla.types import ENVIRONMENT_STATE, Feature, Observation
from edgevla.words import LONGEST_TASK


@dataclass(frozen=True)
class HostedJoints:
    """names, units: on openpi's side; left out: the bundle's own. key: of a state."""

    key: str | tuple[str, ...] = "state"
    names: tuple[str, ...] | None = None
    units: str | tuple[str, ...] | None = None
    zero: str | None = None


@dataclass(frozen=True)
class HostedKeys:
    """The map of `serve --keys`. images: by the bundle's cameras. unused: what clients send and nobody looks at."""

    images: dict[str, CameraKey] = field(default_factory=dict)
    state: HostedJoints | None = None
    actions: HostedJoints = HostedJoints()
    prompt: str | tuple[str, ...] | None = None
    gripper: Gripper | None = None
    unused: tuple[str | tuple[str, ...], ...] = ()


ALOHA_CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
ALOHA_JOINTS = tuple(
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
)


def aloha(m: Manifest) -> HostedKeys:
    """14 values in radians, grippers 0 (closed) to 1 (open); pictures (3, H, W)."""
    seen = [m.features[name].camera_name for name in m.cameras]
    strangers = [name for name in seen if name not in ALOHA_CAMERAS]
    if strangers:
        raise BundleError(f"it looks through '{strangers[0]}', and ALOHA has {', '.join(ALOHA_CAMERAS)}")
    joints = HostedJoints("state", ALOHA_JOINTS, ("rad",) * 6 + ("unit",) + ("rad",) * 6 + ("unit",))
    images = {name: CameraKey(("images", name), "chw") for name in seen}
    unused = tuple(("images", name) for name in ALOHA_CAMERAS if name not in seen)
    return HostedKeys(images, joints if m.state is not None else None, joints, "prompt", None, unused)


LIBERO_CAMERAS = {"image": "observation/image", "wrist_image": "observation/wrist_image"}
LIBERO_STATE, LIBERO_ACTIONS, LIBERO_SIDE = 8, 7, 224


def libero(m: Manifest) -> HostedKeys:
    """State of 8 and actions of 7 values, as the data hold them; pictures (224, 224, 3)."""
    shapes = {m.features[name].camera_name: m.features[name].shape for name in m.cameras}
    if set(shapes) != set(LIBERO_CAMERAS) or set(shapes.values()) != {(LIBERO_SIDE, LIBERO_SIDE, 3)}:
        raise BundleError(
            f"its cameras are {', '.join(shapes) or 'none'}, not image and wrist_image of 224x224"
        )
    sizes = (m.state.shape if m.state is not None else (0,), m.action.shape)
    if sizes != ((LIBERO_STATE,), (LIBERO_ACTIONS,)):
        raise BundleError(f"state and actions have {sizes[0][0]} and {sizes[1][0]} values, not 8 and 7")
    images = {name: CameraKey(key, "hwc") for name, key in LIBERO_CAMERAS.items()}
    return HostedKeys(images, HostedJoints("observation/state"), HostedJoints(), "prompt")


LAYOUTS = {"ALOHA": aloha, "LIBERO": libero}


def adaptor(m: Manifest, keys: Path | None) -> Adaptor:
    """keys: None tries openpi's own layouts.

    Raises:
        BundleError, ConfigError: what of the bundle the map, or the protocol, cannot carry.
    """
    if keys is not None:
        return Adaptor(m, read_toml(keys, HostedKeys), str(keys))
    _check_carried(m)
    why = []
    for name, layout in LAYOUTS.items():
        try:
            return Adaptor(m, layout(m), f"openpi's {name} layout")
        except EdgeVLAError as error:
            why.append(f"{name}: {error}")
    raise BundleError(
        f"this bundle fits none of openpi's own layouts ({'; '.join(why)}); say with --keys MAP.toml how a client calls "
        "its cameras, state and actions (docs/openpi.md)"
    )


def _check_carried(m: Manifest) -> None:
    """
    Raises:
        BundleError: the policy needs what openpi's requests do not hold.
    """
    history = max([output.history or 1 for output in m.graphs["encode"].outputs], default=1)
    if history > 1:
        raise BundleError(
            f"the policy '{m.policy}' looks at {history} moments, and openpi's requests hold one, without its time; "
            "serve it with EdgeVLA's own protocol (leave out --protocol openpi)"
        )
    if ENVIRONMENT_STATE in m.features:
        raise BundleError(f"the policy needs '{ENVIRONMENT_STATE}', which openpi's requests do not hold")


class Adaptor:
    """A map on a bundle. where: what the map is called.

    Raises:
        BundleError, ConfigError: they do not fit.
    """

    def __init__(self, m: Manifest, keys: HostedKeys, where: str) -> None:
        _check_carried(m)
        self.where, self._m, self._keys = where, m, keys
        self._features = {m.features[name].camera_name: m.features[name] for name in m.cameras}
        self._check_cameras()
        self._names: dict[str, tuple[list[str], list[str]]] = {}
        self._state: JointMap | None = None
        if (m.state is None) != (keys.state is None):
            raise ConfigError(
                f"{where}: the bundle takes no state; leave out the table [state]"
                if m.state is None
                else f"{where}: the bundle takes a state; say in a table [state] under which key it comes"
            )
        if m.state is not None and keys.state is not None:
            self._state = self._joints("state", m.state, keys.state)
        self._actions = self._joints("actions", m.action, keys.actions)
        if m.prompt is not None and keys.prompt is None:
            raise ConfigError(
                f"{where}: the policy '{m.policy}' reads a task; say under which key it comes: prompt = ..."
            )
        self._images = {path_of(keys.images[name].key): name for name in self._features}
        self._state_path = None if keys.state is None else path_of(keys.state.key)
        self._prompt_path = None if keys.prompt is None else path_of(keys.prompt)
        self._unused = {path_of(key) for key in keys.unused}
        said = [path for path in (self._state_path, self._prompt_path) if path is not None]
        self._paths = [*self._images, *said, *self._unused]
        check_paths(self._paths, where)

    def _check_cameras(self) -> None:
        for name in self._features:
            if name not in self._keys.images:
                raise ConfigError(
                    f"{self.where}: the bundle looks through '{name}'; say in [images.{name}] under which key it comes"
                )
        for name in self._keys.images:
            if name not in self._features:
                raise ConfigError(
                    f"{self.where}: the bundle has no camera '{name}'; what clients send all the same is declared as "
                    f"unused = [...]{nearest(name, self._features)}"
                )

    def _joints(self, table: str, feature: Feature, said: HostedJoints) -> JointMap:
        where, names = f"[{table}] of {self.where}", said.names or feature.names
        if said.names is None and said.units is None:
            self._names[table] = list(feature.names), list(feature.units)
            return JointMap(np.arange(len(names)), np.ones(len(names)), np.zeros(len(names)))
        units = units_of(said.units or feature.units, names, self._keys.gripper, where)
        self._names[table] = list(names), units
        return fitted(feature, names, units, said.zero, self._keys.gripper, where)

    # -- what people and clients are told ------------------------------------------------------------------------

    @property
    def most_bytes(self) -> int:
        """Of a request."""
        sizes = [int(np.prod(feature.shape)) for feature in self._features.values()]
        return (1 << 20) + sum(sizes) + (4 << 20) * len(self._unused)

    def remarks(self) -> list[str]:
        """What is different from a robot that speaks EdgeVLA's protocol."""
        said = [
            "requests are answered first come, first served: openpi's robots do not tell when they run out"
        ]
        if self._m.rtc is not None:
            said.append(
                "no real-time chunking: openpi's requests do not hold the actions that are committed to"
            )
        if self._m.prompt is None and self._keys.prompt is not None:
            said.append("this policy reads no text: prompts are taken, and change nothing")
        if self._unused:
            said.append(f"taken and not looked at: {', '.join(map(shown, sorted(self._unused)))}")
        return said

    def about(self) -> dict[str, Any]:
        """For the metadata."""
        cameras = {
            shown(path): {
                "layout": self._keys.images[name].layout,
                "height_width": list(self._features[name].shape[:2]),
            }
            for path, name in self._images.items()
        }
        joints = {f"{table}_{what}": told[i] for table, told in self._names.items()
                  for i, what in enumerate(("names", "units"))}  # fmt: skip
        m = self._m
        return {
            "policy": m.policy, "fps": m.fps, "chunk_size": m.chunk_size, "images": cameras, **joints,
            "reads_prompt": m.prompt is not None, "real_time_chunking": False,
        }  # fmt: skip

    # -- request and reply -----------------------------------------------------------------------------------------

    def observation(self, request: Any) -> tuple[Observation, np.ndarray | None]:
        """And the state as it came, for the reply.

        Raises:
            WireError: the request lacks a key, has one that nobody knows, or a value that does not fit; names it.
        """
        if not isinstance(request, dict):
            raise WireError(f"the request is {say(request)}; expected a map", "type")
        found = leaves(request)
        for path in found:
            if path not in self._paths:
                name, known = shown(path)[:80], list(map(shown, self._paths))
                raise WireError(f"the request has the unknown key '{name}'{nearest(name, known)}", "schema")
        images = {
            self._features[name].name: self._pixels(found, path, name) for path, name in self._images.items()
        }
        came = None if self._state_path is None else self._vector(found, self._state_path)
        state = (
            np.zeros(0, np.float32) if came is None or self._state is None else self._state.to_policy(came)
        )
        return Observation(state, images, task=self._task(found)), came

    def _pixels(self, found: Mapping[Place, Any], path: Place, name: str) -> np.ndarray:
        height, width, _ = self._features[name].shape
        is_chw = self._keys.images[name].layout == "chw"
        wanted = (3, height, width) if is_chw else (height, width, 3)
        value = _there(found, path)
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape != wanted:
            raise WireError(f"'{shown(path)}' is {_kind(value)}; this bundle takes uint8 {wanted}", "type")
        return np.ascontiguousarray(value.transpose(1, 2, 0)) if is_chw else value

    def _vector(self, found: Mapping[Place, Any], path: Place) -> np.ndarray:
        value, n = _there(found, path), len(self._names["state"][0])
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.shape != (n,):
            raise WireError(f"'{shown(path)}' is {_kind(value)}; this bundle takes {n} numbers", "type")
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(value.astype(np.float32)).all()
        if not is_finite:
            raise WireError(f"'{shown(path)}' holds values that are not finite", "range")
        return value

    def _task(self, found: Mapping[Place, Any]) -> str:
        path, prompt = self._prompt_path, self._m.prompt
        if path is None or (path not in found and (prompt is None or prompt.default_task)):
            return ""
        value = _there(found, path)
        if not isinstance(value, str) or len(value) > LONGEST_TASK:
            raise WireError(
                f"'{shown(path)}' is {_kind(value)}; expected a text of at most {LONGEST_TASK} characters",
                "type",
            )
        return value

    def reply(
        self, actions: np.ndarray, came: np.ndarray | None, policy_ms: float, server_ms: float
    ) -> dict[str, Any]:
        """What openpi's client is sent. actions: float32 (T, A), policy units; came: the state it sent, or None."""
        state = {} if came is None else {"state": came}
        return {
            "actions": self._actions.to_robot(actions), **state,
            "policy_timing": {"infer_ms": policy_ms}, "server_timing": {"infer_ms": server_ms},
        }  # fmt: skip


def _there(found: Mapping[Place, Any], path: Place) -> Any:
    if path not in found:
        raise WireError(f"the request lacks the key '{shown(path)}'", "schema")
    return found[path]


def _kind(value: Any) -> str:
    return (
        f"{value.dtype} {value.shape}"
        if isinstance(value, np.ndarray)
        else f"{type(value).__name__} {say(value)[:80]}"
    )
