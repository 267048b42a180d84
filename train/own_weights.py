"""Weights of parts that no LeRobot knows, in a file of our own: LeRobot refuses strangers in `model.safetensors`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from edgevla.errors import CheckpointError

from .own_keys import OWN_KEYS
from .policies.base import Policy
from .weight_files import OWN_WEIGHTS


def write_own_weights(policy: Policy, folder: Path) -> None:
    from safetensors.torch import save_file

    own = {name: tensor.detach().contiguous() for name, tensor in policy.own_weights().items()}
    if own:
        save_file(own, str(folder / OWN_WEIGHTS), metadata={"format": "pt"})


def read_own_weights(policy: Policy, folder: Path, *, begins: bool) -> dict[str, Tensor]:
    """By our names, what belongs to the policy; empty where it has no such parts.

    begins: whether the policy gets these parts only now: then they are as they are made.

    Raises:
        CheckpointError: the file is missing or damaged, or nothing says what it is for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, own = folder / OWN_WEIGHTS, policy.own_weights()
    if begins and own:
        policy.start_own_parts()
        return policy.own_weights()
    if not own:
        if path.is_file():
            raise CheckpointError(
                f"{path} holds weights of parts that {OWN_KEYS}, which is missing beside it or says other things, would "
                "name; copy the checkpoint again"
            )
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} holds this policy's {', '.join(policy.own_modules)} and cannot be read ({error}); copy the "
            "checkpoint again"
        ) from error
