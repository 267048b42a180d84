"""A checkpoint as something that infers, in torch and without an export: what `edgevla eval` compares bundles with.

It gets the manifest that an export would write, and runs through the runtime's own `BundlePolicy`, so that it sees the
same observations, prompts and noise as a bundle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgevla.bundle import Bundle
from edgevla.dataset.facts import facts_of, read_facts
from edgevla.evaluation.subjects import Opening
from edgevla.runner import BundlePolicy
from edgevla.train.account import account_of
from edgevla.train.checkpoint import checkpoint_folder, load_policy
from edgevla.train.policies.base import TorchGraph
from edgevla.train.worker import choose_device

from .build import copy_tokenizer, in_float32
from .draft import draft_manifest
from .features import decide
from .options import ExportOptions

if TYPE_CHECKING:
    from edgevla.dataset import Dataset


class HostGraph(TorchGraph):
    """A torch graph whose outputs lie on the host, as those of an engine do."""

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value.detach().cpu().numpy() for name, value in super().run(inputs).items()}

    def stack(self, arrays: Any) -> Any:
        return np.stack(list(arrays), axis=1)


def eager_policy(path: str, dataset: Dataset, opening: Opening) -> BundlePolicy:
    """The policy of a run, a checkpoint, a LeRobot folder or a hub id, in float32.

    What its features mean comes from `edgevla.json` beside it, else from the dataset, of which nobody says that it was
    trained on it; joint units that nobody states are called raw, since nothing is driven.

    Raises:
        CheckpointError: none there, or damaged. UsageError: features or cameras that must be said.
    """
    folder = checkpoint_folder(path)
    account_of(folder).require()
    policy = load_policy(folder, adapt=in_float32, device=choose_device(opening.device or ""))
    facts = read_facts(folder) or replace(facts_of(dataset, _stated(opening)), episodes=None)
    units = opening.joint_units or facts.joint_units or "raw"
    options = ExportOptions(joint_units=units, cameras=opening.cameras)
    meaning = decide(policy, facts, options, "checkpoint")
    manifest = draft_manifest(policy, folder, facts, meaning, options)
    policy.bake()
    graphs = {str(name): HostGraph(policy, name, spec) for name, spec in policy.graphs().items()}
    with tempfile.TemporaryDirectory(prefix="edgevla-eval-") as scratch:
        copy_tokenizer(policy, manifest, Path(scratch))
        bundle = Bundle(Path(scratch), manifest, manifest.provenance.checkpoint.sha256)
        return BundlePolicy(bundle, seed=opening.seed, graphs=graphs)


def _stated(opening: Opening) -> str | None:
    return opening.joint_units if opening.joint_units in ("degrees", "range100") else None
