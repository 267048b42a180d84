"""A policy without memory: built on torch's meta device, to know what training would change. Needs torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edgevla.errors import CheckpointError

from .checkpoint import build_policy, read_config
from .header import read_header
from .memory import without_init
from .policies import policy_class
from .policies.base import Policy
from .policies.checkpoints import DROPPED
from .processors import Processors
from .weight_files import PREFIXES, own_weight_files, read_weights_header, weight_files


def parameters(folder: Path, whole: Path | None = None) -> dict[str, tuple[int, bool]]:
    """LeRobot's name -> (number of values, whether the policy's own settings leave it trainable).

    whole: the folder of the weights; None: `folder`, which may hold factors alone.

    Raises:
        CheckpointError: an unknown policy, or settings or weights that do not fit each other.
    """
    config, _ = read_config(folder)
    cls = policy_class(config.type)
    path = weight_files(whole or folder)[0]
    header, aliases = read_weights_header(whole or folder)
    with torch.device("meta"):
        found = {n: torch.empty(w.shape) for n, w in header.items() if not n.startswith(PREFIXES)}
    weights = found | {left: found[kept] for left, kept in aliases.items() if kept in found}
    weights = cls.repair_keys(weights, config)
    _check_dropped(config.type, found, weights, path)
    shapes = {n.removeprefix(cls.Prefix): tuple(w.shape) for n, w in weights.items()}
    with _without_memory():
        policy = build_policy(config, Processors.load(folder), shapes, folder)
    for file in own_weight_files(whole or folder):
        shapes |= {name: tuple(w.shape) for name, w in read_header(file).items()}
    _check(policy, shapes, path)
    return {cls.Prefix + n: (p.numel(), p.requires_grad) for n, p in policy.named_parameters()}


def _check_dropped(
    policy: str, found: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Raises CheckpointError: a weight that was left unread and is not on the policy's list."""
    used = {id(w) for w in kept.values()}
    known = [pattern for pattern, _ in DROPPED.get(policy, ())]
    for name, weight in found.items():
        if id(weight) not in used and not any(re.fullmatch(p, name) for p in known):
            raise CheckpointError(f"{path}: nothing in {policy} reads the weight {name}")


def _check(policy: Policy, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises CheckpointError: weights that the policy lacks, weights that the file lacks, or other shapes."""
    own = policy.state_dict(keep_vars=True)
    # Tensors that are one in the module need only one of their names in the file.
    found = {id(own[name]) for name in shapes if name in own}
    strange = [n for n in shapes if n not in own]
    missing = [n for n, tensor in own.items() if id(tensor) not in found]
    wrong = [n for n, shape in shapes.items() if n in own and tuple(own[n].shape) != shape]
    for what, names in (("holds weights that the policy has not", strange), ("lacks weights", missing)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{path} {what}: {names[0]}{more}")
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong[0]} is {shapes[wrong[0]]}, the config says {tuple(own[wrong[0]].shape)}"
        )


@contextmanager
def _without_memory() -> Iterator[None]:
    """Every parameter that a module gets moves to the meta device at once; buffers stay, since some are computed."""
    # The hook may return another parameter, which the annotation of torch 2.13 does not say.
    hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
    try:
        with without_init():
            yield
    finally:
        hook.remove()


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
