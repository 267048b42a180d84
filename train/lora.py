"""LoRA: small trainable factors beside frozen weights, by Hugging Face's peft, in the files that LeRobot and peft read.

The factors are put into the policy itself, so the policy stays what it is and every method runs through them. A
checkpoint of such a run holds `adapter_model.safetensors` and `adapter_config.json` instead of the weights, and
names the policy it belongs to; loading merges them into that policy, which is then a plain one again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgevla.errors import CheckpointError, MissingExtraError, UsageError

from .policies.base import Policy

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT = "base_model.model."
"""What peft puts before every name of the model it wraps."""


def add_lora(policy: Policy, *, rank: int, alpha: int, targets: str | Sequence[str], base: str) -> None:
    """Puts factors of this rank beside every linear layer whose name matches, and freezes everything else.

    alpha: the factors' product is scaled by alpha / rank. targets: regular expressions over our module names.
    base: folder or hub id of the policy that the factors belong to.

    Raises:
        UsageError: no layer matches.
    """
    peft = _peft()
    pattern = with_prefix(targets, policy.Prefix)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern, base_model_name_or_path=base
    )
    _inject(policy, config)
    policy.config.use_peft = True
    policy.config.pretrained_path = base


def with_prefix(targets: str | Sequence[str], prefix: str) -> str:
    """One pattern that matches our names as well as LeRobot's, which have the policy's prefix before them."""
    each = [targets] if isinstance(targets, str) else list(targets)
    return f"(?:{re.escape(prefix)})?(?:{'|'.join(each)})"


def save_adapter(policy: Policy, folder: Path) -> None:
    """Writes the factors and their description, as peft does for a wrapped LeRobot policy."""
    from safetensors.torch import save_file

    peft = _peft()
    state: Mapping[str, Tensor] = peft.get_peft_model_state_dict(policy)
    named = {f"{_PEFT}{policy.Prefix}{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(named, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
    _config(policy).save_pretrained(str(folder))


def base_of(folder: Path) -> str | None:
    """The policy that the adapter in `folder` belongs to; None when the folder holds whole weights.

    Raises:
        CheckpointError: the adapter names no policy.
    """
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "model.safetensors").is_file():
        return None
    base = _description(folder).get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} does not say which policy its factors belong to")
    return str(base)


def load_adapter(policy: Policy, folder: Path) -> None:
    """Puts the factors in `folder` into the policy they belong to.

    Raises:
        CheckpointError: damaged files, or factors of another policy; lists names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    peft = _peft()
    description = _description(folder)
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the adapter in {folder} is damaged ({error}); fetch it again") from error
    if description.get("peft_type") != "LORA" or description.get("modules_to_save"):
        raise CheckpointError(
            f"the adapter in {folder} is of type {description.get('peft_type')} with whole modules "
            f"{description.get('modules_to_save')}; only plain LORA factors can be read: merge it with peft first"
        )
    # Exactly the layers that have factors: a pattern by LeRobot's names would not match ours.
    layers = {k.removeprefix(_PEFT + policy.Prefix).split(".lora_")[0] for k in weights}
    config.target_modules = with_prefix([re.escape(layer) for layer in sorted(layers)], policy.Prefix)
    _inject(policy, config)
    own = {_PEFT + policy.Prefix + k for k in peft.get_peft_model_state_dict(policy)}
    if own != set(weights):
        odd = sorted(own ^ set(weights))
        raise CheckpointError(
            f"the adapter in {folder} does not fit its policy: {len(odd)} names differ, e.g. {odd[0]}"
        )
    plain = {k.removeprefix(_PEFT + policy.Prefix): v for k, v in weights.items()}
    peft.set_peft_model_state_dict(policy, plain)


def merge(policy: Policy) -> None:
    """Adds every factor product to its weight; the policy is then a plain one, and trainable as before the factors."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {n: m for n, m in policy.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, layer in layers.items():
        layer.merge()
        owner, _, leaf = name.rpartition(".")
        setattr(policy.get_submodule(owner), leaf, layer.get_base_layer())
    trainable = policy.__dict__.pop("trainable_without_lora", None)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(trainable is None or name in trainable)
    del policy.peft_config
    policy.is_adapted = False
    policy.config.use_peft = False


def _inject(policy: Policy, config: Any) -> None:
    peft = _peft()
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    try:
        peft.inject_adapter_in_model(config, policy)
    except ValueError as error:
        names = [n for n, m in policy.named_modules() if isinstance(m, nn.Linear)]
        raise UsageError(
            f"no layer of the {policy.policy_type} policy matches the LoRA targets '{config.target_modules}'; "
            f"linear layers are for example {', '.join(names[:3])}"
        ) from error
    policy.peft_config = {"default": config}  # type: ignore[assignment]
    policy.is_adapted = True
    policy.__dict__["trainable_without_lora"] = trainable
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _config(policy: Policy) -> Any:
    return policy.peft_config["default"]  # type: ignore[index]


def _description(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / ADAPTER_CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} cannot be read ({error}); fetch it again"
        ) from error


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", "peft", "needed for LoRA") from error
    return peft
