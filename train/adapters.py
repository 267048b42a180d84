"""Adapter folders: small factors instead of weights, and the policy whose weights they are added to, their base.

The base's place is written beside the factors. It may be a whole policy, a hub id, or an adapter again. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from edgevla.checkpoints import policy_folder
from edgevla.digests import digests
from edgevla.errors import CheckpointError, UsageError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_NOTE = "edgevla-base.json"
"""Ours, beside the factors: what the weights were that they are added to."""
PEFT_PREFIX = "base_model.model."
"""What peft puts before every name of the model it wraps."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds LoRA factors without the policy they belong to."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors*"))


def chain(folder: Path, base: str = "") -> list[Path]:
    """The policy folder, the base of its factors, and so on to the one that has whole weights.

    base: where the base of `folder` lies now; empty: where its description says.

    Raises:
        UsageError: `base` was said for a folder of whole weights.
        CheckpointError: a base that is not where it should be, or that leads back to its own adapter.
    """
    if base and not is_adapter(folder):
        raise UsageError(f"--base is for adapters (LoRA); {folder} has weights of its own, leave it out")
    found = [folder]
    while is_adapter(found[-1]):
        following = _base_of(found[-1], base if len(found) == 1 else "").resolve()
        if following in [f.resolve() for f in found]:
            raise CheckpointError(
                f"{found[-1] / ADAPTER_CONFIG} names its own adapter as the base, in a circle"
            )
        _check_note(found[-1], following)
        found.append(following)
    return found


def base_digest(base: Path) -> str:
    """Of the weights in a policy folder, or of the factors, which have a base of their own."""
    files = sorted(
        p.name for p in base.glob("*.safetensors") if p.name.startswith(("model", "adapter_model"))
    )
    lines = "".join(f"{name}:{content}\n" for name, content in digests(base, files))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_note(folder: Path, digest: str) -> None:
    """Keeps beside an adapter which weights it belongs to. digest: of the base's."""
    (folder / BASE_NOTE).write_text(json.dumps({"weights": digest}))


def noted_digest(folder: Path) -> str | None:
    """As `base_digest` was when the factors were trained; None: nobody noted it."""
    try:
        return str(json.loads((folder / BASE_NOTE).read_text())["weights"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_note(folder: Path, base: Path) -> None:
    """Raises CheckpointError: the base is not what the factors were trained on, as far as that was noted."""
    noted = noted_digest(folder)
    if noted is not None and noted != base_digest(base):
        raise CheckpointError(
            f"the weights in {base} are not those that the factors in {folder} were trained on; say with --base PATH "
            "where those lie"
        )


def strange_layers(known: Collection[str], names: Iterable[str]) -> list[str]:
    """Layers that have factors and are not among the base's. known: the base's weights. names: the adapter's."""
    layers = {name.removeprefix(PEFT_PREFIX).split(".lora_")[0] for name in names if ".lora_" in name}
    return sorted(layer for layer in layers if f"{layer}.weight" not in known)


def description(folder: Path) -> dict[str, Any]:
    """adapter_config.json as it is."""
    path = folder / ADAPTER_CONFIG
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again") from error


def summary(folders: Sequence[Path]) -> dict[str, Any]:
    """For a person: what kind of factors a chain's first folder holds, and the folders under it."""
    said = description(folders[0])
    rank, patterns = said.get("r"), said.get("rank_pattern") or {}
    ranks = sorted({rank, *patterns.values()} if isinstance(rank, int) else {*patterns.values()})
    whole = said.get("modules_to_save") or []
    return {
        "kind": str(said.get("peft_type", "?")),
        "ranks": ranks,
        "whole_modules": [str(name) for name in whole],
        "bases": [str(folder) for folder in folders[1:]],
    }


def _base_of(folder: Path, said: str) -> Path:
    named = said or description(folder).get("base_model_name_or_path")
    if not named:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} does not say which policy its factors belong to; say it with --base PATH"
        )
    try:
        return _found(str(named))
    except CheckpointError as error:
        if said:
            raise CheckpointError(f"--base {said}: {error}") from error
        raise CheckpointError(
            f"the adapter in {folder} belongs to the policy {named}, which is not there any more; say where it lies "
            f"now with --base PATH ({error})"
        ) from error


def _found(named: str) -> Path:
    local = policy_folder(Path(named).expanduser())
    if local is not None:
        return local
    from .checkpoint import checkpoint_folder

    return checkpoint_folder(named)
