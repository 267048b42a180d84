"""What the bundle's inputs and outputs mean on a robot: names, units, cameras, rate.

A LeRobot checkpoint does not say it. It comes from `edgevla.json` beside our own checkpoints, else from the dataset,
else from a robot's profile and `--fps`. Joint units are read where stated, inferred only to warn, else demanded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edgevla.dataset.facts import MID_RANGE, DatasetFacts, infer_joint_units, is_gripper
from edgevla.dataset.still import still_sentences, still_values
from edgevla.errors import CheckpointError, UsageError
from edgevla.look import CameraLook
from edgevla.manifest import Range
from edgevla.types import ACTION, ENVIRONMENT_STATE, STATE, CameraAge, Feature, FeatureKind
from edgevla.vocabulary import NONE, Side, join, matches, one_camera, robots_name, short_name

from .options import ExportOptions

if TYPE_CHECKING:
    from edgevla.train.policies.base import Policy

T = TypeVar("T")

NOT_JOINTS = "end-effector poses ('{}'), which no joint robot here can follow"
_BODY = {"degrees": "deg", "range100": "range100", "radians": "rad", "raw": "raw"}
_GRIPPER = {"degrees": "percent", "range100": "percent", "radians": "unit", "raw": "raw"}


@dataclass(frozen=True)
class Meaning:
    """features: in the manifest's order. dataset_keys: policy camera -> dataset camera, for samples.

    bindings: policy camera -> robot camera (`none`: absent). warnings: sentences for the user and the report.
    """

    features: dict[str, Feature]
    fps: float
    trained_range: dict[str, Range] | None
    trained_speed_p999: dict[str, tuple[float, ...]] | None
    trained_camera_age_ms: dict[str, CameraAge] | None
    trained_camera_look: dict[str, CameraLook] | None
    trained_still: dict[str, tuple[float | None, ...]] | None
    features_from: str
    joint_units: str
    dataset_keys: dict[str, str]
    bindings: dict[str, str]
    warnings: tuple[str, ...]


def decide(policy: Policy, facts: DatasetFacts | None, options: ExportOptions, origin: str) -> Meaning:
    """Fixes the policy's cameras (`set_cameras`) and says what every feature means.

    origin: where `facts` came from, for `features_from`.

    Raises:
        UsageError: something is not known and must be said, or what was said contradicts what is known.
    """
    profile = _profile(options.robot) if options.robot else None
    bindings, keys = _bind_cameras(policy, facts, options)
    cameras = _cameras(policy, facts, options, bindings, keys)
    units, warnings = _joint_units(policy, facts, profile, options)
    vectors = _vectors(policy, facts, profile, units)
    if options.adapt_to_pi_aloha:
        _adapt_to_aloha(policy, units)
    still = _trained_still(policy, vectors)
    for name, values in (still or {}).items():
        warnings += still_sentences(values, vectors[name].names, vectors[name].units)
    return Meaning(
        features={**cameras, **vectors},
        fps=_fps(facts, options),
        trained_range=_trained_range(facts, vectors),
        trained_speed_p999=_trained_speeds(facts, vectors),
        trained_camera_age_ms=_of_cameras(facts.camera_ages if facts is not None else {}, cameras, keys),
        trained_camera_look=_of_cameras(facts.camera_looks if facts is not None else {}, cameras, keys),
        trained_still=still,
        features_from=origin if facts is not None else _told(options),
        joint_units=units,
        dataset_keys=keys,
        bindings=bindings,
        warnings=tuple(warnings),
    )


def _adapt_to_aloha(policy: Policy, units: str) -> None:
    policy.adapt_to_aloha()
    if (policy.config.state_dim, policy.config.action_dim) != (14, 14) or units not in ("radians", "raw"):
        raise UsageError(
            "--adapt-to-pi-aloha maps the 14 joints of ALOHA in radians; this policy has "
            f"{policy.config.state_dim or 0} state and {policy.config.action_dim} action values in {units}"
        )


def _told(options: ExportOptions) -> str:
    """Where features come from when there is no dataset."""
    return " and ".join([*([f"robot '{options.robot}'"] if options.robot else []), f"--fps {options.fps:g}"])


def _profile(name: str) -> Any:
    return importlib.import_module("edgevla.robots.profile").load_profile(name)


def _fps(facts: DatasetFacts | None, options: ExportOptions) -> float:
    if facts is None and options.fps is None:
        raise UsageError(
            "nothing says at which rate the policy was trained; give --dataset PATH, or --robot and --fps"
        )
    if facts is not None and options.fps is not None and abs(facts.fps - options.fps) > 1e-6:
        raise UsageError(
            f"--fps is {options.fps:g}, but the training data has {facts.fps:g}; leave --fps out"
        )
    return float(facts.fps if facts is not None else options.fps)  # type: ignore[arg-type]


# -- cameras ------------------------------------------------------------------------------------------------


def _bind_cameras(
    policy: Policy, facts: DatasetFacts | None, options: ExportOptions
) -> tuple[dict[str, str], dict[str, str]]:
    """Policy camera -> robot camera or `none`; policy camera -> dataset key.

    Without a word from the user, the checkpoint's own rename step is honoured: the robot's camera is named like the
    dataset's.
    """
    listed = list(policy.config.image_features)
    # What a dataset is read as (`--feature`) the robot calls so, too: its columns' names are nobody's choice.
    read_as = {source: name for name, source in facts.reading.names.items()} if facts is not None else {}
    renamed = {new: read_as.get(old, old) for old, new in policy.processors.rename_map.items()}
    keys = {name: renamed.get(name, name) for name in listed}
    bindings = {
        name: NONE if ".empty_camera_" in name else robots_name(keys[name], keys.values()) for name in listed
    }
    bindings.update(_said_cameras(options.cameras, listed))
    live = [c for c in bindings.values() if c != NONE]
    twice = sorted({c for c in live if live.count(c) > 1})
    if twice:
        takers = [f for f, c in bindings.items() if c == twice[0]]
        raise UsageError(
            f"camera '{twice[0]}' would feed {', '.join(takers)}; say where the others get their pictures: "
            + " ".join(f"--camera {short_name(f, listed)}=CAMERA" for f in takers[1:])
        )
    if facts is not None:
        cameras = set(facts.cameras)
        for feature, camera in bindings.items():
            match = [c for c in cameras if robots_name(c, cameras) == camera]
            if keys[feature] not in cameras and len(match) == 1:
                keys[feature] = match[0]
    return bindings, keys


def _said_cameras(said: Mapping[str, str], listed: list[str]) -> dict[str, str]:
    """Policy camera -> robot camera or `none`, as the user says it.

    Raises:
        UsageError: names that do not fit, or that could be read either way round with two results.
    """
    names = {
        (left, right) for left, right in said.items() if matches(left, listed) and matches(right, listed)
    }
    for left, right in sorted(names):
        if left not in listed and (right, left) not in names:
            full = one_camera(left, Side("the policy", listed), f"--camera {left}={right}")
            raise UsageError(
                f"--camera {left}={right}: both are cameras of the policy; where its '{left}' shows the robot's camera "
                f"'{right}', say --camera {full}={right}"
            )
    return join(said, Side("the policy", listed), Side("the robot", None))


def _cameras(
    policy: Policy,
    facts: DatasetFacts | None,
    options: ExportOptions,
    bindings: Mapping[str, str],
    keys: Mapping[str, str],
) -> dict[str, Feature]:
    sizes = dict(options.camera_sizes)
    chosen: dict[str, tuple[int, int]] = {}
    for feature, camera in bindings.items():
        if camera == NONE:
            continue
        # A word that is one robot camera's name and another feature's means the robot's: it delivers the size.
        names = {camera, feature, *({short_name(feature, bindings)} - set(bindings.values()))}
        said = {n: sizes.pop(n) for n in sorted(names) if n in sizes}
        if len(said) > 1:
            raise UsageError(
                f"--camera-size names one camera twice, as {' and as '.join(said)}; once is enough"
            )
        known = facts.cameras.get(keys[feature]) if facts is not None else None
        chosen[feature] = next(iter(said.values()), None) or known or policy.camera_size(feature)
    if sizes:
        known_names = [c for c in bindings.values() if c != NONE]
        raise UsageError(
            f"--camera-size names '{next(iter(sizes))}'; the cameras are {', '.join(known_names)}"
        )
    absent = [feature for feature, camera in bindings.items() if camera == NONE]
    if absent and policy.needs_every_camera:
        raise CheckpointError(
            f"{policy.policy_type} was trained with camera '{absent[0]}' and acts otherwise without it; bind it to a "
            f"live camera, or fine-tune without it: edgevla train --from CHECKPOINT --camera {absent[0]}=none"
        )
    policy.set_cameras(chosen, absent)
    out: dict[str, Feature] = {}
    for feature in [*policy.live_cameras, *absent]:
        if bindings[feature] == NONE:
            out[feature] = Feature(feature, "absent_camera", ())
            continue
        other = None if bindings[feature] == feature.rpartition(".")[2] else bindings[feature]
        out[feature] = Feature(
            feature, "camera", (*chosen[feature], 3), "uint8", encoding="rgb8", camera=other
        )
    return out


# -- vectors ------------------------------------------------------------------------------------------------


def _joint_units(
    policy: Policy, facts: DatasetFacts | None, profile: Any, options: ExportOptions
) -> tuple[str, list[str]]:
    stated = facts.joint_units if facts is not None else None
    if facts is not None:
        guess, reason = facts.units_guess, facts.units_reason
    else:
        names = [j.name for j in profile.joints] if profile is not None else []
        guess, reason = infer_joint_units(policy.processors.stats, names)
    units = options.joint_units or stated
    if units is None and profile is not None and profile.joint_units == "rad":
        units = "radians"
    if units is None:
        hint = f" They look like {guess}: {reason}." if guess else f" The statistics do not tell: {reason}."
        raise UsageError(
            f"nothing says whether the policy's joints are degrees or -100..100 of their range.{hint} "
            "Say --joint-units degrees or --joint-units range100"
        )
    if policy.pose_space is not None and units != "raw":
        raise UsageError(
            f"the policy's actions are {NOT_JOINTS.format(policy.pose_space)}; "
            "--joint-units raw exports it for evaluation only"
        )
    warnings = []
    if stated is not None and units != stated:
        warnings.append(f"--joint-units {units} overrides '{stated}', which the recording states")
    if guess is not None and units in ("degrees", "range100") and guess != units:
        warnings.append(f"joints are taken as {units}, but they look like {guess}: {reason}")
    return units, warnings


def _vectors(policy: Policy, facts: DatasetFacts | None, profile: Any, units: str) -> dict[str, Feature]:
    out: dict[str, Feature] = {}
    signatures = policy.graphs()
    sources = {i.source: i for g in signatures.values() for i in g.inputs}
    state_dim = policy.config.state_dim
    if state_dim is not None:
        out[STATE] = _joints(
            STATE, "state", state_dim, _names(STATE, state_dim, facts, profile, units), units
        )
    environment = sources.get("environment_state")
    if environment is not None:
        out[ENVIRONMENT_STATE] = Feature(ENVIRONMENT_STATE, "environment_state", environment.shape[1:])
    n = signatures["decode"].outputs[0].shape[-1]
    out[ACTION] = _joints(ACTION, "action", n, _names(ACTION, n, facts, profile, units), units)
    return out


def _names(feature: str, n: int, facts: DatasetFacts | None, profile: Any, units: str) -> tuple[str, ...]:
    known = facts.features.get(feature) if facts is not None else None
    from_data = known.names if known is not None else ()
    from_robot = tuple(j.name for j in profile.joints) if profile is not None else ()
    if from_data and from_robot and {*from_data} != {*from_robot}:
        raise UsageError(
            f"'{feature}' of the training data has {', '.join(from_data)}; robot '{profile.name}' has "
            f"{', '.join(from_robot)}; leave --robot out, or name the robot it was recorded on"
        )
    names = from_data or from_robot
    if len(names) == n:
        return tuple(names)
    if units == "raw":
        return tuple(f"{feature.rpartition('.')[2]}_{i}" for i in range(n))
    have = f"{len(names)} are known" if names else "no names are known"
    raise UsageError(f"'{feature}' has {n} values, but {have}; give --dataset PATH or --robot NAME that fits")


def _joints(feature: str, kind: FeatureKind, n: int, names: tuple[str, ...], units: str) -> Feature:
    by_joint = tuple(_GRIPPER[units] if is_gripper(name) else _BODY[units] for name in names)
    zero = MID_RANGE if units in ("degrees", "range100") else None
    return Feature(feature, kind, (n,), names=names, units=by_joint, zero=zero)


def _trained_range(facts: DatasetFacts | None, vectors: Mapping[str, Feature]) -> dict[str, Range] | None:
    if facts is None:
        return None
    return {
        name: Range(tuple(r.q01), tuple(r.q99))
        for name, r in facts.trained_range.items()
        if name in vectors and len(r.q01) == vectors[name].shape[0]
    }


def _trained_still(
    policy: Policy, vectors: Mapping[str, Feature]
) -> dict[str, tuple[float | None, ...]] | None:
    """Elements of the state that never moved in training, by the checkpoint's own statistics; None: all of them did."""
    state = vectors.get(STATE)
    if state is None:
        return None
    still = still_values(policy.processors.stats.get(STATE, {}), state.units)
    if len(still) != state.shape[0] or all(value is None for value in still):
        return None
    return {STATE: tuple(still)}


def _trained_speeds(
    facts: DatasetFacts | None, vectors: Mapping[str, Feature]
) -> dict[str, tuple[float, ...]] | None:
    if facts is None:
        return None
    n = vectors[ACTION].shape[0]
    return {name: tuple(v) for name, v in facts.trained_speed_p999.items() if name == ACTION and len(v) == n}


def _of_cameras(
    known: Mapping[str, T], cameras: Mapping[str, Feature], keys: Mapping[str, str]
) -> dict[str, T] | None:
    """What is known of the dataset's cameras, by policy camera; None where it is nothing."""
    live = [name for name, feature in cameras.items() if feature.kind == "camera"]
    return {name: known[keys[name]] for name in live if keys[name] in known} or None
