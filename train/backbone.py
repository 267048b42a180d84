"""The vision-language model that a VLA is built on: its sizes, its weights, its tokenizer, wherever they lie.

Sizes come from the checkpoint's own `vlm_config/` (or `expert_config/`) folder where it has one; else from a local
backbone folder that the config names; else from the published model, corrected by the shapes of the weights.
Nothing is fetched unless a tokenizer is found nowhere on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.hub import HubError, fetch

from .processors import Processors

Shapes = Mapping[str, tuple[int, ...]]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError: none there, or something else."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data


def sub_config(processors: Processors, name: str, *folders: str | Path | None) -> dict[str, Any] | None:
    """`<checkpoint>/<name>/config.json`, else `<folder>/config.json` of the first local folder that has one."""
    places = [] if processors.folder is None else [processors.folder / name]
    for place in [*places, *(Path(f) for f in folders if f)]:
        if (place / "config.json").is_file():
            return read_json(place / "config.json")
    return None


def merged(published: Mapping[str, Any], found: Mapping[str, Any] | None) -> dict[str, Any]:
    """A Hugging Face config over the published one: files leave out what equals the library's default.

    Only a config of the same backbone size borrows (its `hidden_size` must agree); others must be complete.
    """
    if found is None:
        return dict(published)
    if found.get("hidden_size", published.get("hidden_size")) != published.get("hidden_size"):
        return dict(found)
    return {**published, **found}


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Number of consecutive `<prefix><i>.` groups."""
    numbers = {int(k[len(prefix) :].split(".")[0]) for k in shapes if k.startswith(prefix)}
    return max(numbers) + 1 if numbers else 0


def text_config_of(shapes: Shapes, prefix: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a decoder stack read off its weights; the head size, which no shape tells, is the published one."""
    config = dict(published)
    q = shapes.get(f"{prefix}layers.0.self_attn.q_proj.weight")
    k = shapes.get(f"{prefix}layers.0.self_attn.k_proj.weight")
    gate = shapes.get(f"{prefix}layers.0.mlp.gate_proj.weight")
    if q is None or k is None or gate is None:
        return config
    head_dim = config["head_dim"]
    if q[0] % head_dim or k[0] % head_dim:
        raise CheckpointError(
            f"the weights of {prefix.rstrip('.')} do not fit heads of {head_dim}, and the checkpoint has no "
            "vlm_config/ or expert_config/ folder that names another size"
        )
    config.update(
        hidden_size=q[1],
        num_attention_heads=q[0] // head_dim,
        num_key_value_heads=k[0] // head_dim,
        intermediate_size=gate[0],
        num_hidden_layers=count_layers(shapes, f"{prefix}layers."),
    )
    embedding = shapes.get(f"{prefix}embed_tokens.weight")
    if embedding is not None:
        config["vocab_size"] = embedding[0]
    return config


def vision_config_of(shapes: Shapes, prefix: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a vision tower read off its weights; the number of heads is the published one."""
    config = dict(published)
    patch = shapes.get(f"{prefix}embeddings.patch_embedding.weight")
    positions = shapes.get(f"{prefix}embeddings.position_embedding.weight")
    fc1 = shapes.get(f"{prefix}encoder.layers.0.mlp.fc1.weight")
    if patch is None or positions is None or fc1 is None:
        return config
    config.update(
        hidden_size=patch[0],
        patch_size=patch[2],
        image_size=round(positions[0] ** 0.5) * patch[2],
        intermediate_size=fc1[0],
        num_hidden_layers=count_layers(shapes, f"{prefix}encoder.layers."),
    )
    return config


# -- weights ------------------------------------------------------------------------------------------------


def backbone_folder(name: str) -> Path:
    """A backbone's folder by its path or hub id; fetched when it is not on this machine.

    Raises:
        CheckpointError: neither a folder nor to be had from the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return fetch(name, patterns=["*.json", "*.safetensors", "*.txt"])
    except HubError as error:
        raise CheckpointError(
            f"the backbone '{name}' is neither a folder here nor to be had from the hub: {error} (--from)"
        ) from error


def backbone_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a backbone's own folder, mapped: one safetensors file, or the shards that its index lists.

    Raises:
        CheckpointError: no weights there, or a shard is missing.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"the backbone folder {folder} lacks {name}; fetch it again")
        try:
            with safe_open(str(path), framework="pt") as file:
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
    return weights


def copy_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Fills every parameter of `module` from `weights` (its own names); extra names are the caller's business.

    Raises:
        CheckpointError: a parameter that `weights` lacks, or one of another shape.
    """
    own = module.state_dict(keep_vars=True)
    missing = sorted(set(own) - set(weights))
    wrong = [n for n in own if n in weights and weights[n].shape != own[n].shape]
    if missing or wrong:
        names = [*missing, *wrong]
        raise CheckpointError(
            f"the backbone in {where} is another model: {len(names)} weights are missing or differ, e.g. {names[0]}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


# -- tokenizer ----------------------------------------------------------------------------------------------


def tokenizer_folder(processors: Processors, extra: Mapping[str, Path], name: str) -> Path:
    """The folder that holds this policy's tokenizer.json.

    Looked for in the checkpoint (`tokenizer/`, or the folder that the tokenizer step's artifact names), among the
    folders that a fresh policy brought along, in `name` if it is a local folder, and last on the hub.

    Raises:
        CheckpointError: it is nowhere.
    """
    places: list[Path] = []
    if processors.folder is not None:
        step = processors.step("tokenizer_processor")
        artifact = (step.artifacts or {}).get("tokenizer_name", "tokenizer") if step else "tokenizer"
        if Path(artifact).is_absolute() or ".." in Path(artifact).parts:
            raise CheckpointError(f"the tokenizer's folder '{artifact}' points outside {processors.folder}")
        places += [processors.folder / artifact, processors.folder / "tokenizer"]
    places += [extra["tokenizer"]] if "tokenizer" in extra else []
    places += [Path(name)]
    for place in places:
        if (place / "tokenizer.json").is_file():
            return place
    return _fetch_tokenizer(name)


def _fetch_tokenizer(name: str) -> Path:
    try:
        folder = fetch(name, patterns=["tokenizer_config.json", "tokenizer.json"])
        if (folder / "tokenizer.json").is_file():
            return folder
        cause = HubError("its repository holds no tokenizer.json")
    except HubError as error:
        cause = error
    raise CheckpointError(
        f"the tokenizer '{name}' is neither in the checkpoint folder (tokenizer/tokenizer.json) nor to be had from "
        f"the hub: {cause}; copy it there"
    ) from cause


def token_id(folder: Path, token: str) -> int:
    """Id of an added or ordinary token of a tokenizer.json.

    Raises:
        CheckpointError: the tokenizer has no such token.
    """
    data = read_json(folder / "tokenizer.json")
    for added in data.get("added_tokens", []):
        if added["content"] == token:
            return int(added["id"])
    vocabulary = data.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, dict) and token in vocabulary:
        return int(vocabulary[token])
    raise CheckpointError(f"the tokenizer in {folder} has no token '{token}'")


def pad_id(folder: Path) -> int:
    """Id of the padding token that tokenizer_config.json names; 0 without one."""
    path = folder / "tokenizer_config.json"
    pad = read_json(path).get("pad_token") if path.is_file() else None
    if isinstance(pad, Mapping):
        pad = pad.get("content")
    return 0 if pad is None else token_id(folder, str(pad))
