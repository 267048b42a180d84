"""A policy that no checkpoint holds yet: features from the dataset, LeRobot's default pipelines, ImageNet trunks."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevla.dataset.stats import IMAGENET
from edgevla.errors import CheckpointError, ConfigError, UsageError
from edgevla.hub import why_unreachable
from edgevla.strict import nearest
from edgevla.types import ACTION, ENVIRONMENT_STATE

from .policies import policy_class
from .policies.base import Policy
from .policies.config import Features, PolicyConfig, PolicyFeature
from .processors import Stats

_LOG = logging.getLogger(__name__)


def new_policy(
    policy_type: str,
    features: Mapping[str, Mapping[str, Any]],
    stats: Stats,
    overrides: Mapping[str, Any] | None = None,
    *,
    use_imagenet_stats: bool = True,
    backbone_weights: str | Path | None = None,
    trunk_width: int = 0,
    say: Callable[[str], None] = print,
) -> Policy:
    """A fresh policy for a dataset, in train mode, initialised from torch's global generator.

    features: as in the dataset's info.json. stats: of the dataset. overrides: config fields by LeRobot's names.
    use_imagenet_stats: cameras are normalised by ImageNet's mean and std instead of the dataset's.
    backbone_weights: a torchvision ResNet file (.pth, .safetensors) to start the vision trunk from; else the
    config's `pretrained_backbone_weights` is looked for in torch's and the hub's caches and on the hub.
    trunk_width: channels in the vision trunk's stem; 0: the published 64. LeRobot knows only that one, so a narrow
    trunk is for small policies of our own; its sizes are found again in the weights.
    say: told where the trunk's weights came from.

    Raises:
        ConfigError: an override that the policy has no field for.
        CheckpointError: unknown policy, settings that cannot work together, a weight file that does not fit.
    """
    cls = policy_class(policy_type)
    config = fresh_config(cls.Config, features, overrides or {})
    stats = imagenet_stats(stats, config) if use_imagenet_stats else stats
    shapes = cls.trunk_shapes(config, trunk_width) if trunk_width else None
    policy = cls.build(config, cls.default_processors(config, stats), shapes)
    _start_trunks(policy, backbone_weights, say)
    return policy.train()


def fresh_config(
    cls: type[PolicyConfig], features: Mapping[str, Mapping[str, Any]], overrides: Mapping[str, Any]
) -> PolicyConfig:
    """Defaults, then the dataset's features, then `overrides` (LeRobot's field names; a mapping merges into a map)."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    defaults = cls()
    for name, value in overrides.items():
        if name not in known:
            hint = nearest(name, known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"policy '{cls.type}' has no setting '{name}'{hint}")
        default = getattr(defaults, name)
        if name in ("input_features", "output_features"):
            value = {k: _as_feature(f) for k, f in value.items()}
        elif isinstance(default, dict) and isinstance(value, Mapping):
            value = {**default, **value}
        elif "tuple" in str(known[name].type) and isinstance(value, list):
            value = tuple(value)
        values[name] = value
    found = policy_features(features)
    outputs = {k: f for k, f in found.items() if f.type == "ACTION"}
    values.setdefault("output_features", outputs)
    values.setdefault("input_features", {k: f for k, f in found.items() if f.type != "ACTION"})
    config = cls(**values)
    config.validate()
    return config


def policy_features(features: Mapping[str, Mapping[str, Any]]) -> Features:
    """Dataset features -> policy features, in the dataset's order (docs/policies.md#features).

    Raises:
        CheckpointError: a camera whose shape is not (height, width, 3) or (3, height, width).
    """
    found: Features = {}
    for name, feature in features.items():
        shape: tuple[int, ...] = tuple(int(n) for n in feature["shape"])
        if feature["dtype"] in ("image", "video"):
            if len(shape) != 3:
                raise CheckpointError(
                    f"camera '{name}' has shape {shape}; expected (height, width, channels)"
                )
            names = list(feature.get("names") or [])
            if len(names) == 3 and names[2] in ("channel", "channels"):
                shape = (shape[2], shape[0], shape[1])
            found[name] = PolicyFeature("VISUAL", shape)
        elif name == ENVIRONMENT_STATE:
            found[name] = PolicyFeature("ENV", shape)
        elif name.startswith("observation"):
            found[name] = PolicyFeature("STATE", shape)
        elif name.startswith(ACTION):
            found[name] = PolicyFeature("ACTION", shape)
    return found


def imagenet_stats(stats: Stats, config: PolicyConfig) -> Stats:
    """A copy of `stats` with ImageNet's mean and std, shaped (3, 1, 1), for every camera of the policy."""
    replaced = copy.copy(stats)
    for camera in config.image_features:
        moments = {k: np.array(v, np.float32).reshape(3, 1, 1) for k, v in IMAGENET.items()}
        replaced[camera] = {**replaced.get(camera, {}), **moments}
    return replaced


def _as_feature(feature: Any) -> PolicyFeature:
    if isinstance(feature, PolicyFeature):
        return feature
    return PolicyFeature(str(feature["type"]), tuple(feature["shape"]))


# -- ImageNet trunks --------------------------------------------------------------------------------------


def _start_trunks(policy: Policy, path: str | Path | None, say: Callable[[str], None]) -> None:
    """Loads the vision trunk's ImageNet weights where a policy has ResNet trunks and its config wants them."""
    trunks, trunk = policy.trunks(), policy.config.trunk
    if not trunks or trunk is None:
        if path is not None:
            raise UsageError(f"--backbone-weights is for ResNet trunks; {policy.policy_type} has none here")
        return
    name, wanted = trunk
    if path is None and wanted is None:
        say(f"The vision trunk ({name}) starts from random weights, as the configuration asks.")
        return
    file = Path(path) if path is not None else find_trunk_weights(name, wanted or "")
    if file is None:
        say(
            f"The vision trunk ({name}) starts from RANDOM weights: {wanted} is neither in torch's cache nor to be "
            "had from the hub. Training takes longer and reaches less; give a torchvision file with --backbone-weights."
        )
        return
    weights = read_trunk_weights(file)
    for module in trunks:
        load_trunk(module, weights, file)
    say(f"The vision trunk ({name}) starts from the weights in {file}.")


def find_trunk_weights(backbone: str, wanted: str) -> Path | None:
    """A local file of torchvision's weights: torch's download cache, then the hub (its cache, then the network)."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(cache.glob(f"{backbone}-*.pth")) if cache.is_dir() else []
    if found:
        return found[0]
    from huggingface_hub import hf_hub_download

    version = "tv2_in1k" if wanted.endswith("V2") else "tv_in1k"
    file = (f"timm/{backbone}.{version}", "model.safetensors")
    with contextlib.suppress(Exception):
        return Path(hf_hub_download(*file, local_files_only=True))
    if (reason := why_unreachable()) is not None:
        _LOG.info("no ImageNet weights from the hub: %s", reason)
        return None
    try:
        return Path(hf_hub_download(*file))
    except Exception as error:  # the hub's client raises many kinds; none of them may stop a training
        _LOG.info("no ImageNet weights from the hub: %s", error)
        return None


def read_trunk_weights(file: Path) -> dict[str, Tensor]:
    """Names and tensors of a torchvision ResNet, without its classifier.

    Raises:
        CheckpointError: no such file, or one that is not a plain table of tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"backbone weights {file} do not exist")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(str(file))
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        return {k: v for k, v in weights.items() if not k.startswith("fc.")}
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"backbone weights {file} cannot be read: {error}") from error


def load_trunk(trunk: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Raises CheckpointError when the file is of another ResNet than the trunk."""
    own = trunk.state_dict()
    missing = sorted(set(own) - set(weights))
    left_over = sorted(k for k in set(weights) - set(own) if not k.endswith("num_batches_tracked"))
    wrong = sorted(k for k in set(own) & set(weights) if own[k].shape != weights[k].shape)
    # Batch norm's counter is not among old files' weights; it only counts.
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or left_over or wrong:
        names = [*missing, *left_over, *wrong]
        raise CheckpointError(
            f"backbone weights {file} are of another trunk: {len(names)} names or shapes differ, e.g. {names[0]}"
        )
    trunk.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
