"""A policy without memory: built on torch's meta device, to know what training would change. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edgevla.errors import CheckpointError

from ..train.checkpoint import _no_init, read_config
from ..train.policies import policy_class
from ..train.processors import Processors


def parameters(folder: Path) -> dict[str, tuple[int, bool]]:
    """LeRobot's name -> (number of values, whether the policy's own settings leave it trainable).

    Raises:
        CheckpointError: an unknown policy, or settings or weights that do not fit each other.
    """
    from safetensors import SafetensorError, safe_open

    config, _ = read_config(folder)
    cls = policy_class(config.type)
    try:
        with safe_open(str(folder / "model.safetensors"), framework="pt") as file, torch.device("meta"):
            weights = {
                name: torch.empty(file.get_slice(name).get_shape(), dtype=torch.float32)
                for name in file.keys()  # noqa: SIM118  not a mapping
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} is damaged ({error}); fetch it again"
        ) from error
    weights = {n: w for n, w in weights.items() if not _is_normaliser(n)}
    weights = cls.repair_keys(weights, config)
    shapes = {n.removeprefix(cls.Prefix): tuple(w.shape) for n, w in weights.items()}
    with _without_memory():
        policy = cls.build(config, Processors.load(folder), shapes)
    own = dict(policy.named_parameters())
    strangers = [n for n in shapes if n not in policy.state_dict()]
    if strangers:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} holds weights that a {config.type} has not: {strangers[0]}"
        )
    return {cls.Prefix + n: (p.numel(), p.requires_grad) for n, p in own.items()}


@contextmanager
def _without_memory() -> Iterator[None]:
    """Every parameter that a module gets moves to the meta device at once; buffers stay, since some are computed."""
    # The hook may return another parameter, which the annotation of torch 2.13 does not say.
    hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
    try:
        with _no_init():
            yield
    finally:
        hook.remove()


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def _is_normaliser(name: str) -> bool:
    """Statistics that LeRobot kept among the weights before 0.4."""
    return name.startswith(("normalize_inputs.", "normalize_targets.", "unnormalize_outputs."))
