"""The policy that a run starts with: fresh for a dataset, from another checkpoint, on a backbone, or resumed."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.checkpoints import policy_folder
from edgevla.dataset.facts import DatasetFacts, read_facts
from edgevla.dataset.reader import Dataset
from edgevla.errors import CheckpointError, DatasetError, EdgeVLAError, UsageError
from edgevla.strict import Mismatch, nearest, read
from edgevla.types import ACTION, STATE
from edgevla.vocabulary import matches

from .account import account_of
from .account_config import is_n17
from .account_pipelines import N17
from .backbone import backbone_folder
from .cameras import Cameras, for_fresh_policy, for_policy, refuse_depth
from .checkpoint import CONFIG, WeightsMisfit, checkpoint_folder, load_policy
from .config import TrainConfig
from .data import (
    Tokenize,
    check_sizes_of,
    checkpoints_rename,
    dataset_features,
    dataset_stats,
    own_rename,
    relative_stats,
)
from .fresh import fresh_config, imagenet_stats, new_policy, policy_features
from .policies import policy_class
from .policies.base import Policy
from .policies.config import PolicyConfig
from .policies.flow_config import FlowConfig
from .policies.vla_config import set_relative
from .processors import NORMALIZERS, UNNORMALIZERS, Processors, Stats, flatten_stats

Say = Callable[[str], None]

FROM_OPTIMIZER = {
    "optimizer_lr": "lr",
    "optimizer_betas": "betas",
    "optimizer_eps": "eps",
    "optimizer_weight_decay": "weight_decay",
    "optimizer_grad_clip_norm": "grad_clip_norm",
}
FROM_SCHEDULER = {
    "scheduler_warmup_steps": "warmup_steps",
    "scheduler_decay_steps": "decay_steps",
    "scheduler_decay_lr": "decay_lr",
}
OPTIONS = {
    "optimizer_lr": "--lr",
    "optimizer_weight_decay": "--weight-decay",
    "optimizer_grad_clip_norm": "--grad-clip",
    "optimizer_betas": "it in a --recipe",
    "optimizer_eps": "it in a --recipe",
    "scheduler_name": "--schedule",
    "scheduler_warmup_steps": "--warmup",
    "warmup_ratio": "--warmup",
    "scheduler_decay_steps": "--decay-steps",
    "scheduler_decay_lr": "--final-lr",
}
"""Fields of config.json that say how the run goes, and the options that decide them."""


def start_policy(config: TrainConfig, dataset: Dataset, say: Say) -> tuple[Policy, Cameras]:
    """A policy that fits the dataset, and how their cameras are joined."""
    cls = policy_class(config.policy)
    settings = typed_settings(cls.Config, config)
    is_published = config.start == cls.published_backbone
    folder = backbone_folder(config.start) if is_published else Path(config.start)
    is_trained = bool(config.start) and not is_backbone(folder)
    _check_start(config, cls, settings, is_trained)
    if not is_trained:
        if config.start and is_n17(json.loads((folder / CONFIG).read_text())):
            raise CheckpointError(f"--from {folder}: {N17}; refused")
        settings = {**cls.unfrozen, **settings} if config.from_scratch else settings
        return _fresh(config, settings, dataset, folder if config.start else None, say)
    for note in account_of(checkpoint_folder(config.start)).require(for_training=True).notes:
        say(f"note: {note}")
    made: list[tuple[PolicyConfig, Cameras]] = []

    def adapt(policy_config: PolicyConfig, processors: Processors) -> PolicyConfig:
        made.append(_adapt(config, settings, dataset, policy_config, processors))
        return made[-1][0]

    try:
        policy = load_policy(config.start, adapt=adapt, base=config.base)
    except WeightsMisfit as error:
        raise _reshaped(config, dataset, error) from error
    say(f"Starts from the weights in {config.start}.")
    return policy.train(), made[-1][1]


def start_facts(config: TrainConfig) -> DatasetFacts | None:
    """What the checkpoint that the run starts from knows of its own data; None: nothing, or no checkpoint here."""
    folder = policy_folder(Path(config.start)) if config.start else None
    return None if folder is None else read_facts(folder)


def _check_start(
    config: TrainConfig, cls: type[Policy], settings: Mapping[str, Any], is_trained: bool
) -> None:
    """Raises UsageError where the options do not agree about what the policy starts from."""
    backbone = cls.published_backbone
    for is_given, option in (
        (config.trunk_width, "--trunk-width"),
        (config.backbone_weights, "--backbone-weights"),
    ):
        if is_given and config.start:
            raise UsageError(f"{option} is for a fresh vision trunk; --from {config.start} brings its own")
    if config.lora and not is_trained:
        raise UsageError("--lora adapts a trained policy; name one with --from CHECKPOINT")
    if config.base and not is_trained:
        raise UsageError("--base is for adapters (LoRA); name one with --from CHECKPOINT")
    if config.from_scratch and config.start:
        raise UsageError(f"--from-scratch and --from {config.start} contradict each other; leave one out")
    if config.from_scratch and backbone is None:
        raise UsageError(f"{config.policy} has no backbone to start without; leave --from-scratch out")
    if settings.get("snapflow_weight") and not is_trained:
        raise UsageError(
            "snapflow_weight (--recipe snapflow) is a second phase, in which a trained policy distils itself; name it "
            "with --from RUN"
        )
    if config.start:
        return
    if config.domain_id is not None:
        raise UsageError("--domain-id chooses among a checkpoint's soft prompts; name one with --from")
    if backbone is not None and not config.from_scratch and not cls.Config.fetches_backbone(settings):
        raise UsageError(
            f"{config.policy} is built on a trained backbone, and none was named: --from takes a trained policy of this "
            f"type, or {backbone} (its folder or this hub id); --from-scratch trains all of it from random weights, "
            "which takes far more data and time"
        )


def _reshaped(config: TrainConfig, dataset: Dataset, error: WeightsMisfit) -> EdgeVLAError:
    """Why trained weights do not fit this run's network, found by trial: the folder, the dataset, or a setting."""
    own = load_policy(config.start, base=config.base).config  # raises where the folder itself is at fault
    trained = {**own.input_features, **own.output_features}
    try:
        load_policy(config.start, adapt=lambda c, p: _adapt(config, {}, dataset, c, p)[0], base=config.base)
    except WeightsMisfit:
        features = policy_features(dataset_features(dataset, {}))
        differing = [
            f"'{name}' has shape {list(feature.shape)} and was trained with {list(trained[name].shape)}"
            for name, feature in features.items()
            if feature.type != "VISUAL" and name in trained and trained[name].shape != feature.shape
        ]
        return DatasetError(
            f"{dataset.root} is of another robot than the policy in {config.start}, whose network cannot follow: "
            f"{'; '.join(differing) or error}; train on other data, or afresh without --from"
        )
    return UsageError(
        f"this run sets {', '.join(config.settings)} (--set or its recipe), and then the trained weights fit no more: "
        f"leave out what shapes the network, or train afresh without --from ({error})"
    )


def is_backbone(folder: str | Path) -> bool:
    """Whether a folder is a Hugging Face model (`model_type`) rather than a LeRobot policy (`type`)."""
    try:
        data = json.loads((Path(folder) / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return "type" not in data and "model_type" in data


def typed_settings(cls: type[PolicyConfig], config: TrainConfig) -> dict[str, Any]:
    """The policy's own config fields that this run decides: from the recipe and `--set`, and the optimizer's."""
    fields = {f.name for f in dataclasses.fields(cls)}
    settings: dict[str, Any] = {}
    for table, part in ((FROM_OPTIMIZER, config.optimizer), (FROM_SCHEDULER, config.scheduler)):
        settings |= {k: getattr(part, v) for k, v in table.items() if k in fields}
    if config.gradient_checkpointing and "gradient_checkpointing" in fields:
        settings["gradient_checkpointing"] = True
    return settings | own_settings(cls, config.settings)


def own_settings(cls: type[PolicyConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the policy's config as typed values.

    Raises:
        UsageError: a field that the policy does not have, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    typed: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in fields:
            raise UsageError(f"--set {key}: {cls.type} has no such field{nearest(key, fields)}")
        if key in ("input_features", "output_features"):
            raise UsageError(f"--set {key}: features come from the dataset; see --camera")
        if key in OPTIONS:
            raise UsageError(f"--set {key} is decided by the run; say {OPTIONS[key]}")
        try:
            typed[key] = read(fields[key], value, f"--set {key}", words=True)
        except Mismatch as error:
            raise UsageError(str(error)) from None
    return typed


def _fresh(
    config: TrainConfig, settings: Mapping[str, Any], dataset: Dataset, backbone: Path | None, say: Say
) -> tuple[Policy, Cameras]:
    refuse_depth(
        (*config.cameras, *config.cameras.values(), *config.features), dataset.info.features.values()
    )
    cameras = for_fresh_policy(config.cameras, dataset.cameras)
    check_sizes_of(dataset, [c for c in dataset.cameras if c not in cameras.unused])
    features = {k: v for k, v in dataset_features(dataset, cameras.rename).items() if k not in cameras.unused}
    cls = policy_class(config.policy)
    settings = _with_names(cls.Config, settings, dataset)
    policy_config = fresh_config(cls.Config, features, settings)
    stats = _relative_stats(
        dataset_stats(dataset, cameras.rename), policy_config, None, dataset, cameras.rename
    )
    if backbone is None:
        policy = new_policy(
            config.policy,
            features,
            stats,
            settings,
            use_imagenet_stats=config.imagenet_stats,
            backbone_weights=config.backbone_weights or None,
            trunk_width=config.trunk_width,
            say=say,
        )
        if config.from_scratch:
            say("Nothing is pretrained: the backbone, too, starts from random weights and is trained.")
        else:
            say("The rest of the policy starts from random weights.")
    else:
        stats = imagenet_stats(stats, policy_config) if config.imagenet_stats else stats
        processors = cls.default_processors(policy_config, stats)
        _set_domain(processors, config, policy_config)
        policy = cls.from_backbone(backbone, policy_config, processors)
        say(f"The backbone starts from {backbone}, the rest of the policy from random weights.")
    _set_rename(policy.processors, checkpoints_rename(dataset, cameras.rename))
    return policy, cameras


def _adapt(
    config: TrainConfig,
    settings: Mapping[str, Any],
    dataset: Dataset,
    policy_config: PolicyConfig,
    processors: Processors,
) -> tuple[PolicyConfig, Cameras]:
    """Another checkpoint's config and pipelines, made those of this dataset: its features, its statistics."""
    if policy_config.type != policy_class(config.policy).policy_type:
        raise UsageError(
            f"--from {config.start} holds a policy of type {policy_config.type}, but --policy says {config.policy}"
        )
    own = list(policy_config.image_features)
    unsaid = [name for name in own if not any(name in matches(word, own) for word in config.cameras)]
    refuse_depth((*config.cameras.values(), *config.features, *unsaid), dataset.info.features.values())
    cameras = for_policy(config.cameras, dataset.cameras, own, own_rename(dataset, processors.rename_map))
    check_sizes_of(dataset, [c for c in dataset.cameras if c not in cameras.unused])
    cls = policy_class(config.policy)
    settings = _with_names(cls.Config, settings, dataset)
    _check_one_step(config, policy_config, settings)
    features = policy_features(dataset_features(dataset, cameras.rename))
    inputs = dict(policy_config.input_features)
    if cls.needs_every_camera:  # what is trained without a camera may run without it
        inputs = {name: feature for name, feature in inputs.items() if name not in cameras.absent}
    for name in inputs:
        # Cameras keep the size they really have.
        is_open = inputs[name].type == "VISUAL" or (name == STATE and policy_config.takes_any_state)
        if name in features and is_open:
            inputs[name] = features[name]
    merged: dict[str, Any] = {
        k: {**getattr(policy_config, k), **v} if isinstance(v, dict) and getattr(policy_config, k) else v
        for k, v in settings.items()
    }
    adapted = dataclasses.replace(
        policy_config,
        **merged,
        input_features=inputs,
        output_features={ACTION: features[ACTION]} if ACTION in features else policy_config.output_features,
        pretrained_path=config.start,
    )
    adapted.validate()
    said = {key: getattr(adapted, name) for name, key in adapted.relative_fields.items() if name in settings}
    if said:
        set_relative(processors, said)
    stats = _relative_stats(
        dataset_stats(dataset, cameras.rename), adapted, processors, dataset, cameras.rename
    )
    if config.imagenet_stats:
        stats = imagenet_stats(stats, adapted)
    if not processors.pre:  # a folder from before LeRobot 0.4, without statistics among its weights
        fresh = cls.default_processors(adapted, stats)
        processors.pre, processors.post = fresh.pre, fresh.post
    _set_stats(processors, adapted, flatten_stats(stats), settings)
    _set_rename(processors, checkpoints_rename(dataset, cameras.rename))
    _set_domain(processors, config, adapted)
    return adapted, cameras


def _check_one_step(config: TrainConfig, trained: PolicyConfig, settings: Mapping[str, Any]) -> None:
    """Raises UsageError where a second phase does not follow from what the policy was trained for."""
    if not isinstance(trained, FlowConfig) or "snapflow_weight" not in settings:
        return
    if settings["snapflow_weight"] and trained.denoises_once:
        how = next(k for k in ("snapflow_weight", "one_step_time_shift") if getattr(trained, k))
        raise UsageError(
            f"--from {config.start} denoises in one step already ({how}={getattr(trained, how):g}), so it has no "
            "several steps to learn from; name the policy that it was trained from, or leave the recipe out to "
            "fine-tune it"
        )
    if trained.snapflow_weight and not settings["snapflow_weight"]:
        raise UsageError(
            f"--from {config.start} has learned to denoise in one step, and snapflow_weight=0 would not undo it; start "
            "from the policy that it was trained from"
        )


def _with_names(cls: type[PolicyConfig], settings: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    action = dataset.info.features.get(ACTION)
    return cls.with_names(settings, action.names if action is not None else ())


def _relative_stats(
    stats: Stats,
    config: PolicyConfig,
    processors: Processors | None,
    dataset: Dataset,
    rename: Mapping[str, str],
) -> Stats:
    """The actions' statistics are those of what the network learns: relative ones where the policy's are.

    processors: a checkpoint's; None: as a fresh policy of this config has them.
    """
    cls = policy_class(config.type)
    if processors is None:
        processors = cls.default_processors(config, {})
    elif cls.relative_mask(config, processors) is not None:
        set_relative(processors, {"action_names": list(dataset.info.features[ACTION].names)})
    mask = cls.relative_mask(config, processors)
    if mask is None:
        return stats
    return {**stats, ACTION: relative_stats(dataset, mask.numpy(), config.chunk_length, rename)}


def _set_stats(
    processors: Processors, config: PolicyConfig, flat: dict[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    state = {k: np.asarray(v, np.float32) for k, v in flat.items()}
    named = {**config.input_features, **config.output_features}
    features = {k: {"type": f.type, "shape": list(f.shape)} for k, f in named.items()}
    outputs = {k: v for k, v in features.items() if k in config.output_features}
    for step in (*processors.pre, *processors.post):
        if step.name in (*NORMALIZERS, *UNNORMALIZERS):
            step.state = state
        if "features" in step.config:
            step.config["features"] = features if step.name == "normalizer_processor" else outputs
        if "norm_map" in step.config and "normalization_mapping" in settings:
            step.config["norm_map"] = dict(config.normalization_mapping)
        if "env_action_dim" in step.config:
            step.config["env_action_dim"] = config.action_dim


def _set_rename(processors: Processors, rename: Mapping[str, str]) -> None:
    step = processors.step("rename_observations_processor")
    if step is not None:
        step.config["rename_map"] = dict(rename)


def _set_domain(processors: Processors, config: TrainConfig, policy_config: PolicyConfig) -> None:
    if config.domain_id is not None:
        policy_class(config.policy).choose_domain(policy_config, processors, config.domain_id)


def tokenizer_of(policy: Policy) -> Tokenize | None:
    """What makes a policy's language inputs from tasks and raw states; None for a policy without language."""
    if policy.prompt_recipe() is None:
        return None
    builder = policy.prompt_builder()

    def tokenize(tasks: list[str], states: np.ndarray | None) -> dict[str, np.ndarray]:
        prompt = builder.build(tasks, states)
        return {"tokens": prompt.tokens, "token_mask": prompt.mask}

    return tokenize
