"""The config's part of the account: every key of config.json is a field of the settings, or on a list, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from edgevla.errors import CheckpointError
from edgevla.strict import nearest

from .account_pipelines import N17
from .entries import Entry
from .policies.checkpoints import OTHER_KEYS

NO_EFFECT: dict[str, str] = {
    "device": "the export's target decides",
    "use_amp": "the export's --precision decides",
    "use_peft": "adapters are found by their files",
    "push_to_hub": "publishing",
    "repo_id": "publishing",
    "private": "publishing",
    "tags": "publishing",
    "license": "publishing",
    "pretrained_path": "where training began",
    "pretrained_revision": "where training began",
    "compile_model": "of LeRobot's speed",
    "compile_mode": "of LeRobot's speed",
    "use_cache": "of LeRobot's speed",
    "gradient_checkpointing": "memory of training",
    "rtc_config": "real-time chunking is chosen at deployment",
}
"""Fields of settings that change nothing that is computed, and why."""
TRAINING = ("optimizer_", "scheduler_", "freeze_", "tune_", "lora_")
"""Beginnings of keys that say how LeRobot trains. They are kept on saving and change nothing at inference."""


N17_KEYS = ("n1_7_backbone_model", "action_decode_transform")


def account_of_config(config: Mapping[str, Any]) -> Iterator[Entry]:
    """config: config.json as it is."""
    policy = str(config["type"])
    if is_n17(config):
        yield Entry("config.json", "type", f"{N17}; refused", "refused")
        return
    try:
        fields = fields_of(policy)
    except ModuleNotFoundError:
        yield Entry("config.json", "keys", "what they do is known where torch is", "unknown")
        return
    except CheckpointError as error:
        yield Entry("config.json", "type", str(error), "refused")
        return
    yield from account_of_keys(policy, config, fields)


def account_of_keys(policy: str, config: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[Entry]:
    """fields: the settings that the policy reads."""
    for key, value in config.items():
        if key != "type":
            yield _key(policy, key, value, fields)


def fields_of(policy: str) -> dict[str, Any]:
    """The settings that a policy reads. Raises CheckpointError: no such policy. ModuleNotFoundError: no torch."""
    from .policies import config_class

    cls = config_class(policy)
    return {f.name: f for f in dataclasses.fields(cls) if f.name not in cls.own_keys}


def _key(policy: str, key: str, value: Any, fields: Mapping[str, Any]) -> Entry:
    where = "config.json"
    if key in fields:
        reason = NO_EFFECT.get(key) or ("how LeRobot trains" if key.startswith(TRAINING) else None)
        return Entry(where, key, reason or "honoured", "used" if reason is None else "no effect")
    other = OTHER_KEYS.get(policy, {}).get(key)
    if other is not None and other.allows(value):
        return Entry(where, key, other.becomes, "no effect")
    if key.startswith(("optimizer_", "scheduler_")):
        return Entry(where, key, "how LeRobot trains; kept on saving", "no effect")
    return Entry(where, key, f"{why_unknown(policy, key, value, fields)}; refused", "refused")


def why_unknown(policy: str, key: str, value: Any, fields: Mapping[str, Any]) -> str:
    """The sentence about a key of `config.json` that no field and no list knows."""
    if key in OTHER_KEYS.get(policy, {}):
        return f"config.json ({policy}): {key} is {value!r}, and such a policy's network is none that EdgeVLA supports"
    known = [*fields, *OTHER_KEYS.get(policy, {})]
    return f"config.json ({policy}): the key '{key}' = {value!r} is unknown here{nearest(key, known)}"


def is_n17(config: Mapping[str, Any]) -> bool:
    """Whether a config is of GR00T N1.7: LeRobot's since 0.6, or the published base model's."""
    version = str(config.get("model_version") or "").lower().replace("_", ".").replace("d", ".").lstrip("n")
    named = [config.get("base_model_path"), config.get("model_type"), *(config.get("architectures") or [])]
    said = " ".join(str(n).lower() for n in named)
    return (
        version in ("1.7", "17")
        or any(key in config for key in N17_KEYS)
        or any(word in said for word in ("n1.7", "n1_7", "n1d7"))
    )
