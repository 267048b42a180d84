"""Recorded checkpoints, and ways of tampering with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
POLICIES = ["act", "diffusion", "smolvla", "pi0", "pi05", "xvla", "groot"]
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER = {policy: "normalizer_processor" for policy in POLICIES} | {"groot": "groot_pack_inputs_v3"}
UNNORMALIZER = {policy: "unnormalizer_processor" for policy in POLICIES} | {
    "groot": "groot_action_unpack_unnormalize_v1"
}
Change = Callable[[dict[str, Any]], Any]


def checkpoint(policy: str, place: Path) -> Path:
    """A copy of the recorded checkpoint; the weights are linked."""
    folder = place / policy
    shutil.copytree(
        GOLDENS / policy / "checkpoint", folder, ignore=shutil.ignore_patterns("model.safetensors")
    )
    (folder / "model.safetensors").symlink_to(GOLDENS / policy / "checkpoint" / "model.safetensors")
    return folder


def edit(folder: Path, file: str, change: Change) -> None:
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))


def step(data: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in data["steps"] if s.get("registry_name") == name)


def edit_step(folder: Path, file: str, name: str, **settings: Any) -> None:
    edit(folder, file, lambda data: step(data, name)["config"].update(settings))


def edit_statistics(folder: Path, file: str, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """change: gets the step's tensors by name."""
    from safetensors.numpy import load_file, save_file

    data = json.loads((folder / file).read_text())
    path = folder / step(data, name)["state_file"]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
