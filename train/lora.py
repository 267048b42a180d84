"""LoRA: small trainable factors beside frozen weights, by Hugging Face's peft, in the files that LeRobot and peft read.

The factors are put into the policy itself, so the policy stays what it is and every method runs through them. A
checkpoint of such a run holds `adapter_model.safetensors` and `adapter_config.json` instead of the weights, and
names the policy it belongs to; loading merges them into that policy, which is then a plain one again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgevla.checkpoints import policy_folder
from edgevla.errors import CheckpointError, MissingExtraError, UsageError

from .adapters import ADAPTER_WEIGHTS, PEFT_PREFIX, base_digest, description, noted_digest, write_note
from .policies.base import Policy


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
    found = policy_folder(Path(base))
    policy.__dict__["base_digest"] = None if found is None else base_digest(found)


def with_prefix(targets: str | Sequence[str], prefix: str) -> str:
    """One pattern that matches our names as well as LeRobot's, which have the policy's prefix before them."""
    each = [targets] if isinstance(targets, str) else list(targets)
    return f"(?:{re.escape(prefix)})?(?:{'|'.join(each)})"


def save_adapter(policy: Policy, folder: Path) -> None:
    """Writes the factors and their description, as peft does for a wrapped LeRobot policy."""
    from safetensors.torch import save_file

    peft = _peft()
    state: Mapping[str, Tensor] = peft.get_peft_model_state_dict(policy, save_embedding_layers=False)
    named = {f"{PEFT_PREFIX}{policy.Prefix}{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(named, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
    _config(policy).save_pretrained(str(folder))
    if digest := policy.__dict__.get("base_digest"):
        write_note(folder, digest)


def load_adapter(policy: Policy, folder: Path) -> None:
    """Puts the factors in `folder` into the policy they belong to, and the whole modules that were trained with them.

    Raises:
        CheckpointError: damaged files, or factors of another policy; lists names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    peft = _peft()
    _refuse_strange(description(folder), folder)
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the adapter in {folder} is damaged ({error}); fetch it again") from error
    prefix = PEFT_PREFIX + policy.Prefix
    strangers = [name for name in weights if not name.startswith(prefix)]
    if strangers:
        raise _misfit(folder, strangers)
    named = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    factors = {name: weight for name, weight in named.items() if ".lora_" in name}
    _set_whole(policy, {n: w for n, w in named.items() if n not in factors}, folder)
    if not factors:
        raise CheckpointError(f"the adapter in {folder} holds no factors; it is damaged, fetch it again")
    _fit_config(config, factors, policy.Prefix)
    _inject(policy, config)
    own = {
        key.removeprefix(PEFT_PREFIX): w
        for key, w in peft.get_peft_model_state_dict(policy, save_embedding_layers=False).items()
    }
    odd = [n for n in sorted(own.keys() | factors) if n not in own or n not in factors]
    odd += [n for n in sorted(own.keys() & factors) if own[n].shape != factors[n].shape]
    if odd:
        raise _misfit(folder, odd)
    peft.set_peft_model_state_dict(policy, factors)
    policy.__dict__["base_digest"] = noted_digest(folder)


def _refuse_strange(said: Mapping[str, Any], folder: Path) -> None:
    """What would change numbers and is not read.

    Raises:
        CheckpointError: another kind of adapter, or factors whose start has changed the base's own weights.
    """
    kind, start = said.get("peft_type"), said.get("init_lora_weights", True)
    if kind != "LORA":
        raise CheckpointError(
            f"the adapter in {folder} is of type {kind}; only LORA is read: merge it with peft first"
        )
    if isinstance(start, str) and start not in ("gaussian", "orthogonal", "eva"):
        raise CheckpointError(
            f"the adapter in {folder} began with '{start}', which changes the base's own weights; merge it with peft "
            "first"
        )


def _set_whole(policy: Policy, whole: Mapping[str, Tensor], folder: Path) -> None:
    """Weights that the adapter brings instead of the base's: `modules_to_save`, biases."""
    own = policy.state_dict(keep_vars=True)
    for written, weight in whole.items():
        name = written.replace(".base_layer.", ".")
        if name not in own or own[name].shape != weight.shape:
            raise _misfit(folder, [written])
        own[name].data.copy_(weight)
    brought = {name.replace(".base_layer.", ".").rpartition(".")[0] for name in whole}
    for wanted in description(folder).get("modules_to_save") or ():
        own_ones = [n for n, _ in policy.named_modules() if n == wanted or n.endswith(f".{wanted}")]
        if own_ones and not any(b == n or b.startswith(f"{n}.") for b in brought for n in own_ones):
            raise CheckpointError(
                f"the adapter in {folder} says that it brings '{wanted}' whole, and its file lacks it; fetch it again"
            )


def _fit_config(config: Any, factors: Mapping[str, Tensor], prefix: str) -> None:
    """Makes peft's description one by our names: exactly the layers that have factors, each with its rank and scale.

    Its patterns are by LeRobot's names, which have the policy's prefix before ours.
    """
    from peft.utils.other import get_pattern_key

    ranks, alphas = {}, {}
    for name, factor in factors.items():
        layer, _, kind = name.partition(".lora_")
        if kind.partition(".")[0] not in ("A", "embedding_A"):
            continue
        full = prefix + layer
        ranks[layer] = int(factor.shape[0])
        alphas[layer] = config.alpha_pattern.get(
            get_pattern_key(config.alpha_pattern, full), config.lora_alpha
        )
    escaped = {layer: with_prefix(re.escape(layer), prefix) for layer in ranks}
    config.target_modules = with_prefix([re.escape(layer) for layer in sorted(ranks)], prefix)
    config.rank_pattern = {escaped[n]: rank for n, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {escaped[n]: alpha for n, alpha in alphas.items() if alpha != config.lora_alpha}
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save, config.bias = None, "none"  # they are the policy's own weights by now


def _misfit(folder: Path, odd: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"the adapter in {folder} does not fit its policy: {len(odd)} names differ, e.g. {odd[0]}"
    )


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


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", "peft", "needed for LoRA") from error
    return peft
