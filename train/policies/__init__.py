"""The policies: one story per file, and this visible table of where each lives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from edgevla.errors import CheckpointError
from edgevla.strict import nearest

if TYPE_CHECKING:
    from .base import Policy
    from .config import PolicyConfig


class Places(NamedTuple):
    """`module:Class` of a policy and of its config; a module is relative to this folder, or absolute.

    A config in a module of its own, without torch, is read by `edgevla inspect` where torch is not installed.
    """

    policy: str
    config: str


POLICIES: dict[str, Places] = {
    "act": Places(".act:Act", ".act:ActConfig"),
    "diffusion": Places(".diffusion:Diffusion", ".diffusion:DiffusionConfig"),
    "smolvla": Places(".smolvla:SmolVla", ".smolvla:SmolVlaConfig"),
    "pi0": Places(".pi0:Pi0", ".pi0:Pi0Config"),
    "pi05": Places(".pi05:Pi05", ".pi05:Pi05Config"),
    "xvla": Places(".xvla:XVla", ".xvla_config:XVlaConfig"),
    "groot": Places(".groot:Groot", ".groot_config:GrootConfig"),
}
ALIASES = {"pi05_fast": "pi05"}
"""Names a user may say that are another policy with other settings (Pi0.5-Fast: 5 denoise steps)."""


def policy_names() -> list[str]:
    """Every name that a user may say."""
    return [n for name in POLICIES for n in (name, *(a for a, real in ALIASES.items() if real == name))]


def policy_class(name: str) -> type[Policy]:
    """The class behind a policy's type name.

    Raises:
        CheckpointError: no such policy; suggests the nearest name.
    """
    found: type[Policy] = _load(_places(name).policy)
    return found


def config_class(name: str) -> type[PolicyConfig]:
    """The class of a policy's config.json by the policy's type name.

    Raises:
        CheckpointError: as `policy_class`. ModuleNotFoundError: it needs torch, which is not installed.
    """
    found: type[PolicyConfig] = _load(_places(name).config)
    return found


def _places(name: str) -> Places:
    places = POLICIES.get(ALIASES.get(name, name))
    if places is None:
        known = policy_names()
        raise CheckpointError(
            f"policy type '{name}' is unknown (known: {', '.join(known)}){nearest(name, known)}"
        )
    return places


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module, __package__), name)
