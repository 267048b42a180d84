"""The eight policies: one story per file, and this visible table of where each lives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgevla.errors import CheckpointError
from edgevla.strict import nearest

if TYPE_CHECKING:
    from .base import Policy

POLICIES: dict[str, str] = {
    "act": "edgevla.train.policies.act:Act",
    "diffusion": "edgevla.train.policies.diffusion:Diffusion",
    "smolvla": "edgevla.train.policies.smolvla:SmolVla",
    "pi0": "edgevla.train.policies.pi0:Pi0",
    "pi05": "edgevla.train.policies.pi05:Pi05",
    "xvla": "edgevla.train.policies.xvla:XVla",
    "groot": "edgevla.train.policies.groot:Groot",
}
ALIASES = {"pi05_fast": "pi05"}
"""Names a user may say that are another policy with other settings (Pi0.5-Fast: 5 denoise steps)."""


def policy_class(name: str) -> type[Policy]:
    """The class behind a policy's type name.

    Raises:
        CheckpointError: no such policy; suggests the nearest name.
    """
    target = POLICIES.get(ALIASES.get(name, name))
    if target is None:
        known = [*POLICIES, *ALIASES]
        raise CheckpointError(
            f"policy type '{name}' is unknown (known: {', '.join(known)}){nearest(name, known)}"
        )
    module_name, class_name = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise CheckpointError(f"policy '{name}' is not implemented in this version of EdgeVLA") from error
    return getattr(module, class_name)
