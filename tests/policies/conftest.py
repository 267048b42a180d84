"""Fixtures of the VLAs' tests; what they share beyond fixtures is in vla_kit.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.train.policies import policy_class
from edgevla.train.policies.config import PolicyFeature
from edgevla.train.policies.vla import FlowVla
from edgevla.train.tiny import write_tiny_backbone

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from vla_kit import CAMERAS, TINY, MakeVla, random_stats, stir


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("backbones")
    smol = write_tiny_backbone(root / "smolvlm", "smolvlm")
    pali = write_tiny_backbone(root / "paligemma", "paligemma")
    return {"smolvla": smol, "pi0": pali, "pi05": pali}


@pytest.fixture
def make_vla(backbones: dict[str, Path]) -> MakeVla:
    def make(
        kind: str, *, cameras: dict[str, tuple[int, int]] = CAMERAS, dim: int = 6, **settings: Any
    ) -> FlowVla:
        cls = policy_class(kind)
        torch.manual_seed(1)
        inputs = {name: PolicyFeature("VISUAL", (3, *size)) for name, size in cameras.items()}
        config = cls.Config(
            input_features={**inputs, "observation.state": PolicyFeature("STATE", (dim,))},
            output_features={"action": PolicyFeature("ACTION", (dim,))},
            **{
                "chunk_size": 8,
                "n_action_steps": 8,
                "max_state_dim": max(8, dim),
                "max_action_dim": max(8, dim),
                **TINY[kind],
                **settings,
            },
        )
        config.validate()
        processors = cls.default_processors(config, random_stats({"observation.state": dim, "action": dim}))
        policy = cls.from_backbone(backbones[kind], config, processors)  # type: ignore[attr-defined]
        return stir(policy).eval()

    return make
