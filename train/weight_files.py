"""Where the weights of a checkpoint folder lie, and what it is that lies there instead.

One safetensors file, or the shards that an index lists. What else people have (pickles, Git LFS pointers, a distributed
checkpoint, names that a wrapper left) has a sentence each. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgevla.errors import CheckpointError

from .adapters import ADAPTER_WEIGHTS as ADAPTER
from .adapters import is_adapter
from .header import HEADER_START, Weight, read_aliases, read_header

PREFIXES = (
    "normalize_inputs.",
    "normalize_targets.",
    "unnormalize_outputs.",
    "normalize.",
    "unnormalize.",
    "input_normalizer.",
    "output_normalizer.",
    "unnormalize_targets.",
)
"""Of statistics among the weights, before LeRobot 0.4; never given any, they are infinite."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OWN_WEIGHTS = "edgevla-policy.safetensors"
"""Parts of the network that no LeRobot knows (`own_weights.py`), beside its own file."""
_POINTER = b"version https://git-lfs"
_PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "pytorch_model.bin.index.json")
_WRAPPERS = {"_orig_mod": "torch.compile", "module": "data-parallel training", "_fsdp_wrapped_module": "FSDP"}
_EXPONENT = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Bits that are all set in what is not finite."""
_CHUNK_BYTES = 16 << 20


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a policy folder.

    Raises:
        CheckpointError: there are none, one is missing or is a pointer; says what is there instead.
    """
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        files = [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]
    else:
        raise CheckpointError(_instead(folder))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder / INDEX} lists {file.name}, which {folder} lacks; fetch it again")
        if is_pointer(file):
            raise CheckpointError(
                f"{file} is a Git LFS pointer, not the weights; fetch them with 'git lfs pull' in that folder"
            )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text())["weight_map"]
        names = {str(k): str(v) for k, v in found.items()}
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} is no index of shards ({error!r}); fetch it again") from error
    outside = [v for v in names.values() if Path(v).name != v]
    if outside or not names:
        raise CheckpointError(
            f"{index} lists {outside[0] if outside else 'no shard'}, which is no file beside it"
        )
    return names


def _instead(folder: Path) -> str:
    """Why a folder has no safetensors weights."""
    pickle = next((name for name in _PICKLES if (folder / name).is_file()), None)
    if pickle is not None:
        return (
            f"{folder} holds its weights as {pickle}, a pickle, which can run any program when it is read; EdgeVLA "
            f"reads {WEIGHTS}: load the policy in LeRobot and save it there with save_pretrained"
        )
    if is_distributed(folder):
        return distributed_sentence(folder)
    if (folder / ADAPTER).is_file():
        return (
            f"{folder} holds no {WEIGHTS}, only a PEFT adapter, whose description is missing; fetch it again"
        )
    return f"{folder} holds no {WEIGHTS}; fetch the checkpoint again"


def is_distributed(folder: Path) -> bool:
    """Whether a folder, or a sub-folder of it, is a checkpoint of torch.distributed (DCP)."""
    return any(folder.glob("*.distcp")) or any(folder.glob("*/*.distcp"))


def distributed_sentence(folder: Path) -> str:
    """What is said of a folder that holds only shards of a distributed run."""
    return (
        f"{folder} holds only a distributed checkpoint (DCP, *.distcp files) of a sharded run, not a policy folder; "
        "gather it with LeRobot into config.json and model.safetensors, and give that folder"
    )


def is_pointer(file: Path) -> bool:
    """Whether a file is Git LFS's note of where the weights are."""
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def read_weights_header(folder: Path) -> tuple[dict[str, Weight], dict[str, str]]:
    """Names, types and shapes of all files together, and names that share another's tensor (left out -> kept).

    Raises:
        CheckpointError: as `weight_files`; a damaged file; shards that do not hold what the index says; names that a
            wrapper of the network left.
    """
    files = weight_files(folder)
    weights: dict[str, Weight] = {}
    aliases: dict[str, str] = {}
    for file in files:
        weights |= read_header(file)
        aliases |= read_aliases(file)
    if files[0].name != WEIGHTS:
        odd = sorted(set(_weight_map(folder / INDEX)) ^ set(weights))
        if odd:
            raise CheckpointError(
                f"{folder / INDEX} and its shards differ, e.g. in {odd[0]}; fetch them again"
            )
    check_names(list(weights), folder)
    return weights, aliases


def check_names(names: list[str], folder: Path) -> None:
    """Raises CheckpointError: names that torch.compile or data-parallel training put around the policy's own."""
    for name in names:
        parts = name.replace("diffusion.unet._orig_mod.", "").split(".")
        for part in (p for p in parts[:3] if p in _WRAPPERS and (p != "module" or p == parts[0])):
            raise CheckpointError(
                f"the weights in {folder} were saved from inside {_WRAPPERS[part]}: their names hold '{part}.' (such as "
                f"{name}); save the policy itself, without that wrapper"
            )


def values_not_finite(files: list[Path], skipped: tuple[str, ...] = ()) -> list[str]:
    """Names of tensors that hold NaN or infinity, but those that begin with one of `skipped`. Reads every byte."""
    return [name for file in files for name in _not_finite(file) if not name.startswith(skipped or "\0")]


def _not_finite(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        start = HEADER_START + int.from_bytes(stream.read(HEADER_START), "little")
        for name, weight in read_header(file).items():
            if weight.dtype not in _EXPONENT:
                continue
            kind, exponent = _EXPONENT[weight.dtype]
            first, end = weight.offsets
            stream.seek(start + first)
            left = end - first
            while left > 0:
                bits = np.frombuffer(stream.read(min(left, _CHUNK_BYTES)), kind)
                left -= bits.nbytes
                if ((bits & kind(exponent)) == kind(exponent)).any():
                    yield name
                    break


def own_weight_files(folder: Path) -> list[Path]:
    """The file of parts that no LeRobot knows, where there is one."""
    path = folder / OWN_WEIGHTS
    return [path] if path.is_file() else []


def weights_sha256(folder: Path) -> str:
    """Of one file its own; of several, that of their names and digests."""
    from edgevla.bundle import sha256_of

    files = [folder / ADAPTER] if is_adapter(folder) else [*weight_files(folder), *own_weight_files(folder)]
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{file.name} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def unread_weights(folder: Path, read: list[Path]) -> list[str]:
    """Names of other files in the folder that hold weights: an average (EMA), a second precision."""
    names = {path.name for path in read} | {ADAPTER}
    kinds = ("*.safetensors", "*.bin", "*.pt", "*.pth")
    return sorted(
        p.name
        for kind in kinds
        for p in folder.glob(kind)
        if p.name not in names and not p.name.startswith("policy_")
    )
