"""What becomes of every step of LeRobot's pipelines, per policy: one table for `inspect`, `train --from` and `export`.

A pipeline is a list of named steps with settings. A step that is not in a policy's row, a setting that is not in the
step's, and a value that is not among those that are computed here are refused by name: what nobody reads must not
vanish. `docs/pipelines.md` shows this table. Nothing here imports torch, so that a robot can inspect a checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgevla.types import ACTION

MODES: dict[str, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""Normalisation mode -> the statistics that it needs."""
STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
"""All that LeRobot computes of a feature."""

Refuse = Callable[[Any, Mapping[str, Any]], str | None]
"""(a setting's value, config.json) -> why it is refused, None where it is not."""


@dataclass(frozen=True)
class StepSetting:
    """becomes: what a person reads of it. refuse: see `Refuse`."""

    becomes: str
    refuse: Refuse


@dataclass(frozen=True)
class StepRule:
    """names: LeRobot's registry names, the newest first. has_state: whether tensors belong to it. may_repeat: whether a
    second one changes nothing, or is computed like the first."""

    names: tuple[str, ...]
    becomes: str
    settings: Mapping[str, StepSetting] = field(default_factory=dict)
    has_state: bool = False
    may_repeat: bool = False

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Pipelines:
    """A policy's row. needs: steps that must be there. orders: chains of steps of which each stands before the next.

    had_none: LeRobot before 0.4 wrote this policy without pipeline files.
    """

    pre: tuple[StepRule, ...]
    post: tuple[StepRule, ...]
    needs: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    had_none: bool = False


# -- values ---------------------------------------------------------------------------------------------------


def _any(value: Any, config: Mapping[str, Any]) -> str | None:
    return None


def _only(*allowed: Any) -> Refuse:
    def refuse(value: Any, config: Mapping[str, Any]) -> str | None:
        if any(value is a if isinstance(a, bool) or a is None else value == a for a in allowed):
            return None
        return f"only {' or '.join(_shown(a) for a in allowed)} is computed here"

    return refuse


def _shown(value: Any) -> str:
    return json.dumps(value)


def _positive(value: Any, config: Mapping[str, Any]) -> str | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return None if is_number and math.isfinite(value) and value > 0 else "a number above 0 is expected"


def _count(value: Any, config: Mapping[str, Any]) -> str | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return None if is_whole and value >= 1 else "a whole number of at least 1 is expected"


def _same_as(key: str) -> Refuse:
    def refuse(value: Any, config: Mapping[str, Any]) -> str | None:
        wanted = config.get(key, value)
        return None if value == wanted else f"config.json says {key} {wanted!r}, and they must agree"

    return refuse


def _modes(value: Any, config: Mapping[str, Any]) -> str | None:
    if not isinstance(value, Mapping):
        return None if value is None else "a table of feature types and modes is expected"
    unknown = [m for m in value.values() if m not in MODES]
    return f"the mode {unknown[0]!r} is unknown; known: {', '.join(MODES)}" if unknown else None


def _listed_features(value: Any, config: Mapping[str, Any]) -> str | None:
    """A feature's type decides its mode, so it must be the config's own."""
    if not isinstance(value, Mapping):
        return None if value is None else "a table of features by name is expected"
    own = features_in(config)
    for name, feature in value.items():
        kind = feature.get("type") if isinstance(feature, Mapping) else None
        wanted = own[name].get("type") if name in own and isinstance(own[name], Mapping) else kind
        if kind is None or kind != wanted:
            return f"feature '{name}' has type {kind!r} there and {wanted!r} in config.json"
    return None


def _observations(value: Any, config: Mapping[str, Any]) -> str | None:
    is_list = isinstance(value, list) and all(isinstance(v, str) for v in value)
    return None if value is None or is_list else "a list of feature names is expected"


def _renames(value: Any, config: Mapping[str, Any]) -> str | None:
    """A map may feed the policy's features from others, and change its cameras among themselves."""
    if not isinstance(value, Mapping):
        return None if value is None else "a table of names is expected"
    inputs = features_in(config, "input_features")
    moved = {old: new for old, new in value.items() if old != new}
    for old, new in moved.items():
        if old in inputs and inputs[old].get("type") != "VISUAL":
            return f"it takes the policy's '{old}' away and calls it '{new}'"
        if old in inputs and old not in moved.values():
            return f"it calls the policy's camera '{old}' '{new}', and nothing feeds '{old}'"
        if list(moved.values()).count(new) > 1:
            return f"two features become '{new}'"
    return None


def features_in(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Features of a config.json by name, as they are written."""
    found: dict[str, Any] = {}
    for key in keys or ("input_features", "output_features"):
        table = config.get(key)
        found |= (
            {k: v for k, v in table.items() if isinstance(v, Mapping)} if isinstance(table, Mapping) else {}
        )
    return found


def _env_action_dim(value: Any, config: Mapping[str, Any]) -> str | None:
    shape = features_in(config, "output_features").get(ACTION, {}).get("shape") or [value]
    return (
        None if value in (0, shape[0]) else f"the action has {shape[0]} values; 0 or {shape[0]} is expected"
    )


def _action_horizon(value: Any, config: Mapping[str, Any]) -> str | None:
    wanted = min(int(config.get("chunk_size", 16)), 16)
    return None if value == wanted else f"chunk_size in config.json makes it {wanted}"


def _domain(value: Any, config: Mapping[str, Any]) -> str | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return None if is_whole else "a whole number is expected"


def _embodiments(value: Any, config: Mapping[str, Any]) -> str | None:
    is_table = isinstance(value, Mapping) and all(isinstance(v, int) for v in value.values())
    return None if is_table else "a table of tags and numbers is expected"


# -- steps ----------------------------------------------------------------------------------------------------

HONOURED = "honoured"
_DEVICE = {
    "device": StepSetting("changes nothing: the export's target decides", _any),
    "float_dtype": StepSetting("null or float32: all is computed in float32", _only(None, "float32")),
}
_NORMALIZER = {
    "eps": StepSetting(HONOURED, _positive),
    "features": StepSetting("honoured: what is not listed is not normalised", _listed_features),
    "norm_map": StepSetting("honoured; it wins over config.json", _modes),
    "normalize_observation_keys": StepSetting(HONOURED, _observations),
}


def tokenizer(*, cuts: bool) -> StepRule:
    """cuts: whether a prompt that is too long may also be refused instead of cut."""
    return StepRule(
        ("tokenizer_processor",),
        "the prompt's recipe in the bundle",
        {
            "tokenizer_name": StepSetting("where no tokenizer/ lies in the checkpoint", _any),
            "max_length": StepSetting(HONOURED, _count),
            "task_key": StepSetting("task only", _only("task")),
            "padding_side": StepSetting(HONOURED, _only("right", "left")),
            "padding": StepSetting(
                "max_length, or longest, which comes to the same where padding is masked",
                _only("max_length", "longest"),
            ),
            "truncation": StepSetting(
                f"{HONOURED}; X-VLA: true only", _only(True, False) if cuts else _only(True)
            ),
        },
    )


RENAME = StepRule(
    ("rename_observations_processor",),
    "which camera of the robot or dataset feeds which of the policy",
    {
        "rename_map": StepSetting(
            "honoured for cameras; another name of a feature in the data is taken", _renames
        )
    },
)
TO_BATCH = StepRule(("to_batch_processor",), "changes nothing: graphs have a batch axis", may_repeat=True)
DEVICE = StepRule(("device_processor",), "changes nothing", _DEVICE, may_repeat=True)
NORMALIZER = StepRule(("normalizer_processor",), "in `encode`", _NORMALIZER, has_state=True)
UNNORMALIZER = StepRule(("unnormalizer_processor",), "in `decode`", _NORMALIZER, has_state=True)
RELATIVE = StepRule(
    ("relative_actions_processor", "delta_actions_processor"),
    "in training; `decode` adds the state again",
    {
        "enabled": StepSetting("honoured; the post-processor must agree", _only(True, False)),
        "exclude_joints": StepSetting(HONOURED, _observations),
        "action_names": StepSetting(HONOURED, _observations),
    },
)
ABSOLUTE = StepRule(
    ("absolute_actions_processor",),
    "in `decode`",
    {"enabled": StepSetting("honoured; the pre-processor must agree", _only(True, False))},
)
NEWLINE = StepRule(
    ("smolvla_new_line_processor", "pi0_new_line_processor"), "the prompt's recipe in the bundle"
)
PREPARE_STATE = StepRule(
    ("pi05_prepare_state_tokenizer_processor_step",),
    "the prompt's recipe in the bundle",
    {
        "max_state_dim": StepSetting(
            "honoured: the prompt's state is padded so far, as LeRobot 0.4 did", _count
        ),
        "task_key": StepSetting("task only", _only("task")),
    },
)
_IMAGE_KEYS = {"image_keys": StepSetting(HONOURED, _observations)}
TO_FLOAT = StepRule(
    ("xvla_image_to_float",),
    "in `encode`",
    {**_IMAGE_KEYS, "validate_range": StepSetting("changes nothing: bytes are in range", _any)},
)
IMAGENET = StepRule(("xvla_imagenet_normalize",), "in `encode`", _IMAGE_KEYS)
IMAGE_SCALE = StepRule(("xvla_image_scale",), "in `encode`", _IMAGE_KEYS)
DOMAIN = StepRule(
    ("xvla_add_domain_id",),
    "the export keeps this domain's prompts and matrices",
    {"domain_id": StepSetting(HONOURED, _domain)},
)
ROT6D = StepRule(
    ("xvla_rotation_6d_to_axis_angle",),
    "in `decode`; such actions are poses, which export refuses",
    {"expected_action_dim": StepSetting("10 only", _only(10))},
)
PACK = StepRule(
    ("groot_pack_inputs_v3",),
    "in `encode` (state, embodiment) and the prompt's recipe",
    {
        "state_horizon": StepSetting("1 only", _only(1)),
        "action_horizon": StepSetting("must be what config.json's chunk_size makes it", _action_horizon),
        "max_state_dim": StepSetting("must be config.json's", _same_as("max_state_dim")),
        "max_action_dim": StepSetting("must be config.json's", _same_as("max_action_dim")),
        "language_key": StepSetting("task only", _only("task")),
        "formalize_language": StepSetting(HONOURED, _only(True, False)),
        "embodiment_tag": StepSetting("honoured: the export keeps this body's matrices", _any),
        "embodiment_mapping": StepSetting(HONOURED, _embodiments),
        "normalize_min_max": StepSetting("true only: LeRobot switches it on when it loads", _only(True)),
    },
    has_state=True,
)
EAGLE_ENCODE = StepRule(("groot_eagle_encode_v3",), "in `encode` (pictures) and the prompt's recipe")
EAGLE_COLLATE = StepRule(("groot_eagle_collate_v3",), "in `encode` (pictures) and the prompt's recipe")
UNPACK = StepRule(
    ("groot_action_unpack_unnormalize_v1",),
    "in `decode`, for every action of the chunk",
    {
        "env_action_dim": StepSetting("0, or the action's width", _env_action_dim),
        "normalize_min_max": StepSetting("true only: LeRobot switches it on when it loads", _only(True)),
    },
    has_state=True,
)

BOTH = (NORMALIZER.name, UNNORMALIZER.name)
PLAIN = Pipelines(
    (RENAME, TO_BATCH, DEVICE, NORMALIZER),
    (UNNORMALIZER, DEVICE),
    needs=BOTH,
    orders=((RENAME.name, NORMALIZER.name),),
    had_none=True,
)
"""Of a policy that says nothing else."""
N17_STEPS = ("groot_n1_7_", "groot_action_unpack_unnormalize_v2")
ELSEWHERE: dict[str, str] = {
    "render_messages_processor": "renders a dataset's language columns into messages (LeRobot 0.7)",
    "action_tokenizer_processor": "writes actions as tokens (Pi0-FAST)",
}
"""Steps of LeRobot that belong to no policy here, for the sentence."""


def pipelines_of(policy_type: str) -> Pipelines:
    """What a policy's saved pipelines may hold; the plain case where it has no row."""
    from .policies.checkpoints import PIPELINES

    return PIPELINES.get(policy_type, PLAIN)


def rule_of(rules: tuple[StepRule, ...], name: str) -> StepRule | None:
    """The rule that knows a step by this name; None: none does."""
    return next((rule for rule in rules if name in rule.names), None)


# -- drawn ----------------------------------------------------------------------------------------------------


def draw() -> str:
    """The table in Markdown: every step of every policy, and every setting of it."""
    from .policies.checkpoints import PIPELINES

    rows = [
        "| policy | before the network, in LeRobot's order | after it | must be there |",
        "| --- | --- | --- | --- |",
    ]
    for policy, row in PIPELINES.items():
        cells = (_names(row.pre), _names(row.post), ", ".join(f"`{name}`" for name in row.needs))
        rows.append(f"| {policy} | {' | '.join(cells)} |")
    rows += ["", "| step | what becomes of it | its settings |", "| --- | --- | --- |"]
    drawn: dict[str, StepRule] = {}
    for row in PIPELINES.values():
        drawn |= {rule.name: rule for rule in (*row.pre, *row.post) if rule.name not in drawn}
    for rule in drawn.values():
        names = " or ".join(f"`{name}`" for name in rule.names)
        settings = "; ".join(f"`{key}`: {setting.becomes}" for key, setting in rule.settings.items())
        rows.append(f"| {names} | {rule.becomes} | {settings or 'none'} |")
    return "\n".join(rows)


def _names(rules: tuple[StepRule, ...]) -> str:
    return ", ".join(f"`{rule.name}`" for rule in rules)
