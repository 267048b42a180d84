"""LeRobot's checkpoint folder, read and written: config.json, model.safetensors, the two pipelines.

Reading is strict: what the account of a folder (`account.py`) refuses is not loaded, and a missing or left-over weight
is an error that lists it. Versions from 0.4 to 0.7 are read, and the folders before 0.4 that kept normalisation among
the weights; one file or shards. Weights are mapped from the file, never copied twice.
Writing is atomic, and what is ours goes into `edgevla.json` and `edgevla-policy.json`, since LeRobot refuses unknown
keys in its own files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgevla.checkpoints import CONFIG, policy_folder
from edgevla.dataset.facts import FACTS
from edgevla.errors import CheckpointError
from edgevla.hub import HubError, fetch

from . import lora
from .account import account_of
from .adapters import chain
from .fresh import new_policy as new_policy
from .legacy import split_legacy
from .memory import release_pages, without_init
from .own_keys import with_own_keys, write_own_keys
from .own_weights import read_own_weights, write_own_weights
from .policies import policy_class
from .policies.base import Policy
from .policies.config import PolicyConfig
from .processors import Processors
from .state import flush, replace_folder
from .weight_files import WEIGHTS, check_names, distributed_sentence, is_distributed, weight_files

MAPPED_BYTES = 1 << 30
"""Files above this stay mapped. Smaller ones are copied into aligned memory, so that kernels give the same bits
for a loaded policy as for the one that was saved."""


class WeightsMisfit(CheckpointError):
    """Weights that are not those of the network that the config describes."""


class Facts(Protocol):
    """What the trainer knows about the dataset; `edgevla.dataset.facts.DatasetFacts`."""

    def to_json(self) -> Any: ...


Adapt = Callable[[PolicyConfig, Processors], PolicyConfig]


def load_policy(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    adapt: Adapt | None = None,
    merge_adapter: bool = True,
    base: str = "",
) -> Policy:
    """The policy of a LeRobot folder, or of a hub id when no such folder exists; in eval mode.

    adapt: sees config and pipelines as read, before the policy is built, and gives back the config to build;
    fine-tuning puts another dataset's features and statistics there.
    merge_adapter: a folder with LoRA factors gives the plain policy that they make of theirs; False: keeps them apart.
    base: where the policy that the factors belong to lies; empty: where they say.

    Raises:
        CheckpointError: no such folder or hub id; what the account refuses, but missing statistics, which training
            replaces (verbs that drive ask `account_of` themselves); a damaged file; weights that do not fit.
    """
    folder = checkpoint_folder(path)
    account_of(folder, with_weights=False).require(for_training=True)
    config, data = read_config(folder)
    begins = not config.has_own_parts
    own_keys = {"type", *(f.name for f in dataclasses.fields(config))}
    keys, extras = tuple(data), {k: v for k, v in data.items() if k not in own_keys}
    cls = policy_class(config.type)
    processors = Processors.load(folder)
    *adapters, whole = chain(folder, base)
    weights, aliases, n_bytes = _open_weights(whole)
    weights, stats = split_legacy(weights, config)
    if stats and not processors.pre:
        processors = cls.default_processors(config, stats)
        processors.folder = folder
    if adapt is not None:
        config = adapt(config, processors)
    weights = _own_names(cls.repair_keys(weights, config), cls.Prefix, folder)
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    with without_init():
        policy = build_policy(config, processors, shapes, folder)
    weights |= read_own_weights(policy, whole, begins=begins)
    _assign(policy, weights, aliases, folder, is_mapped=n_bytes > MAPPED_BYTES)
    policy.config_keys, policy.config_extras = keys, extras
    for adapter in reversed(adapters):
        lora.load_adapter(policy, adapter)
        if merge_adapter or adapter != folder:
            lora.merge(policy)
    return policy.to(device or "cpu").eval()


def build_policy(
    config: PolicyConfig, processors: Processors, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> Policy:
    """The network that `folder` describes, its weights not yet set. Raises CheckpointError where none can be built."""
    try:
        return policy_class(config.type).build(config, processors, shapes)
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        MemoryError,
    ) as error:
        reason = str(error).partition("\n")[0]  # torch adds the place in its own code
        raise CheckpointError(
            f"{folder / CONFIG} describes a network that cannot be built: {type(error).__name__}: {reason}"
        ) from error


def save_policy(policy: Policy, folder: str | Path, facts: Facts | None = None) -> Path:
    """Writes a folder that LeRobot reads, whole or not at all; an existing one is replaced. Returns it."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (scratch / CONFIG).write_text(json.dumps(config_to_save(policy), indent=4))
        write_own_keys(policy.config, scratch)
        if policy.is_adapted:
            lora.save_adapter(policy, scratch)
        else:
            save_weights(policy.saved_weights(), scratch / WEIGHTS)
            write_own_weights(policy, scratch)
        policy.processors.save(scratch)
        for name, source in _companions(policy).items():
            shutil.copytree(
                source, scratch / name, ignore=_TEXT_ONLY if name == "tokenizer" else _WEIGHT_FILES
            )
        _write_facts(policy, facts, scratch)
        _open_modes(scratch)
        flush(scratch)
        replace_folder(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def checkpoint_folder(path: str | Path) -> Path:
    """The policy folder that a person means: what `policy_folder` finds, else fetched from the hub.

    Raises:
        CheckpointError: neither a folder with a config.json nor a hub id that can be fetched.
    """
    folder = Path(path).expanduser()
    found = policy_folder(folder)
    if found is not None:
        return found
    if folder.exists():
        if is_distributed(folder):
            raise CheckpointError(distributed_sentence(folder))
        raise CheckpointError(f"{folder} holds no {CONFIG}, so it is not a LeRobot checkpoint folder")
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"checkpoint {name} does not exist; give a folder or a hub id like lerobot/act_aloha"
        )
    patterns = ["*.json", "*.safetensors", "*/*.json", "*/*.model", "*/*.txt", "*/*.jinja"]
    try:
        return fetch(name, patterns=patterns)
    except HubError as error:
        raise CheckpointError(
            f"checkpoint {name} is no folder here and could not be fetched from the hub: {error}"
        ) from error


def read_config(folder: Path) -> tuple[PolicyConfig, dict[str, Any]]:
    """The typed config of a folder, and its file as it is.

    Raises:
        CheckpointError: unreadable JSON, no or an unknown `type`, settings that cannot work together.
    """
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise CheckpointError(f"{path} names no policy 'type', so it is not a LeRobot policy config")
    cls = policy_class(data["type"])
    try:
        config = with_own_keys(cls.Config.from_json(data), folder)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} has a value of an unexpected form: {error!r}") from error
    return config, data


def config_to_save(policy: Policy) -> dict[str, Any]:
    """A config.json with the keys that the loaded one had, plus what has since left its default.

    A fresh one has all keys but those that older LeRobots refuse, unless they say something.
    """
    config = policy.config
    data, defaults = config.to_json(), type(config)().to_json()
    keys = set(data) - config.newer_keys if policy.config_keys is None else policy.config_keys
    kept = {k: v for k, v in data.items() if k in keys or v != defaults.get(k)}
    return {**kept, **policy.config_extras}


# -- weights ----------------------------------------------------------------------------------------------


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """One safetensors file; of tensors that share memory the alphabetically first name stays, metadata maps the rest."""
    from safetensors.torch import save_file

    kept: dict[tuple[Any, ...], str] = {}
    metadata = {"format": "pt"}
    out: dict[str, Tensor] = {}
    for name in sorted(weights):
        tensor = weights[name].detach()
        identity = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and identity in kept:
            metadata[name] = kept[identity]
            continue
        kept[identity] = name
        out[name] = tensor.contiguous()
    save_file(out, str(path), metadata=metadata)


def _open_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """Mapped tensors by name, names that share another's tensor (dropped name -> kept name), and the files' size."""
    from safetensors import SafetensorError, safe_open

    files = weight_files(folder)
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
                metadata |= file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); fetch the checkpoint again") from error
    check_names(list(weights), folder)
    aliases = {
        dropped: kept for dropped, kept in metadata.items() if kept in weights and dropped not in weights
    }
    return weights, aliases, sum(path.stat().st_size for path in files)


def _own_names(weights: Mapping[str, Tensor], prefix: str, folder: Path) -> dict[str, Tensor]:
    strangers = [name for name in weights if not name.startswith(prefix)]
    if strangers:
        raise _misfit(folder, [], strangers)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def _assign(
    policy: Policy, weights: dict[str, Tensor], aliases: Mapping[str, str], folder: Path, *, is_mapped: bool
) -> None:
    """Puts every weight in its place, without a second copy of the whole; the module's dtype wins.

    Raises:
        WeightsMisfit: names or shapes that do not fit; lists them.
    """
    prefix = type(policy).Prefix
    own = policy.state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    shared = {name: first_names.setdefault(id(tensor), name) for name, tensor in own.items()}
    for dropped, kept in aliases.items():
        name, source = dropped.removeprefix(prefix), kept.removeprefix(prefix)
        if name in own and name not in weights and source in weights:
            weights[name] = weights[source]
    # Parameters that are one tensor here need only one of their names in the file.
    found = {shared[name] for name in weights if name in shared}
    missing = [prefix + name for name in own if name not in weights and shared[name] not in found]
    unexpected = [prefix + name for name in weights if name not in own]
    if missing or unexpected:
        raise _misfit(folder, missing, unexpected)
    wrong = [
        f"{prefix + n} {tuple(w.shape)}, expected {tuple(own[n].shape)}"
        for n, w in weights.items()
        if w.shape != own[n].shape
    ]
    if wrong:
        raise WeightsMisfit(f"{folder / WEIGHTS} does not fit its {CONFIG}: {_some(wrong, 5)}")
    modules = dict(policy.named_modules())
    done: dict[int, Tensor] = {}
    for name in own:
        place = own[name]
        if id(place) not in done:
            source = name if name in weights else next(n for n in weights if shared.get(n) == shared[name])
            mapped = weights.pop(source)
            tensor = mapped.to(place.dtype)
            if is_mapped and tensor is not mapped and mapped.is_contiguous():
                release_pages(mapped)
            done[id(place)] = tensor if is_mapped else _aligned(tensor)
        _put(modules, name, place, done)


def _put(modules: Mapping[str, nn.Module], name: str, place: Tensor, done: dict[int, Tensor]) -> None:
    owner, _, leaf = name.rpartition(".")
    tensor = done[id(place)]
    if isinstance(place, nn.Parameter):
        if not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=place.requires_grad)
            done[id(place)] = tensor  # tied parameters stay one parameter
        modules[owner]._parameters[leaf] = tensor
    else:
        modules[owner]._buffers[leaf] = tensor


def _aligned(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor)


def _misfit(folder: Path, missing: Iterable[str], unexpected: Iterable[str]) -> WeightsMisfit:
    missing, unexpected = sorted(missing), sorted(unexpected)
    said = [
        f"{kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    return WeightsMisfit(
        f"{folder / WEIGHTS} does not fit its {CONFIG}; {'; '.join(said)}",
        missing=missing,
        unexpected=unexpected,
    )


def _some(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# -- writing ----------------------------------------------------------------------------------------------

_WEIGHTS_LIKE = ("*.safetensors*", "*.bin*", "*.pt", "*.pth", "*.gguf", "*.onnx*", "*.msgpack", "*.h5", ".*")
_WEIGHT_FILES = shutil.ignore_patterns(*_WEIGHTS_LIKE)
"""Not copied: a backbone's own folder serves as `vlm_config` and `tokenizer`, and its weights are in ours."""
_TEXT_ONLY = shutil.ignore_patterns(
    *_WEIGHTS_LIKE, "config.json", "generation_config.json", "*processor_config.json"
)
"""By the config of a network beside its tokenizer, transformers looks for one that it may not know."""
_COMPANION_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def _companions(policy: Policy) -> dict[str, Path]:
    """Sub-folders that belong to the policy: tokenizers and backbone configs beside what was loaded, and named ones."""
    found: dict[str, Path] = {}
    source = policy.processors.folder
    if source is not None and source.is_dir():
        for child in sorted(source.iterdir()):
            if child.is_dir() and any((child / name).is_file() for name in _COMPANION_FILES):
                found[child.name] = child
    return {**found, **policy.extra_folders}


def _write_facts(policy: Policy, facts: Facts | None, folder: Path) -> None:
    if facts is not None:
        data = facts.to_json()
        text = data if isinstance(data, str) else json.dumps(data, indent=2)
        (folder / FACTS).write_text(text)
        return
    source = policy.processors.folder
    if source is not None and (source / FACTS).is_file():
        shutil.copyfile(source / FACTS, folder / FACTS)


def _open_modes(folder: Path) -> None:
    """Temporary folders and safetensors files are private; a checkpoint has the modes that the umask gives."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(PermissionError, NotImplementedError):  # FAT has one mode for all
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
